/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Failover(planned): the caller's wish, and what became of it. */
#include <errno.h>

#include "supervisor.h"

#define SWITCHOVER_US 10000000

void switchover_finish(struct guest *g, int error, const char *text)
{
	watch_answer(g, &g->switchover, &g->switchover_limit, error, MC_ERROR("Failed"), text);
}

/* Called off, unless the backup was told already. */
static int on_switchover_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct guest *g = userdata;

	(void)s;
	(void)usec;
	atomic_store(&g->arena.control->want_end, 0);
	mc_arena_ring_all(&g->arena);
	switchover_finish(
	        g, -ETIMEDOUT,
	        guest_state(g) == MC_STATE_HELD
	                ? "the backup was told to go on, but hasn't confirmed it; the guest stays "
	                  "stopped here: look at the backup, then mcctl resolve"
	                : "the switchover took longer than 10 s and is called off; protection goes "
	                  "on, mcctl events says how far it came");
	return 0;
}

int switchover_begin(struct guest *g, sd_bus_message *msg, sd_bus_error *e)
{
	struct mc_control *c = g->arena.control;

	if (g->side == MC_SIDE_BACKUP)
		return bus_error(
		        e, -EPERM,
		        "guest %s: this is its backup (%s); a planned switchover begins on the "
		        "host of the primary, and mcctl failover %s takes over without it",
		        g->name, mc_state_name(guest_state(g)), g->name);
	if (guest_state(g) != MC_STATE_PROTECTED || atomic_load(&c->link) != MC_LINK_UP)
		return bus_error(
		        e, -EPERM,
		        "guest %s is %s: a planned switchover is for a protected primary whose "
		        "backup can be reached; wait for PROTECTED, or look at the link",
		        g->name, mc_state_name(guest_state(g)));
	if (atomic_load(&c->want_end))
		return bus_error(e, -EBUSY,
		                 "guest %s: its protection is ending already; wait for its end, "
		                 "mcctl status shows it",
		                 g->name);
	if (atomic_load(&c->want_hold))
		return bus_error(e, -EPERM, "guest %s: its epochs are held; mcctl resume %s first",
		                 g->name, g->name);
	g->switchover = sd_bus_message_ref(msg);
	(void)sd_event_add_time_relative(g->m->event, &g->switchover_limit, CLOCK_MONOTONIC,
	                                 SWITCHOVER_US, 0, on_switchover_limit, g);
	event_write(g, "switchover", atomic_load(&g->arena.journal.shm->last_begun),
	            "an operator moves the guest to its backup");
	atomic_store_explicit(&c->want_end, MC_REASON_FAILOVER, memory_order_release);
	mc_arena_ring_all(&g->arena);
	return 1;
}

void switchover_called_off(struct guest *g, const char *text)
{
	if (!g->switchover)
		return;
	atomic_store(&g->arena.control->want_end, 0);
	mc_arena_ring_all(&g->arena);
	switchover_finish(g, -ECANCELED, text);
}
