/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Primary: a first copy that broke off with its link, or with a transport, begins again: what the
 * backup has of it can't be known, but for the hashes of its pages, if it tells them.
 * Nothing is armed there, so the guest runs on, its gate open.
 *
 * sync_wanted is raised; until capture has followed (sync_copy), which it does once no slab of
 * the old copy is left, every such slab is freed here and no connection is made.
 */
#include "../ipc/log.h"
#include "transport.h"

#define COPIES_MAX 5 /* a link that breaks every time is no link */

bool again_pending(const struct transport *t)
{
	const struct mc_control *c = t->a->control;

	return atomic_load_explicit(&c->sync_copy, memory_order_acquire) !=
	       atomic_load(&c->sync_wanted);
}

bool again_begun(const struct transport *t, bool keeps)
{
	const struct mc_control *c = t->a->control;

	/* A comparison leaves no trace here as long as all is equal. */
	return t->p.sync_next ||
	       ((keeps || atomic_load(&c->peer_keeps)) && atomic_load(&c->sync_total));
}

/* Slabs that wait for their turn; what the link still reads it gives back itself. */
static void drop_window(struct transport *t)
{
	for (uint64_t i = 0; i < t->p.window_size; i++) {
		if (t->p.window[i])
			(void)mc_pool_free(&t->a->slabs, t->p.window[i]);
		t->p.window[i] = MC_HANDLE_NONE;
	}
	t->p.sync_next = 0;
}

bool again_held(struct transport *t)
{
	if (!again_pending(t) ||
	    primary_move(t, MC_STATE_HELD, MC_STATE_DEGRADED, MC_REASON_STANDBY_LOST) < 0)
		return false;
	mc_warn("the first copy broke off while the guest was held: the guest runs unprotected "
	        "until a new protection begins (mcctl protect)");
	mc_worker_event(t->w, "standby-lost", 0,
	                "the first copy broke off while the guest was held");
	return true;
}

bool again_begin(struct transport *t)
{
	struct mc_control *c = t->a->control;
	uint64_t first = atomic_load(&c->armed_epoch);
	struct out_epoch *e;

	if (transport_state(t) != MC_STATE_SYNCING ||
	    atomic_load(&t->a->journal.shm->last_committed) || t->p.copies++ == COPIES_MAX)
		return false;
	mc_warn("the first copy broke off and begins again by itself; nothing is to be done");
	atomic_store_explicit(&c->sync_wanted, atomic_load(&c->sync_copy) + 1,
	                      memory_order_release);
	drop_window(t);
	/* Capture gives up the one that it may be taking. */
	if (first)
		(void)mc_journal_abort_from(&t->a->journal, first, -ECONNRESET);
	while (t->p.epoch && (e = collect_oldest(t, 0))) /* a process that just started has none */
		collect_drop(t, e);
	mc_arena_ring_all(t->a);
	return true;
}

bool again_after_death(struct transport *t)
{
	bool sync = atomic_load(&t->a->control->sync_slabs) && !primary_armed(t) &&
	            transport_state(t) == MC_STATE_SYNCING;

	/* What the predecessor sent can't be known. */
	if (sync && !again_pending(t))
		(void)again_begin(t);
	return sync;
}
