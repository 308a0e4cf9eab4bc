/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * After the restart of a standby, or of a guest: a full copy under a new term, without being told.
 *
 *   primary  DEGRADED, its standby gone: once transport has found a fresh one (standby_waits)
 *            ENDED since the guest shut down: once a QEMU runs behind its monitor again
 *            STOPPED before anything was armed, begun by us: the peer wasn't ready
 *   backup   STOPPED since its QEMU ended: once one waits for incoming state again
 *            ENDED since the guest shut down: at once, the standby is as good as new
 *
 * What an operator ended stays so, as does what needs one (a hot-plug, a conflict, a failover).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/log.h"
#include "supervisor.h"

#define WAIT_MIN_US 2000000
#define WAIT_MAX_US 10000000

static bool is_due(const struct guest *g)
{
	const struct mc_control *c = g->arena.control;
	uint64_t word = atomic_load_explicit(&c->state, memory_order_acquire);
	enum mc_reason why = mc_state_reason(word);
	bool primary = g->side == MC_SIDE_PRIMARY;

	switch (mc_state_of(word)) {
	case MC_STATE_DEGRADED:
		return watch_asks(g) && atomic_load(&c->standby_waits);
	case MC_STATE_ENDED:
		return why == MC_REASON_GUEST_SHUTDOWN;
	case MC_STATE_STOPPED:
		return primary ? g->begun_again && !atomic_load(&c->armed_epoch)
		               : why == MC_REASON_STANDBY_LOST;
	default:
		return false;
	}
}

/* What the entry was begun with. */
static void request_of(const struct guest *g, struct request *rq)
{
	request_init(rq);
	rq->cfg = *g->arena.config;
	rq->params = g->arena.params;
	rq->again = true;
	rq->gate_given = true;
	rq->gate = rq->cfg.nnics ? REQUEST_GATE_AUTO : REQUEST_GATE_NONE;
	rq->cfg.takeover_term = (struct mc_term){0};
}

static void try_later(struct guest *g);

static void tried(struct manager *m, struct request *rq, int r, const char *text)
{
	struct guest *g = manager_find(m, rq->cfg.guest);

	if (!g) {
		mc_warn("guest %s: isn't begun again: %s; mcctl protect or mcctl standby begins it "
		        "by hand",
		        rq->cfg.guest, text);
		return;
	}
	if (r >= 0)
		return; /* a new entry */
	g->again_busy = false;
	mc_debug("guest %s: not begun again yet: %s", g->name, text);
	try_later(g);
}

static void try(struct guest *g)
{
	struct request *rq = malloc(sizeof(*rq));
	bool primary = g->side == MC_SIDE_PRIMARY;
	char why[640];
	int r;

	if (!rq)
		return;
	request_of(g, rq);
	rq->done = tried;
	r = start_check(g->m, rq, primary, why, sizeof(why));
	if (r == 0)
		r = start_examine(g->m, rq, primary, why, sizeof(why));
	if (r < 0) {
		free(rq);
		try_later(g);
		return;
	}
	g->again_busy = true;
}

static int on_again(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct guest *g = userdata;

	(void)s;
	(void)usec;
	g->again = sd_event_source_unref(g->again);
	if (is_due(g) && !g->again_busy)
		try(g);
	return 0;
}

static void try_later(struct guest *g)
{
	/* A standby that was found needs no waiting for. */
	bool first = !g->again_wait && guest_state(g) == MC_STATE_DEGRADED;

	if (g->again || g->dying)
		return;
	g->again_wait = g->again_wait ? g->again_wait * 3 / 2 : WAIT_MIN_US;
	if (g->again_wait > WAIT_MAX_US)
		g->again_wait = WAIT_MAX_US;
	(void)sd_event_add_time_relative(g->m->event, &g->again, CLOCK_MONOTONIC,
	                                 first ? 0 : g->again_wait, 0, on_again, g);
}

void again_look(struct guest *g)
{
	if (is_due(g) && !g->again_busy)
		try_later(g);
}

void again_stop(struct guest *g)
{
	g->again = sd_event_source_disable_unref(g->again);
}

bool again_wanted(const struct guest *g)
{
	return g && g->again_busy && is_due(g);
}

bool again_gives_way(const struct guest *g)
{
	enum mc_state s = guest_state(g);

	return g->begun_again && (s == MC_STATE_WAITING || s == MC_STATE_SYNCING);
}
