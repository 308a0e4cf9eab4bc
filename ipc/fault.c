/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fault.h"

#ifdef MC_FAULTS

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int mc_fault(const char *name)
{
	static _Atomic unsigned long passed;
	const char *spec = getenv("MC_FAULT");
	size_t n = strlen(name);
	unsigned long nth = 1;
	const char *p;

	if (!spec || strncmp(spec, name, n) != 0 || (spec[n] && spec[n] != ':'))
		return 0;
	p = spec + n;
	if (p[0] == ':' && p[1] >= '0' && p[1] <= '9')
		nth = strtoul(p + 1, (char **)&p, 10);
	if (atomic_fetch_add(&passed, 1) + 1 != nth)
		return 0;
	if (strcmp(p, ":error") == 0)
		return -EIO;
	kill(getpid(), strcmp(p, ":stall") == 0 ? SIGSTOP : SIGKILL);
	return 0;
}

#endif
