/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When and how the standby goes on. */
#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "restore.h"

static bool goes_on_here(uint64_t reason)
{
	return reason == MC_REASON_GUEST_DIED || reason == MC_REASON_HOST_SIGNAL ||
	       reason == MC_REASON_FAILOVER; /* handed over, planned */
}

static bool may_take(const struct mc_control *c)
{
	uint64_t w = atomic_load_explicit(&c->commit, memory_order_acquire);

	return mc_commit_epoch(w) && !(w & MC_COMMIT_DISARMED);
}

/* When silence, or a closed link, has lasted long enough. */
static uint64_t peer_deadline(const struct restore *r)
{
	const struct mc_control *c = r->a->control;
	uint64_t closed = atomic_load(&c->link_closed), at;

	if (restore_state(r) != MC_STATE_PROTECTED || !may_take(c))
		return UINT64_MAX;
	at = atomic_load(&c->last_rx) +
	     atomic_load(&r->a->config->failure_timeout_ms) * MC_NS_PER_MS;
	if (closed)
		at = mc_min_u64(at, closed + atomic_load(&r->a->config->restart_grace_ms) *
		                                     MC_NS_PER_MS);
	return at;
}

/* When to look again. */
uint64_t takeover_deadline(const struct restore *r)
{
	if (r->arbiter)
		return UINT64_MAX; /* its answer wakes us */
	return mc_max_u64(peer_deadline(r), r->ask_at);
}

/* Why the standby must take over now; NONE: it need not. */
static enum mc_reason trigger(const struct restore *r)
{
	const struct mc_control *c = r->a->control;
	uint64_t end = atomic_load(&c->peer_end), deadline = peer_deadline(r);

	if (goes_on_here(end))
		return (enum mc_reason)end;
	if (atomic_load(&c->want_takeover))
		return MC_REASON_FAILOVER;
	/* A predecessor died between its decision and the state: there is no way back. */
	if (mc_now_ns() < deadline && !(atomic_load(&c->commit) & MC_COMMIT_TAKEN))
		return MC_REASON_NONE;
	return atomic_load(&c->link_closed) ? MC_REASON_LINK_CLOSED : MC_REASON_SILENCE;
}

static int fail(struct restore *r, int e)
{
	mc_control_refuse(r->a->control,
	                  "takeover failed: the standby can't load the device state (%s); see its "
	                  "stderr; the guest's last committed state is still here, don't end this "
	                  "QEMU before you know",
	                  strerror(-e));
	mc_err("%s", r->a->control->refusal);
	(void)mc_state_move(r->a->control, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_TAKING_OVER,
	                    MC_STATE_STOPPED, MC_REASON_ERROR);
	mc_arena_ring_all(r->a);
	return 1;
}

/* From TAKING_OVER on; a successor enters here as well. */
static int go(struct restore *r)
{
	struct mc_control *c = r->a->control;
	enum mc_reason why = mc_state_reason(atomic_load(&c->state));
	mc_handle h = commit_state_slab(r);
	struct mc_slab_meta *m = mc_pool_meta(&r->a->slabs, h);
	uint64_t epoch = restore_committed(r);
	int e;

	if (!m || m->used > mc_copyset_state_max(r->a->slabs.unit) ||
	    atomic_load(&c->applied) != epoch)
		return fail(r, -ENODATA);
	e = standby_go(r, mc_pool_data(&r->a->slabs, h), m->used);
	if (e < 0)
		return fail(r, e);
	(void)mc_fault(MC_FAULT_RESTORE_RUNNING);
	atomic_store_explicit(&c->took_over, mc_now_ns(), memory_order_release);
	(void)mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_TAKING_OVER,
	                    MC_STATE_ACTIVE, why);
	mc_arena_ring_all(r->a);
	mc_info("took over at epoch %llu (%s), %.1f ms", (unsigned long long)epoch,
	        mc_reason_name(why),
	        (double)(atomic_load(&c->took_over) - atomic_load(&c->takeover_began)) / 1e6);
	mc_worker_event(r->w, "took-over", epoch, "the standby runs the guest (%s)",
	                mc_reason_name(why));
	commit_drop_all(r);
	return 1;
}

