/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Processes that don't turn any more.  A worker raises its heartbeat at every turn of its loop,
 * and its loop turns whenever its bell rings: one whose heartbeat stands still is rung at,
 * and when that moves nothing within a limit it is killed.  An idle one answers the bell, a long
 * operation of its own was announced (mc_worker_busy()).
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

#define PERIOD_MS  75
#define LIMIT_MS   1500 /* above the time limits of QMP answers in a pause */
#define GATE_MS    200  /* epochs fail without barriers */
#define START_MS   10000
#define FILL_TICKS 14
#define LATE_NS    (4 * PERIOD_MS * MC_NS_PER_MS)

/* Its state in /proc; '?' unknown. */
static char run_state(pid_t pid)
{
	char path[40], buf[512], *p;
	int mc_autoclose fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return '?';
	buf[n] = '\0';
	p = strrchr(buf, ')');
	return p && p[1] == ' ' ? p[2] : '?';
}

/* ns that a process may stand still, the bell rung. */
static uint64_t limit_of(const struct child *c)
{
	const struct mc_arena *a = &c->g->arena;
	enum mc_state s = guest_state(c->g);
	uint64_t ms = LIMIT_MS;

	if (atomic_load(&a->proc[c->role].pid) != (uint64_t)c->pid)
		return START_MS * MC_NS_PER_MS; /* hasn't signed in yet */
	if (c->role == MC_ROLE_NETGATE && s == MC_STATE_PROTECTED && c->g->side == MC_SIDE_PRIMARY)
		ms = GATE_MS;
	/* Its successor has to be there before the peer takes the silence for a death. */
	if (c->role == MC_ROLE_TRANSPORT && atomic_load(&a->control->link) == MC_LINK_UP)
		ms = atomic_load(&a->config->failure_timeout_ms) * 2 / 5;
	if (ms < LIMIT_MS) {
		char run = run_state(c->pid);

		/* It waits for a CPU, or the kernel works for it. */
		if (run == 'R' || run == 'D')
			ms = LIMIT_MS;
	}
	return ms * MC_NS_PER_MS;
}

static void kill_hung(struct child *c, uint64_t still)
{
	mc_warn("guest %s: mc-%s %u (pid %d) shows no sign of life for %llu ms: it is killed and "
	        "started again; is this host overloaded?",
	        c->g->name, mc_role_name(c->role), mc_role_index(c->role), (int)c->pid,
	        (unsigned long long)(still / MC_NS_PER_MS));
	c->hung = true;
	if (syscall(SYS_pidfd_send_signal, c->pidfd, SIGKILL, NULL, 0) < 0)
		mc_warn("guest %s: can't kill its process %d, which hangs: %s; kill it by hand",
		        c->g->name, (int)c->pid, strerror(errno));
}

static void look_at(struct child *c, uint64_t now, bool late)
{
	struct mc_arena *a = &c->g->arena;
	/* In this order: the heartbeat is raised before an announcement ends. */
	uint64_t busy = atomic_load_explicit(&a->proc[c->role].busy_until, memory_order_acquire);
	uint64_t beat = atomic_load_explicit(&a->proc[c->role].heartbeat, memory_order_relaxed);
	uint64_t since, limit;

	/* After a stop of our own nothing that we remember says anything. */
	if (beat != c->beat || late || c->beat_seen < c->started) {
		c->beat = beat;
		c->beat_seen = now;
		c->rung = 0;
		return;
	}
	if (c->hung || now - c->beat_seen < PERIOD_MS * MC_NS_PER_MS)
		return;
	since = mc_max_u64(c->beat_seen, busy);
	limit = limit_of(c);
	/* We may have been late ourselves: it gets time to answer the bell whatever the clock says.
	 */
	if (c->rung && now - c->rung >= limit / 2 && now > since + limit) {
		kill_hung(c, now - c->beat_seen);
	} else if (now - c->beat_seen > limit / 4) {
		mc_bell_ring_always(a->bell_fd[c->role]);
		if (!c->rung)
			c->rung = now;
	}
}

static int on_period(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;
	uint64_t now = mc_now_ns();
	bool late = now - m->hung_at > LATE_NS;
	/* What died before anybody watched it: looked for about once a second. */
	bool fill = !(++m->hung_ticks % FILL_TICKS);

	(void)usec;
	m->hung_at = now;
	for (struct guest *g = m->guests; g; g = g->next) {
		if (fill)
			death_fill_places(g);
		for (int i = MC_ROLE_CAPTURE; i < MC_ROLE_MAX; i++)
			if (g->child[i].pid && g->child[i].pidfd >= 0)
				look_at(&g->child[i], now, late);
	}
	(void)sd_event_source_set_time_relative(s, PERIOD_MS * 1000);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

int hung_start(struct manager *m)
{
	int r = sd_event_add_time_relative(m->event, &m->hung_timer, CLOCK_MONOTONIC,
	                                   PERIOD_MS * 1000, 5000, on_period, m);

	return r < 0 ? mc_log_errno(r, "can't set the timer that finds hung processes") : 0;
}
