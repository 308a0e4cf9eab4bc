/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * For tests of what callers can take of the supervisor: timers fire TIMES_AS_FAST times as fast as
 * they were asked to; this process has no descriptors left.
 */
#ifndef MC_SUPERVISOR_TEST_TIME_H
#define MC_SUPERVISOR_TEST_TIME_H

#include <fcntl.h>
#include <stdint.h>
#include <sys/resource.h>
#include <unistd.h>

#include <systemd/sd-event.h>

#include "../ipc/util.h"

static uint64_t asked_us; /* what was asked for last */

int __real_sd_event_add_time_relative(sd_event *e, sd_event_source **ret, clockid_t clock,
                                      uint64_t usec, uint64_t accuracy,
                                      sd_event_time_handler_t callback, void *userdata);
int __wrap_sd_event_add_time_relative(sd_event *e, sd_event_source **ret, clockid_t clock,
                                      uint64_t usec, uint64_t accuracy,
                                      sd_event_time_handler_t callback, void *userdata);
int __wrap_sd_event_add_time_relative(sd_event *e, sd_event_source **ret, clockid_t clock,
                                      uint64_t usec, uint64_t accuracy,
                                      sd_event_time_handler_t callback, void *userdata)
{
	asked_us = usec;
	return __real_sd_event_add_time_relative(e, ret, clock, usec / TIMES_AS_FAST, accuracy ?: 1,
	                                         callback, userdata);
}

/* Runs @event for 0.3 s without a descriptor left; how often it had something to do. */
static unsigned run_without_descriptors(sd_event *event)
{
	uint64_t end = mc_now_ns() + 300 * MC_NS_PER_MS;
	int next = fcntl(0, F_DUPFD, 0);
	struct rlimit was, none;
	unsigned n = 0;

	close(next);
	getrlimit(RLIMIT_NOFILE, &was);
	none = (struct rlimit){.rlim_cur = (rlim_t)next, .rlim_max = was.rlim_max};
	setrlimit(RLIMIT_NOFILE, &none);
	while (mc_now_ns() < end)
		n += sd_event_run(event, 10000) > 0;
	setrlimit(RLIMIT_NOFILE, &was);
	return n;
}

#endif