static void forget_question(struct restore *r)
{
	r->arbiter = mc_arbiter_free(r->arbiter);
	r->ask_at = 0;
}

/* The other end may run the guest: this one never will. */
static int lost(struct restore *r)
{
	struct mc_control *c = r->a->control;

	if (atomic_load(&c->want_takeover) && !goes_on_here(atomic_load(&c->peer_end)) &&
	    atomic_load(&c->link) == MC_LINK_UP) {
		/* An operator's wish, while nothing is wrong: protection goes on. */
		atomic_store(&c->want_takeover, 0);
		mc_warn("the arbiter refuses the failover: the guest belongs to the other host");
		mc_worker_event(
		        r->w, "arbiter", restore_committed(r),
		        "the arbiter refuses the failover: the guest belongs to the other host");
		return 1;
	}
	end_standby(r, MC_REASON_ARBITER,
	            "the arbiter decided that the guest stays where it was; start a new standby "
	            "and run mcctl standby");
	return 1;
}

/* 1: we may take over; 0: not yet, or never. */
static int may_by_arbiter(struct restore *r, enum mc_reason why)
{
	const struct mc_control *c = r->a->control;
	enum mc_verdict v;
	int e;

	if (!mc_arbiter_configured(r->a->config) || atomic_load(&c->commit) & MC_COMMIT_TAKEN)
		return 1;
	if (!r->arbiter) {
		if (mc_now_ns() < r->ask_at)
			return 0;
		r->ask_at = mc_now_ns() + MC_NS_PER_S;
		mc_info("asks the arbiter: %s", mc_reason_name(why));
		e = mc_arbiter_ask(&r->arbiter, r->w->event, r->w->arbiter_fd,
		                   atomic_load(&r->a->config->arbiter_timeout_ms), why,
		                   atomic_load(&c->peer_term_number), restore_committed(r));
		if (e < 0)
			mc_log_errno(e, "the arbiter can't be asked");
		return 0;
	}
	v = mc_arbiter_verdict(r->arbiter);
	if (v == MC_VERDICT_PENDING)
		return 0;
	mc_worker_event(r->w, "arbiter", restore_committed(r), "the arbiter %s: %s",
	                mc_arbiter_text(r->arbiter),
	                v == MC_VERDICT_WON    ? "this end may run the guest"
	                : v == MC_VERDICT_LOST ? "the other end may run the guest"
	                                       : "it is asked again");
	r->arbiter = mc_arbiter_free(r->arbiter);
	if (v == MC_VERDICT_LOST)
		(void)lost(r);
	return v == MC_VERDICT_WON;
}

int takeover_step(struct restore *r)
{
	struct mc_control *c = r->a->control;
	enum mc_state s = restore_state(r);
	enum mc_reason why;
	int e;

	if (s == MC_STATE_TAKING_OVER)
		return go(r);
	if (s != MC_STATE_PROTECTED)
		return 0;
	why = trigger(r);
	if (why == MC_REASON_NONE)
		forget_question(r); /* the peer is back: nothing is to be decided */
	if (why != MC_REASON_NONE && r->rehearsal.running) {
		/* The standby is needed; what waits to be committed comes first. */
		rehearse_abort(r, "the standby takes over");
		return 1;
	}
	if (why == MC_REASON_NONE || !may_take(c) || !may_by_arbiter(r, why))
		return 0;
	atomic_store(&c->takeover_began, mc_now_ns());
	e = mc_commit_take(c);
	if (e < 0 && e != -EALREADY)
		return 0; /* disarmed, or nothing committed: refused */
	(void)mc_fault(MC_FAULT_RESTORE_TAKEN);
	e = mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_PROTECTED,
	                  MC_STATE_TAKING_OVER, why);
	if (e < 0)
		return 0; /* the supervisor ended it meanwhile */
	(void)mc_fault(MC_FAULT_RESTORE_TAKING);
	return 1; /* go() tells of it */
}
