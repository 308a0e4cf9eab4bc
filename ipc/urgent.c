/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "urgent.h"

#include <dirent.h>
#include <errno.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLICE_NS 100000 /* the least that the kernel takes */
#define LAST     19     /* the nice value */

int mc_urgent(pid_t tid)
{
	struct sched_attr a = {0};

	if (syscall(SYS_sched_getattr, tid, &a, sizeof(a), 0) < 0)
		return -errno;
	if (a.sched_policy != SCHED_NORMAL)
		return 0;
	a.sched_runtime = SLICE_NS;
	return syscall(SYS_sched_setattr, tid, &a, 0) < 0 ? -errno : 0;
}

int mc_urgent_process(pid_t pid)
{
	struct dirent *e;
	char path[64];
	int r = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (r == 0 && (e = readdir(dir))) {
		pid_t tid = atoi(e->d_name);

		if (tid > 0)
			r = mc_urgent(tid);
		if (r == -ESRCH) /* it has just ended */
			r = 0;
	}
	closedir(dir);
	return r;
}

void mc_not_urgent(void)
{
	(void)setpriority(PRIO_PROCESS, 0, LAST);
}
