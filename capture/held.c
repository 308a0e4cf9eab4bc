/* SPDX-License-Identifier: GPL-2.0-or-later */
/* HELD: the guest stands still, since nobody knows what its backup does. */
#include <errno.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

#define ATTEMPT_FIRST (1 * MC_NS_PER_S)
#define ATTEMPT_MAX   (32 * MC_NS_PER_S)

static uint64_t state_word(const struct capture *c)
{
	return atomic_load_explicit(&c->a->control->state, memory_order_acquire);
}

/* The guest must not run on: nothing was answered within the lease, or the policy says so. */
int held_hold(struct capture *c, enum mc_reason why, const char *text)
{
	struct mc_control *ctl = c->a->control;
	enum mc_state s = mc_state_of(state_word(c));
	uint64_t began;
	int r = pause_begin(c, false, &began);

	if (r < 0)
		return r;
	/* 2: paused by policy, which a guard must not undo. */
	atomic_store(&ctl->paused, 2);
	mc_warn("the guest is paused: %s", text);
	mc_worker_event(c->w, "held", 0, "the guest is paused: %s", text);
	r = mc_state_move(ctl, MC_SIDE_PRIMARY, MC_ROLE_CAPTURE, s, MC_STATE_HELD, why);
	if (r < 0)
		return pause_end(c, began, NULL);
	c->phase = PHASE_HELD;
	c->attempt.at = mc_now_ns() + ATTEMPT_FIRST;
	c->attempt.wait = ATTEMPT_FIRST * 2;
	c->attempt.committed = atomic_load(&c->a->journal.shm->last_committed);
	mc_arena_ring_all(c->a);
	return 0;
}

/*
 * HELD for overload: what was too much may have gone.  Once an epoch of the guest as it stands is
 * committed, epochs go on, and the guest with them.  Tried ever more rarely.
 */
static int try_again(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	uint64_t now = mc_now_ns();
	int r;

	if (!c->attempt.wait) { /* a successor of who held it */
		c->attempt.wait = ATTEMPT_FIRST;
		c->attempt.committed = atomic_load(&c->a->journal.shm->last_committed);
	}
	if (atomic_load(&c->a->journal.shm->last_committed) > c->attempt.committed) {
		mc_worker_event(c->w, "relieved", atomic_load(&c->a->journal.shm->last_committed),
		                "an epoch was committed again: the guest goes on");
		return mc_state_move(ctl, MC_SIDE_PRIMARY, MC_ROLE_CAPTURE, MC_STATE_HELD,
		                     MC_STATE_PROTECTED, MC_REASON_RELIEVED) == 0;
	}
	if (now < c->attempt.at) {
		capture_arm_timer(c, c->attempt.at);
		return 0;
	}
	c->attempt.at = now + c->attempt.wait;
	c->attempt.wait = mc_min_u64(c->attempt.wait * 2, ATTEMPT_MAX);
	if (now < atomic_load(&ctl->lease_until) && !mc_journal_in_flight(&c->a->journal)) {
		r = epoch_take(c);
		if (c->qmp_dead)
			end_qemu_gone(c);
		else if (r < 0)
			mc_debug("still too much: %s", strerror(-r));
	}
	return 1;
}

/* Carries the arbiter's verdict out. */
static int decided(struct capture *c, bool won)
{
	struct mc_control *ctl = c->a->control;

	/* What is still held must not leave, if somebody else runs the guest. */
	if (!won)
		atomic_store(&ctl->peer_taken, 1);
	if (mc_state_move(ctl, MC_SIDE_PRIMARY, MC_ROLE_CAPTURE, MC_STATE_HELD,
	                  won ? MC_STATE_DEGRADED : MC_STATE_STOPPED, MC_REASON_ARBITER) < 0 &&
	    !won && mc_state_of(state_word(c)) != MC_STATE_STOPPED)
		atomic_store(&ctl->peer_taken, 0); /* the peer is back meanwhile */
	mc_arena_ring_all(c->a);
	return 1;
}

/* Asks the arbiter, if there is one, whether the guest may go on here without a backup. */
static int arbitrate(struct capture *c)
{
	struct mc_journal_shm *j = c->a->journal.shm;
	enum mc_verdict v;
	int r;

	if (!mc_arbiter_configured(c->a->config))
		return 0;
	if (!c->arbiter) {
		if (mc_now_ns() < c->ask_at) {
			capture_arm_timer(c, c->ask_at);
			return 0;
		}
		c->ask_at = mc_now_ns() + MC_NS_PER_S;
		r = mc_arbiter_ask(&c->arbiter, c->w->event, c->w->arbiter_fd,
		                   atomic_load(&c->a->config->arbiter_timeout_ms),
		                   MC_REASON_PEER_LOST, c->a->config->term.number,
		                   atomic_load(&j->last_committed));
		if (r < 0)
			mc_log_errno(r, "the arbiter can't be asked");
		return r < 0;
	}
	v = mc_arbiter_verdict(c->arbiter);
	if (v == MC_VERDICT_PENDING)
		return 0;
	mc_worker_event(c->w, "arbiter", atomic_load(&j->last_committed), "the arbiter %s: %s",
	                mc_arbiter_text(c->arbiter),
	                v == MC_VERDICT_WON    ? "this end may run the guest"
	                : v == MC_VERDICT_LOST ? "the other end may run the guest"
	                                       : "it is asked again");
	c->arbiter = mc_arbiter_free(c->arbiter);
	return v == MC_VERDICT_FAILED ? 1 : decided(c, v == MC_VERDICT_WON);
}

/* Told to go on by a planned switchover, it hasn't been heard of since. */
static bool backup_is_lost(struct capture *c, uint64_t word)
{
	const struct mc_control *ctl = c->a->control;
	uint64_t end = atomic_load(&ctl->lease_until);

	if (mc_state_reason(word) != MC_REASON_FAILOVER)
		return false;
	if (mc_now_ns() < end)
		capture_arm_timer(c, end);
	return mc_now_ns() >= end && atomic_load(&ctl->link) != MC_LINK_UP;
}

static int held_on(struct capture *c, uint64_t word)
{
	if (mc_state_reason(word) == MC_REASON_OVERLOAD)
		return try_again(c);
	return mc_state_reason(word) == MC_REASON_PEER_LOST || backup_is_lost(c, word)
	               ? arbitrate(c)
	               : 0;
}

int held_step(struct capture *c)
{
	uint64_t word = state_word(c);
	enum mc_state s = mc_state_of(word);
	int r;

	if (s == MC_STATE_HELD)
		return held_on(c, word);
	c->arbiter = mc_arbiter_free(c->arbiter);
	c->ask_at = 0;
	if (s == MC_STATE_STOPPED)
		return 0;
	/* After a switchover that was called off. */
	if (s == MC_STATE_PROTECTED && !end_wanted(c))
		atomic_store(&c->a->control->capture_ready, 0);
	c->switchover.epoch = 0;
	c->attempt.wait = 0;
	/* What failed before counts no more: the policy begins anew. */
	c->aborts_in_row = c->aborts_told = 0;
	r = pause_end(c, mc_now_ns(), NULL);
	if (r < 0 && c->qmp_dead)
		end_qemu_gone(c);
	c->due = c->throttle.since = mc_now_ns();
	c->phase = s == MC_STATE_PROTECTED ? PHASE_EPOCHS : PHASE_DONE;
	return 1;
}

void held_stop_for_good(struct capture *c)
{
	uint64_t began;

	if (pause_begin(c, false, &began) == 0)
		atomic_store(&c->a->control->paused, 2);
	c->phase = PHASE_HELD;
}
