/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * DEGRADED, since the standby is gone for certain: asks the peer every other second whether a
 * fresh one waits.  Once it does the supervisor begins a new protection, under a new term; until
 * then nothing is touched, the guest and its network least of all.
 */
#include <errno.h>

#include "../ipc/log.h"
#include "streams.h"

bool ask_wanted(const struct transport *t)
{
	uint64_t word = atomic_load_explicit(&t->a->control->state, memory_order_acquire);
	enum mc_reason why = mc_state_reason(word);

	return mc_state_of(word) == MC_STATE_DEGRADED &&
	       !atomic_load(&t->a->control->standby_waits) &&
	       (why == MC_REASON_STANDBY_LOST || why == MC_REASON_RESOLVED ||
	        why == MC_REASON_ARBITER);
}

int ask_step(struct transport *t)
{
	if (t->p.asks)
		return 0;
	/* The link of the protection that ended: what is queued, an END_ACK, goes out first. */
	link_flush(t->link);
	if (t->link && t->up && !link_idle(t->link))
		return 0;
	t->p.asks = true;
	streams_end(t);
	t->link = link_free(t->link);
	transport_set_link(t, false);
	(void)sd_event_source_set_time_relative(t->p.retry, ASK_US);
	(void)sd_event_source_set_enabled(t->p.retry, SD_EVENT_ONESHOT);
	return 1;
}

int ask_answered(struct transport *t, const struct mc_hello *theirs)
{
	if (theirs->h.taken_over && !t->p.two_told) {
		t->p.two_told = true;
		mc_err("the peer runs this guest as well: end one of the two (mcctl status on "
		       "both)");
		mc_worker_event(t->w, "conflict", 0,
		                "the peer runs this guest as well: end one of the two (mcctl "
		                "status on both)");
	}
	if (theirs->h.taken_over || !theirs->h.resync)
		return -ESHUTDOWN;
	mc_worker_event(t->w, "standby-waits", 0, "the peer has a fresh standby");
	atomic_store_explicit(&t->a->control->standby_waits, 1, memory_order_release);
	mc_arena_ring(t->a, MC_ROLE_SUPERVISOR);
	return -ESHUTDOWN;
}
