/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Planned switchover: a last epoch after which the guest stays stopped.  Once it is committed and
 * all that the guest ever sent has left, transport tells the backup to go on (HELD, failover); from
 * then on only the backup's answer, or an operator, moves the guest.  Until then it can be called
 * off, and the guest runs on as if nothing had been.
 */
#include <errno.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

/* The longest that the guest stands still before it is called off. */
#define LIMIT_NS (2 * MC_NS_PER_S)

/* Not again before the wish is withdrawn. */
static int give_up(struct capture *c, const char *why)
{
	struct mc_control *ctl = c->a->control;
	int r = 0;

	atomic_store(&ctl->capture_ready, 0);
	if (atomic_load(&ctl->paused))
		r = pause_end(c, c->switchover.began, NULL);
	if (r < 0 && c->qmp_dead) {
		end_qemu_gone(c);
		return 0;
	}
	if (why) {
		mc_warn("the switchover is called off: %s; protection goes on, try again", why);
		mc_worker_event(c->w, "switchover", c->switchover.epoch, "called off: %s", why);
		c->switchover.refused = true;
	}
	c->switchover.epoch = 0;
	c->due = mc_now_ns();
	c->phase = PHASE_EPOCHS;
	return 1;
}

static int take_last(struct capture *c)
{
	struct mc_journal *j = &c->a->journal;
	int r;

	if (mc_journal_in_flight(j) >= atomic_load(&c->a->config->max_in_flight))
		return 0; /* the next ACK rings */
	c->switchover.began = mc_now_ns();
	c->keep_paused = true;
	r = epoch_take(c);
	c->keep_paused = false;
	if (c->qmp_dead) {
		end_qemu_gone(c);
		return 0;
	}
	if (r < 0)
		return give_up(c, r == -EAGAIN ? "the guest isn't running, or memory is short"
		                               : "the last epoch can't be taken");
	c->switchover.epoch = atomic_load(&j->shm->last_begun);
	mc_info("switchover: epoch %llu is the last one here",
	        (unsigned long long)c->switchover.epoch);
	return 1;
}

/* The last epoch is on its way; the guest stands still. */
static int await_last(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	uint64_t now = mc_now_ns(), end = c->switchover.began + LIMIT_NS;

	switch (mc_journal_state(&c->a->journal, c->switchover.epoch)) {
	case MC_EPOCH_RELEASED:
		/* 2: a guard must not let it go any more. */
		atomic_store(&ctl->paused, 2);
		atomic_store_explicit(&ctl->capture_ready, 1, memory_order_release);
		mc_arena_ring(c->a, MC_ROLE_TRANSPORT);
		return 1;
	case MC_EPOCH_ABORTED:
	case MC_EPOCH_FREE:
		return give_up(c, "the backup refused the last epoch (its log says why)");
	default:
		break;
	}
	if (now >= end || now >= atomic_load(&ctl->lease_until))
		return give_up(
		        c, "the backup didn't confirm the last epoch in time (look at the link)");
	capture_arm_timer(c, mc_min_u64(end, atomic_load(&ctl->lease_until)));
	return 0;
}

bool switchover_wanted(struct capture *c)
{
	const struct mc_control *ctl = c->a->control;

	if (atomic_load_explicit(&ctl->want_end, memory_order_acquire) != MC_REASON_FAILOVER) {
		c->switchover.refused = false;
		return false;
	}
	return !c->switchover.refused;
}

int switchover_step(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	enum mc_state s = mc_state_of(atomic_load_explicit(&ctl->state, memory_order_acquire));

	/* Handed over, or the peer took over by itself: the guest stays as it is. */
	if (s == MC_STATE_HELD || s == MC_STATE_STOPPED) {
		c->phase = PHASE_HELD;
		return 1;
	}
	if (s != MC_STATE_PROTECTED)
		return give_up(c, "the protection ended");
	if (!switchover_wanted(c))
		return give_up(c, NULL);
	/* Set by a predecessor, too: its guest stands still already. */
	if (atomic_load(&ctl->capture_ready))
		return 0;
	return c->switchover.epoch ? await_last(c) : take_last(c);
}
