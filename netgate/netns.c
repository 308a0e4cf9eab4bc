/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "netns.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "../ipc/util.h"

int netns_enter(const char *name, int *own)
{
	char path[256];
	int mc_autoclose fd = -1;
	int r;

	*own = -1;
	if (!name[0])
		return 0;
	snprintf(path, sizeof(path), "%s%s", name[0] == '/' ? "" : "/run/netns/", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	*own = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (*own < 0)
		return -errno;
	if (setns(fd, CLONE_NEWNET) < 0) {
		r = -errno;
		mc_closep(own);
		return r;
	}
	return 0;
}

void netns_leave(int *own)
{
	if (*own >= 0 && setns(*own, CLONE_NEWNET) < 0)
		abort();
	mc_closep(own);
}
