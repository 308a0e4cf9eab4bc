/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What mc-restore does when, and its place in the event loop. */
#include "restore.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "../ipc/log.h"
#include "../ipc/util.h"

static enum mc_state state_of(const struct restore *r)
{
	return mc_state_of(atomic_load_explicit(&r->a->control->state, memory_order_acquire));
}

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	(void)userdata;
	return 0; /* work() runs before the next wait */
}

static void end_with(struct restore *r, enum mc_state to, enum mc_reason why)
{
	static const enum mc_state from[] = {MC_STATE_WAITING, MC_STATE_SYNCING, MC_STATE_PROTECTED,
	                                     MC_STATE_ACTIVE};

	for (size_t i = 0; i < MC_ARRAY_SIZE(from); i++)
		if (mc_state_move(r->a->control, MC_SIDE_BACKUP, MC_ROLE_RESTORE, from[i], to,
		                  why) == 0)
			break;
	mc_arena_ring_all(r->a);
}

/* The standby's QEMU is gone: nobody can take over any more. */
static void standby_lost(struct restore *r)
{
	bool active = state_of(r) == MC_STATE_ACTIVE;

	r->standby_gone = true;
	(void)mc_commit_disarm(r->a->control);
	if (!active) {
		mc_err("the standby's QEMU ended");
		mc_control_refuse(r->a->control, "the standby's QEMU ended");
	}
	atomic_store(&r->a->control->standby_ready, 0);
	end_with(r, active ? MC_STATE_ENDED : MC_STATE_STOPPED, MC_REASON_STANDBY_LOST);
	mc_worker_event(r->w, "standby-lost", 0, "the standby's QEMU ended");
}

static int on_qmp(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct restore *r = userdata;

	(void)fd;
	(void)revents;
	if (qmp_dispatch(r->q) < 0) {
		(void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
		standby_lost(r);
	}
	return 0;
}

/* The primary said END: it won't be taken over from any more, and may open its gate. */
static int end_step(struct restore *r)
{
	struct mc_control *c = r->a->control;
	uint64_t why = atomic_load_explicit(&c->peer_end, memory_order_acquire);

	if (!why || why == MC_REASON_GUEST_DIED || why == MC_REASON_HOST_SIGNAL ||
	    atomic_load(&c->disarm_done))
		return 0;
	if (mc_commit_disarm(c) < 0)
		return 0; /* taken over already */
	end_with(r, MC_STATE_ENDED, why < MC_REASONS ? (enum mc_reason)why : MC_REASON_UNPROTECT);
	commit_drop_all(r);
	atomic_store_explicit(&c->disarm_done, 1, memory_order_release);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	return 1;
}

/* A first copy that broke off, or lost its guest: everything from the beginning. */
static int sync_broken(struct restore *r)
{
	struct mc_control *c = r->a->control;
	uint64_t end = atomic_load(&c->peer_end);
	int e;

	if (atomic_load(&c->link) == MC_LINK_UP && end != MC_REASON_GUEST_DIED &&
	    end != MC_REASON_HOST_SIGNAL && atomic_load(&c->nack_epoch) != UINT64_MAX)
		return 0;
	if (mc_commit_epoch(atomic_load(&c->commit)))
		return 0;
	mc_warn("the first copy broke off; waits for a primary again");
	commit_drop_all(r);
	(void)mc_journal_abort_from(&r->a->journal, 1, -ECANCELED);
	e = standby_empty(r);
	if (e < 0)
		return e;
	atomic_store(&c->sync_applied, 0);
	atomic_store(&c->applied, 0);
	atomic_store(&c->nack_epoch, 0);
	(void)mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_SYNCING, MC_STATE_WAITING,
	                    MC_REASON_LINK_CLOSED);
	mc_arena_ring_all(r->a);
	return 1;
}

static int sync_begin(struct restore *r)
{
	struct mc_control *c = r->a->control;
	uint64_t term = atomic_load(&c->peer_term_number);

	if (mc_commit_term(atomic_load(&c->commit)) == term)
		return 0;
	return mc_commit_reset(c, term) < 0 ? -EPROTO : 1;
}

static void arm_timer(struct restore *r)
{
	uint64_t at = takeover_deadline(r);

	if (at == UINT64_MAX) {
		(void)sd_event_source_set_enabled(r->timer, SD_EVENT_OFF);
		return;
	}
	(void)sd_event_source_set_time(r->timer, at / MC_NS_PER_US + 1);
	(void)sd_event_source_set_enabled(r->timer, SD_EVENT_ONESHOT);
}

static int restore_work(struct mc_worker *w, void *ctx)
{
	struct restore *r = ctx;
	enum mc_state s = state_of(r);
	int e = 0;

	(void)w;
	if (r->standby_gone)
		return 0;
	if (s == MC_STATE_SYNCING) {
		e = sync_begin(r);
		if (e == 0)
			e = sync_broken(r);
	}
	if (e == 0 && (s == MC_STATE_SYNCING || s == MC_STATE_PROTECTED))
		e = commit_step(r);
	if (e == 0)
		e = end_step(r);
	if (e == 0)
		e = takeover_step(r);
	if (e == 0)
		arm_timer(r);
	return e;
}

static int attach(struct restore *r)
{
	int e = standby_attach(r);

	if (e == 0)
		e = decoder_new(&r->decoder, r->a->slabs.unit);
	if (e == 0)
		e = sd_event_add_io(r->w->event, &r->qmp_source, qmp_fd(r->q), EPOLLIN, on_qmp, r);
	if (e < 0) {
		/* The standby can't be used: the state says so, the process waits to be told to
		 * quit. */
		standby_lost(r);
		return 0;
	}
	return commit_recover(r);
}

static int restore_start(struct mc_worker *w, void *ctx)
{
	struct restore *r = ctx;
	int e;

	r->w = w;
	r->a = &w->arena;
	for (int i = 0; i < VM_BLOCKS_MAX; i++)
		r->ram_fd[i] = -1;
	if (!r->a->ring_restore)
		return mc_log_errno(-EINVAL, "the arena is not a backup's");
	e = mc_ring_attach_consumer(&r->in, r->a->ring_restore, r->a->ring_slots);
	if (e < 0)
		return mc_log_errno(e, "ring from transport");
	e = sd_event_add_time(w->event, &r->timer, CLOCK_MONOTONIC, UINT64_MAX, 1, on_timer, r);
	return e < 0 ? e : attach(r);
}

static void restore_quit(struct mc_worker *w, void *ctx)
{
	struct restore *r = ctx;

	(void)w;
	r->qmp_source = sd_event_source_unref(r->qmp_source);
	standby_detach(r);
	r->decoder = decoder_free(r->decoder);
	r->standby_gone = true;
}

const struct mc_worker_ops restore_ops = {
        .role = MC_ROLE_RESTORE,
        .process = "mc-restore",
        .start = restore_start,
        .work = restore_work,
        .quit = restore_quit,
};
