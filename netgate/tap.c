/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "netns.h"

#define QLEN_PATH "/proc/sys/net/unix/max_dgram_qlen"
#define QLEN      4096

static int make_tap(const char *name)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return -errno;
	strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
		int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

int tap_open(const char *name, const char *netns, char *why, size_t why_len)
{
	int own, fd, r = netns_enter(netns, &own);

	if (r < 0) {
		snprintf(why, why_len,
		         "can't enter network namespace %s: %s; ip netns list shows those that are "
		         "there",
		         netns, strerror(-r));
		return r;
	}
	fd = make_tap(name);
	netns_leave(&own);
	if (fd == -EBUSY)
		snprintf(why, why_len, "tap %s is in use by another process; name a free one",
		         name);
	else if (fd == -EPERM)
		snprintf(why, why_len,
		         "no permission for tap %s; CAP_NET_ADMIN is needed, or make it with "
		         "'ip tuntap add %s mode tap user ...'",
		         name, name);
	else if (fd < 0)
		snprintf(why, why_len, "can't open tap %s: %s; ip tuntap add %s mode tap makes one",
		         name, strerror(-fd), name);
	return fd;
}

/* QEMU's frames queue in our socket while the gate is busy: more than the default 10. */
static void raise_queue_length(void)
{
	int mc_autoclose fd = open(QLEN_PATH, O_RDWR | O_CLOEXEC);
	char buf[32] = "";

	if (fd < 0 || read(fd, buf, sizeof(buf) - 1) <= 0 || atoi(buf) >= QLEN)
		return;
	(void)snprintf(buf, sizeof(buf), "%d", QLEN);
	if (pwrite(fd, buf, strlen(buf), 0) < 0)
		return; /* not permitted: purged frames are counted */
}

int dgram_open(const char *path, char *why, size_t why_len)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct stat st;
	int fd;

	raise_queue_length();
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (!path[0])
		return fd;
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
		(void)unlink(path); /* a dead predecessor's */
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		int r = -errno;

		snprintf(why, why_len,
		         "can't make socket %s: %s; is its folder there, and ours to write to?",
		         path, strerror(-r));
		close(fd);
		return r;
	}
	return fd;
}
