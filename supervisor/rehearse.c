/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Rehearse(): the last epoch is loaded on trial (restore/rehearse.h). */
#include <errno.h>
#include <string.h>

#include "supervisor.h"
#include "text.h"

#define REHEARSE_US 25000000

void rehearse_finish(struct guest *g, int error, const char *text)
{
	sd_bus_message *m = g->rehearsal;

	if (!m)
		return;
	g->rehearsal = NULL;
	g->rehearsal_limit = sd_event_source_disable_unref(g->rehearsal_limit);
	if (error < 0)
		(void)sd_bus_reply_method_errorf(m, MC_ERROR("Failed"), "guest %s: %s", g->name,
		                                 text);
	else
		(void)sd_bus_reply_method_return(m, "s", text);
	sd_bus_message_unref(m);
}

void rehearse_look(struct guest *g)
{
	const struct mc_control *c = g->arena.control;
	char text[MC_WHY_MAX];

	if (!g->rehearsal || atomic_load_explicit(&c->rehearsal_done, memory_order_acquire) !=
	                             atomic_load(&c->want_rehearsal))
		return;
	memcpy(text, c->rehearsal, sizeof(text));
	text[sizeof(text) - 1] = '\0';
	rehearse_finish(g, atomic_load(&c->rehearsal_ok) ? 0 : -EIO, text_clean(text, true));
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	rehearse_finish(userdata, -ETIMEDOUT,
	                "the rehearsal gave no result within 25 s; is this host short of memory or "
	                "CPU? Try again when it is quiet");
	return 0;
}

/* How many guests are being rehearsed; each is a QEMU of its own, with all the RAM of the guest. */
static unsigned running(const struct manager *m)
{
	unsigned n = 0;

	for (const struct guest *g = m->guests; g; g = g->next)
		n += g->rehearsal != NULL;
	return n;
}

int rehearse_begin(struct guest *g, sd_bus_message *msg, sd_bus_error *e)
{
	enum mc_state s = guest_state(g);

	if (g->side != MC_SIDE_BACKUP || s != MC_STATE_PROTECTED)
		return bus_error(e, -EPERM,
		                 "guest %s is %s (%s): a rehearsal is for a backup that holds a "
		                 "committed epoch; call it there, once it is PROTECTED",
		                 g->name, mc_state_name(s),
		                 g->side == MC_SIDE_PRIMARY ? "primary" : "backup");
	if (g->rehearsal)
		return bus_error(e, -EBUSY,
		                 "guest %s: is being rehearsed already; wait for the result",
		                 g->name);
	if (running(g->m) >= REHEARSALS)
		return bus_error(
		        e, -EBUSY,
		        "guest %s: %d guests are being rehearsed on this host at this moment, "
		        "each in a QEMU with all of its RAM; try again when one has ended",
		        g->name, REHEARSALS);
	g->rehearsal = sd_bus_message_ref(msg);
	(void)sd_event_add_time_relative(g->m->event, &g->rehearsal_limit, CLOCK_MONOTONIC,
	                                 REHEARSE_US, 0, on_limit, g);
	atomic_fetch_add(&g->arena.control->want_rehearsal, 1);
	mc_arena_ring(&g->arena, MC_ROLE_RESTORE);
	return 1;
}
