/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The taps that QEMU has open: their names and network namespaces. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "../ipc/util.h"
#include "vm-private.h"

#ifndef TUNGETDEVNETNS
#define TUNGETDEVNETNS _IO('T', 227)
#endif

/* The interface behind a descriptor of /dev/net/tun. */
static int name_of_fd(pid_t pid, int fd, char name[16])
{
	char path[64], line[128];
	int r = -ENOENT;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", (int)pid, fd);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (r < 0 && fgets(line, sizeof(line), f))
		if (sscanf(line, "iff: %15s", name) == 1)
			r = 0;
	fclose(f);
	return r;
}

/* A descriptor of QEMU's for tap @name; -ENOENT. */
static int fd_of_name(pid_t pid, const char *name)
{
	char path[64], has[16];
	struct dirent *e;
	int r = -ENOENT;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo", (int)pid);
	d = opendir(path);
	if (!d)
		return -errno;
	while (r < 0 && (e = readdir(d))) {
		int fd;

		if (sscanf(e->d_name, "%d", &fd) == 1 && name_of_fd(pid, fd, has) == 0 &&
		    !strcmp(has, name))
			r = fd;
	}
	closedir(d);
	return r;
}

int vm_tap_name(pid_t pid, const char *info, char name[16])
{
	const char *p = strstr(info, ",ifname=");
	int fd;

	name[0] = '\0';
	if (p)
		return sscanf(p, ",ifname=%15[^,\r\n]", name) == 1 ? 0 : -EBADMSG;
	p = strstr(info, ",fd=");
	if (!p || sscanf(p, ",fd=%d", &fd) != 1)
		return -ENOENT;
	return name_of_fd(pid, fd, name);
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* A path for the namespace @ns, "" for our own. */
static int name_netns(pid_t pid, const struct stat *ns, char *ret, size_t len)
{
	struct stat st;
	struct dirent *e;
	int r = -ENOENT;
	DIR *d;

	ret[0] = '\0';
	if (stat("/proc/self/ns/net", &st) == 0 && same_file(&st, ns))
		return 0;
	snprintf(ret, len, "/proc/%d/ns/net", (int)pid);
	if (stat(ret, &st) == 0 && same_file(&st, ns))
		return 0;
	d = opendir("/run/netns");
	while (d && r < 0 && (e = readdir(d))) {
		snprintf(ret, len, "/run/netns/%.90s", e->d_name);
		if (e->d_name[0] != '.' && stat(ret, &st) == 0 && same_file(&st, ns))
			r = 0;
	}
	if (d)
		closedir(d);
	return r;
}

/*
 * Where the tap is: the kernel tells by a copy of QEMU's descriptor.  Where that isn't
 * permitted, where QEMU is.
 */
static int netns_of(pid_t pid, const char *name, char *ret, size_t len)
{
	int mc_autoclose pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int mc_autoclose tap = -1;
	int mc_autoclose ns = -1;
	struct stat st;
	char path[64];
	int theirs = fd_of_name(pid, name);

	if (pidfd >= 0 && theirs >= 0)
		tap = (int)syscall(SYS_pidfd_getfd, pidfd, theirs, 0);
	if (tap >= 0)
		ns = ioctl(tap, TUNGETDEVNETNS);
	if (ns >= 0)
		return fstat(ns, &st) < 0 ? -errno : name_netns(pid, &st, ret, len);
	snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
	return stat(path, &st) < 0 ? -errno : name_netns(pid, &st, ret, len);
}

int vm_taps(struct qmp *q, pid_t pid, json_t **ret)
{
	char mc_autofree *text = NULL;
	json_t *list = json_array();
	int r = qmp_hmp(q, "info network", VM_TIMEOUT_MS, &text);

	for (const char *line = text; r == 0 && line && *line;) {
		char id[64], kind[16], name[16], netns[108], one[512];

		snprintf(one, sizeof(one), "%.*s", (int)strcspn(line, "\r\n"),
		         line + strspn(line, " \\"));
		one[strcspn(one, "\r\n")] = '\0';
		/* The first queue stands for all of a tap. */
		if (sscanf(one, "%63[^:]: index=0,type=%15[^,]", id, kind) == 2 &&
		    !strcmp(kind, "tap") && vm_tap_name(pid, one, name) == 0 &&
		    netns_of(pid, name, netns, sizeof(netns)) == 0)
			json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "netdev", id,
			                                      "tap", name, "netns", netns));
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	if (r < 0) {
		json_decref(list);
		return r;
	}
	*ret = list;
	return 0;
}
