/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The first copy: slabs of epoch 0, applied in place to a standby that isn't armed.  Whatever
 * goes wrong, it begins again with an empty RAM once the link is down: transport lets no
 * primary in before, so nothing of an old copy can follow.
 */
#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "restore.h"

/* Says so once; the primary gives up and closes the link. */
static void damaged(struct restore *r, int error)
{
	mc_err("a slab of the first copy is damaged: %s; the copy starts again", strerror(-error));
	commit_nack(r, UINT64_MAX);
}

int sync_slab(struct restore *r, mc_handle h, const struct mc_slab_meta *m)
{
	struct mc_control *c = r->a->control;
	uint64_t applied = atomic_load(&c->sync_applied);
	struct mc_enc_view v;
	int e;

	/* A repeat, or the rest of a copy that is given up. */
	if (restore_committed(r) || atomic_load(&c->nack_epoch) == UINT64_MAX ||
	    m->seq + 1 == (uint32_t)applied) {
		commit_drop_first(r, h);
		return 1;
	}
	e = slab_open(r, decoders_main(r->decoders), h, &v);
	if (e == 0 && (v.h.of_kind != MC_KIND_PAGES || v.h.base || v.h.seq != (uint32_t)applied))
		e = -EBADMSG;
	if (e == 0)
		e = decode_pages(decoders_main(r->decoders), &v, r->ram, slab_put_page, r);
	if (e < 0) {
		damaged(r, e);
	} else {
		(void)mc_fault(MC_FAULT_RESTORE_SYNC_APPLIED);
		atomic_store_explicit(&c->sync_applied, applied + 1, memory_order_release);
		(void)mc_fault(MC_FAULT_RESTORE_SYNC_COUNTED);
		mc_metric_add(mc_worker_metrics(r->w), MC_M_DECODED_PAGES, v.h.pages);
	}
	commit_drop_first(r, h);
	return 1;
}

/* The commit word must carry the primary's term before its first epoch can be committed. */
static int begin(struct restore *r)
{
	struct mc_control *c = r->a->control;
	uint64_t term = atomic_load(&c->peer_term_number);

	if (mc_commit_term(atomic_load(&c->commit)) == term)
		return 0;
	return mc_commit_reset(c, term) < 0 ? -EPROTO : 1;
}

static int begin_again(struct restore *r)
{
	struct mc_control *c = r->a->control;
	int e;

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

int sync_step(struct restore *r)
{
	struct mc_control *c = r->a->control;
	int e = begin(r);

	if (e || atomic_load_explicit(&c->link, memory_order_acquire) == MC_LINK_UP ||
	    restore_committed(r))
		return e;
	return begin_again(r);
}
