/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Guests that a predecessor left running.  Their processes register by themselves, every 100 ms;
 * until they have nobody is answered, so that a caller never hears "no such guest" of one that is
 * protected, and nothing begins it anew.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

#define SHM_DIR "/dev/shm"
/* One whose processes hang can't be waited for. */
#define LIMIT_US 1000000

struct expected {
	struct expected *next;
	char name[MC_NAME_MAX];
};

/* Processes hold places of the arena in this file. */
static bool is_alive(int dir, const char *file)
{
	struct mc_arena a;
	bool taken = false;
	int fd = openat(dir, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return false;
	if (mc_arena_view(&a, fd, -1) < 0) {
		close(fd);
		return false;
	}
	for (int i = MC_ROLE_CAPTURE; i < MC_ROLE_MAX; i++)
		taken |= mc_arena_place_taken(&a, (enum mc_role)i);
	mc_arena_done(&a);
	return taken;
}

static void expect(struct manager *m, const char *name)
{
	struct expected *e = calloc(1, sizeof(*e));

	if (!e)
		return;
	snprintf(e->name, sizeof(e->name), "%s", name);
	e->next = m->expected;
	m->expected = e;
}

static void find_running(struct manager *m)
{
	char prefix[64];
	size_t n = (size_t)snprintf(prefix, sizeof(prefix), "microcheckpoint-%08x-", m->hash);
	DIR *dir = opendir(SHM_DIR);
	struct dirent *e;

	while (dir && (e = readdir(dir)))
		if (strncmp(e->d_name, prefix, n) == 0 && mc_guest_name_check(e->d_name + n) == 0 &&
		    is_alive(dirfd(dir), e->d_name))
			expect(m, e->d_name + n);
	if (dir)
		closedir(dir);
}

static void forget(struct manager *m)
{
	while (m->expected) {
		struct expected *next = m->expected->next;

		free(m->expected);
		m->expected = next;
	}
}

/* Everybody is here, or isn't going to come. */
static int open_doors(struct manager *m)
{
	int r = bus_announce(m);

	m->adopt_timer = sd_event_source_disable_unref(m->adopt_timer);
	if (r >= 0)
		r = boot_start(m);
	if (r >= 0)
		(void)sd_notify(0, "READY=1");
	else
		(void)sd_event_exit(m->event, r);
	return r;
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;

	(void)s;
	(void)usec;
	for (struct expected *e = m->expected; e; e = e->next)
		mc_warn("guest %s: runs, but none of its processes has registered within a second; "
		        "if mcctl status doesn't show it soon, end them and protect it anew",
		        e->name);
	forget(m);
	(void)open_doors(m);
	return 0;
}

int adopt_start(struct manager *m)
{
	int r;

	find_running(m);
	if (!m->expected)
		return open_doors(m);
	r = sd_event_add_time_relative(m->event, &m->adopt_timer, CLOCK_MONOTONIC, LIMIT_US, 1,
	                               on_limit, m);
	return r < 0 ? mc_log_errno(r, "can't wait for the processes of a predecessor") : 0;
}

void adopt_came(struct manager *m, const char *name)
{
	struct expected **p = &m->expected, *e;

	while (*p && strcmp((*p)->name, name) != 0)
		p = &(*p)->next;
	e = *p;
	if (!e)
		return;
	*p = e->next;
	free(e);
	if (!m->expected)
		(void)open_doors(m);
}

void adopt_stop(struct manager *m)
{
	m->adopt_timer = sd_event_source_disable_unref(m->adopt_timer);
	forget(m);
}
