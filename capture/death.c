/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "death.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../ipc/util.h"

#define THREAD     O_EXCL /* PIDFD_THREAD, Linux 6.9 (include/uapi/linux/pidfd.h) */
#define PF_EXITING 0x4UL  /* include/linux/sched.h; field 9 of /proc/PID/stat */

static int open_proc(pid_t pid, const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int add_threads(struct death *d, pid_t pid)
{
	struct dirent *entry;
	char path[64];
	int r = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (r == 0 && d->n < DEATH_THREADS && (entry = readdir(dir))) {
		int tid = atoi(entry->d_name), fd;

		if (tid <= 0)
			continue;
		fd = (int)syscall(SYS_pidfd_open, tid, THREAD);
		if (fd >= 0) {
			struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};

			d->thread[d->n++] = fd;
			if (epoll_ctl(d->any, EPOLL_CTL_ADD, fd, &e) < 0)
				r = -errno;
		} else if (errno != ESRCH) /* one that has just ended */
			r = -errno;
	}
	closedir(dir);
	return r;
}

int death_open(struct death *d, pid_t pid)
{
	int r;

	*d = (struct death){.stat = open_proc(pid, "stat"),
	                    .status = open_proc(pid, "status"),
	                    .any = epoll_create1(EPOLL_CLOEXEC)};
	r = d->stat < 0     ? d->stat
	    : d->status < 0 ? d->status
	    : d->any < 0    ? -EMFILE
	                    : add_threads(d, pid);
	if (r < 0)
		death_close(d);
	return r;
}

void death_close(struct death *d)
{
	while (d->n)
		mc_closep(&d->thread[--d->n]);
	if (d->stat >= 0)
		mc_closep(&d->stat);
	if (d->status >= 0)
		mc_closep(&d->status);
	if (d->any >= 0)
		mc_closep(&d->any);
	d->stat = d->status = d->any = -1;
}

/* Reads a file of /proc anew. false: the process is gone. */
static bool read_again(int fd, char *buf, size_t size)
{
	ssize_t n = pread(fd, buf, size - 1, 0);

	buf[n > 0 ? n : 0] = '\0';
	return n > 0;
}

static bool leader_exits(const char *stat)
{
	const char *p = strrchr(stat, ')'); /* the name before it may hold anything */

	/* state, ppid, pgrp, session, tty, tpgid, flags */
	for (int i = 0; p && i < 7; i++)
		p = strchr(p + 1, ' ');
	return p && strtoul(p + 1, NULL, 10) & PF_EXITING;
}

static bool kill_is_pending(const char *status)
{
	const char *p = strstr(status, "\nSigPnd:");

	return p && strtoull(p + strlen("\nSigPnd:"), NULL, 16) >> (SIGKILL - 1) & 1;
}

bool death_has_come(const struct death *d)
{
	char buf[4096];

	if (!read_again(d->stat, buf, sizeof(buf)) || leader_exits(buf))
		return true;
	if (!read_again(d->status, buf, sizeof(buf)) || kill_is_pending(buf))
		return true;
	/* It may have taken the signal between the two looks. */
	return !read_again(d->stat, buf, sizeof(buf)) || leader_exits(buf);
}

void death_forget_ended(const struct death *d)
{
	struct epoll_event e[DEATH_THREADS];
	int n = epoll_wait(d->any, e, DEATH_THREADS, 0);

	while (n > 0)
		(void)epoll_ctl(d->any, EPOLL_CTL_DEL, e[--n].data.fd, NULL);
}
