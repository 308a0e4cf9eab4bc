/* SPDX-License-Identifier: GPL-2.0-or-later */
/* HELD: the guest stands still, since nobody knows what its backup does. */
#include <errno.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

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
	mc_warn("%s: the guest is paused", text);
	mc_worker_event(c->w, "held", 0, "%s: the guest is paused", text);
	r = mc_state_move(ctl, MC_SIDE_PRIMARY, MC_ROLE_CAPTURE, s, MC_STATE_HELD, why);
	if (r < 0)
		return pause_end(c, began, NULL);
	c->phase = PHASE_HELD;
	mc_arena_ring_all(c->a);
	return 0;
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
		r = mc_arbiter_ask(&c->arbiter, c->w->event, c->a->config, MC_REASON_PEER_LOST,
		                   c->a->config->term.number, atomic_load(&j->last_committed));
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

int held_step(struct capture *c)
{
	uint64_t word = state_word(c);
	enum mc_state s = mc_state_of(word);
	int r;

	/* A hold for overload is the operator's to end. */
	if (s == MC_STATE_HELD)
		return mc_state_reason(word) == MC_REASON_PEER_LOST || backup_is_lost(c, word)
		               ? arbitrate(c)
		               : 0;
	c->arbiter = mc_arbiter_free(c->arbiter);
	c->ask_at = 0;
	if (s == MC_STATE_STOPPED)
		return 0;
	if (s == MC_STATE_PROTECTED) /* after a switchover that was called off */
		atomic_store(&c->a->control->capture_ready, 0);
	c->switchover.epoch = 0;
	r = pause_end(c, mc_now_ns(), NULL);
	if (r < 0 && c->qmp_dead)
		end_qemu_gone(c);
	c->due = mc_now_ns();
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
