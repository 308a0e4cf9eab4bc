/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where a guest's processes run: CPUs and control group. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "supervisor.h"

#define CGROUPS "/sys/fs/cgroup/"

/* "2-3,8" into a set. -EINVAL when it isn't such a list. */
static int parse_cpus(const char *text, cpu_set_t *set)
{
	CPU_ZERO(set);
	do {
		char *end;
		unsigned long a = strtoul(text, &end, 10), b = a;

		if (end == text)
			return -EINVAL;
		if (*end == '-') {
			text = end + 1;
			b = strtoul(text, &end, 10);
			if (end == text)
				return -EINVAL;
		}
		if (b < a || b >= CPU_SETSIZE || (*end && *end != ','))
			return -EINVAL;
		for (; a <= b; a++)
			CPU_SET(a, set);
		text = end + 1;
		if (!*end)
			return 0;
	} while (1);
}

int place_check(const struct mc_config *c, char *why, size_t why_len)
{
	cpu_set_t set, have;
	char path[256];

	if (c->cpus[0]) {
		if (parse_cpus(c->cpus, &set) < 0 ||
		    sched_getaffinity(0, sizeof(have), &have) < 0) {
			snprintf(why, why_len,
			         "cpus: '%.64s' isn't a list of CPUs; write it as 2-3,8", c->cpus);
			return -EINVAL;
		}
		CPU_AND(&have, &have, &set);
		if (!CPU_EQUAL(&have, &set)) {
			snprintf(why, why_len,
			         "cpus: not all of %.64s may be used here; taskset -p %d shows "
			         "those that may",
			         c->cpus, (int)getpid());
			return -EINVAL;
		}
	}
	if (!c->cgroup[0])
		return 0;
	snprintf(path, sizeof(path), "%s/cgroup.procs", c->cgroup);
	if (strncmp(c->cgroup, CGROUPS, strlen(CGROUPS)) != 0 || strstr(c->cgroup, "..") ||
	    access(path, W_OK) < 0) {
		snprintf(why, why_len,
		         "cgroup: %s isn't a control group that can be written to; make it first "
		         "(mkdir below " CGROUPS ")",
		         c->cgroup);
		return -EINVAL;
	}
	return 0;
}

int place_self(const struct mc_config *c, char *why, size_t why_len)
{
	int mc_autoclose fd = -1;
	char path[256];
	cpu_set_t set;

	if (c->cgroup[0]) {
		snprintf(path, sizeof(path), "%s/cgroup.procs", c->cgroup);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1) {
			snprintf(why, why_len,
			         "can't join control group %s: %s; make it again, or protect "
			         "without cgroup",
			         c->cgroup, strerror(errno));
			return -EIO;
		}
	}
	if (!c->cpus[0])
		return 0;
	if (parse_cpus(c->cpus, &set) < 0 || sched_setaffinity(0, sizeof(set), &set) < 0) {
		snprintf(why, why_len, "can't run on CPUs %s: %s; are they online?", c->cpus,
		         strerror(errno));
		return -EIO;
	}
	return 0;
}
