/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From slabs in the ring to a committed and applied epoch. */
#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "restore.h"

static void forget_assembly(struct restore *r)
{
	r->as.epoch = 0;
	r->as.n = 0;
	r->as.have_state = false;
}

static void drop_assembly(struct restore *r)
{
	for (uint32_t i = 0; i < r->as.n; i++)
		slab_free(r, r->as.slab[i]);
	forget_assembly(r);
}

void commit_drop_first(struct restore *r, mc_handle h)
{
	if (mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) == 0)
		(void)mc_pool_free(&r->a->slabs, h);
	mc_ring_advance(&r->in, 1);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
}

static void drop_some(struct restore *r, uint32_t n)
{
	mc_handle h;

	while (n-- && mc_ring_peek(&r->in, 0, &h) == 1)
		commit_drop_first(r, h);
}

void commit_drop_all(struct restore *r)
{
	drop_assembly(r);
	drop_some(r, UINT32_MAX);
}

void commit_nack(struct restore *r, uint64_t epoch)
{
	atomic_store(&r->a->control->nack_epoch, epoch);
	atomic_fetch_add_explicit(&r->a->control->nacks, 1, memory_order_release);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
}

/* True when the NACK that covers @epoch is out: it builds on one that was refused. */
static bool refused_with_base(const struct restore *r, uint64_t epoch)
{
	const struct mc_journal_record *rec = mc_journal_get(&r->a->journal, epoch);
	uint64_t nack = atomic_load(&r->a->control->nack_epoch);

	return rec && nack > restore_committed(r) && nack <= atomic_load(&rec->base);
}

/* The epoch can't be had: nothing of it is applied, the primary is told. */
static int refuse_epoch(struct restore *r, uint64_t epoch, int error, const char *what)
{
	bool told = refused_with_base(r, epoch);

	mc_err("epoch %llu is refused: %s: %s; the primary sends it again, in full",
	       (unsigned long long)epoch, what, strerror(-error));
	drop_assembly(r);
	/* Announced first: a successor makes it so (commit_recover()), and the primary hears of it.
	 */
	if (!told)
		commit_nack(r, epoch);
	(void)mc_journal_abort_from(&r->a->journal, epoch, error);
	mc_metric_add(mc_worker_metrics(r->w), MC_M_REFUSED_EPOCHS, 1);
	return 1;
}

struct visit {
	struct restore *r;
	uint64_t epoch;
	int error;
};

static bool apply_if_of(void *ctx, mc_handle h)
{
	struct visit *v = ctx;
	struct mc_slab_meta *m = mc_pool_meta(&v->r->a->slabs, h);

	if (m && m->kind != MC_KIND_ENCODED && m->epoch == v->epoch && v->error == 0) {
		v->error = slab_apply(v->r, h);
		(void)mc_fault(MC_FAULT_RESTORE_APPLIED_SLAB);
	}
	return false;
}

/* After an epoch is applied only its device state stays, and what is in the ring. */
static bool free_if_done(void *ctx, mc_handle h)
{
	struct visit *v = ctx;
	struct mc_slab_meta *m = mc_pool_meta(&v->r->a->slabs, h);

	if (!m || m->kind == MC_KIND_ENCODED)
		return m && !mc_ring_contains(v->r->in.ring, v->r->a->ring_slots, h);
	if (m->kind == MC_KIND_STATE && m->epoch == v->epoch)
		return false;
	if (m->kind == MC_KIND_PAGES && m->desc)
		(void)mc_pool_free(&v->r->a->descs, m->desc);
	return true;
}

int commit_apply(struct restore *r, uint64_t epoch)
{
	struct mc_control *ctl = r->a->control;
	struct visit v = {.r = r, .epoch = epoch};
	uint64_t t = mc_now_ns();

	(void)mc_pool_reclaim(&r->a->slabs, apply_if_of, &v);
	if (v.error < 0) {
		mc_log_errno(
		        v.error,
		        "epoch %llu, which is committed, can't be applied; start a new standby",
		        (unsigned long long)epoch);
		end_standby(r, MC_REASON_ERROR,
		            "a committed epoch was damaged in memory; the standby is of no use any "
		            "more, start a new one");
		return v.error;
	}
	(void)mc_fault(MC_FAULT_RESTORE_APPLIED);
	atomic_store_explicit(&ctl->applied, epoch, memory_order_release);
	(void)mc_journal_move(&r->a->journal, epoch, MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED);
	(void)mc_pool_reclaim(&r->a->slabs, free_if_done, &v);
	mc_metric_add(mc_worker_metrics(r->w), MC_M_APPLY_TIME, mc_now_ns() - t);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	return 0;
}

void commit_first(struct restore *r)
{
	(void)mc_state_move(r->a->control, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_SYNCING,
	                    MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT);
	mc_arena_ring(r->a, MC_ROLE_SUPERVISOR);
}

static void pool_policy(struct restore *r)
{
	uint64_t strikes = atomic_load(&r->a->control->peer_strikes);

	if (strikes) {
		atomic_store(&r->a->slabs.shm->strikes_max, strikes);
		atomic_store(&r->a->descs.shm->strikes_max, strikes);
	}
	(void)mc_pool_epoch_done(&r->a->slabs);
	(void)mc_pool_epoch_done(&r->a->descs);
}

/* A predecessor may have died with the epoch at STAGED: that is as good. */
static int move_staged(struct restore *r, uint64_t epoch)
{
	struct mc_journal *j = &r->a->journal;
	int e = mc_journal_move(j, epoch, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED);

	return mc_journal_state(j, epoch) == MC_EPOCH_STAGED ? 0 : e;
}

/* All slabs are decoded and verified: the epoch becomes what the standby would run. */
static int commit(struct restore *r, uint64_t epoch)
{
	struct mc_control *ctl = r->a->control;
	bool first = !restore_committed(r);
	int e = move_staged(r, epoch);

	if (e == 0)
		e = mc_fault(MC_FAULT_RESTORE_COMMIT);
	if (e == 0)
		e = mc_commit_advance(ctl, atomic_load(&ctl->peer_term_number), epoch);
	if (e < 0)
		return refuse_epoch(r, epoch, e, "it can't be committed");
	(void)mc_fault(MC_FAULT_RESTORE_COMMIT_SET);
	(void)mc_journal_move(&r->a->journal, epoch, MC_EPOCH_STAGED, MC_EPOCH_COMMITTED);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	if (first) {
		(void)mc_fault(MC_FAULT_RESTORE_FIRST);
		commit_first(r);
	}
	forget_assembly(r);
	if (commit_apply(r, epoch) < 0)
		return 1;
	mc_metric_add(mc_worker_metrics(r->w), MC_M_COMMITS, 1);
	pool_policy(r);
	return 1;
}

/* True when deltas of this epoch fit what is applied, and the first copy is complete. */
static bool base_is_here(const struct restore *r, const struct mc_journal_record *rec)
{
	const struct mc_control *ctl = r->a->control;
	uint64_t base = atomic_load(&rec->base);

	if (!base && atomic_load(&ctl->sync_applied) != atomic_load(&ctl->sync_received))
		return false;
	return base == atomic_load(&ctl->applied) && restore_committed(r) == base;
}

/* True when the ring goes on with slabs of the same epoch: it was sent once more. */
static bool comes_again(struct restore *r, uint64_t epoch)
{
	struct mc_slab_meta *m;
	mc_handle h;

	if (mc_ring_peek(&r->in, 0, &h) != 1 ||
	    mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) < 0)
		return false;
	m = mc_pool_meta(&r->a->slabs, h);
	return m && m->epoch == epoch;
}

/* Takes one decoded slab into the assembly. 0 or negative errno: the epoch was refused. */
static int take_decoded(struct restore *r, uint64_t epoch, const struct decode_job *job)
{
	struct assembly *as = &r->as;
	int e = job->error;

	if (e == 0 && mc_fault(MC_FAULT_RESTORE_DECODED) < 0) {
		slab_free(r, job->out);
		e = -EIO;
	}
	if (e < 0) {
		(void)refuse_epoch(r, epoch, e, "a slab can't be decoded");
		return e;
	}
	as->slab[as->n++] = job->out;
	if (job->is_state && as->have_state) {
		(void)refuse_epoch(r, epoch, -EBADMSG, "it has two device states");
		return -EBADMSG;
	}
	as->have_state |= job->is_state;
	return 0;
}

/*
 * Decodes what follows in the ring, as many slabs at once as there are decoders, and lets go of
 * what they were decoded from: an epoch that waits for its COMMIT is here once, not twice.
 */
static int decode_some(struct restore *r, uint64_t epoch, uint32_t slabs)
{
	struct decode_job job[MC_DECODERS_MAX];
	uint32_t first = r->as.n;
	unsigned n = 0, i;
	mc_handle h;

	while (n < decoders_count(r->decoders) && first + n < slabs &&
	       mc_ring_peek(&r->in, n, &h) == 1) {
		struct mc_slab_meta *m = mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) < 0
		                                 ? NULL
		                                 : mc_pool_meta(&r->a->slabs, h);

		if (!m || m->epoch != epoch || m->seq != first + n)
			break; /* looked at when its turn comes */
		job[n++] = (struct decode_job){.in = h};
	}
	if (!n)
		return refuse_epoch(r, epoch, -EBADMSG, "its slabs change");
	decoders_run(r->decoders, job, n);
	for (i = 0; i < n && take_decoded(r, epoch, &job[i]) == 0;)
		i++;
	if (i == n) {
		drop_some(r, n);
		(void)mc_fault(MC_FAULT_RESTORE_DROPPED);
		return 1;
	}
	/* Refused: what was decoded beyond that is of no use. */
	while (++i < n)
		if (job[i].error == 0)
			slab_free(r, job[i].out);
	return 1;
}

/*
 * Decodes the next slab.  The primary sends an epoch again after its link broke: what there is
 * of the first try is dropped when slab 0 comes once more, and what doesn't follow before that.
 */
static int next_slab(struct restore *r, uint64_t epoch, enum mc_epoch_state st, uint32_t slabs,
                     mc_handle h)
{
	struct assembly *as = &r->as;
	struct mc_slab_meta *m;

	if (mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) < 0 ||
	    !(m = mc_pool_meta(&r->a->slabs, h)) || m->epoch != epoch)
		return refuse_epoch(r, epoch, -EBADMSG, "its slabs are out of order");
	if (m->seq == 0 && as->n) {
		drop_assembly(r);
		return 1;
	}
	if (m->seq && (!as->n || (m->seq > as->n && st == MC_EPOCH_CAPTURING))) {
		commit_drop_first(r, h);
		return 1;
	}
	if (m->seq != as->n || m->seq >= slabs)
		return refuse_epoch(r, epoch, -EBADMSG, "its slabs are out of order");
	return decode_some(r, epoch, slabs);
}

static int assemble(struct restore *r, uint64_t epoch, enum mc_epoch_state st)
{
	struct mc_journal_record *rec = mc_journal_get(&r->a->journal, epoch);
	uint32_t slabs = rec ? atomic_load_explicit(&rec->slabs, memory_order_acquire) : 0;
	mc_handle h;
	int e;

	if (!slabs && st == MC_EPOCH_CAPTURING)
		return 0; /* it is just being begun */
	if (!slabs || slabs > MC_EPOCH_SLABS_MAX || !base_is_here(r, rec))
		return refuse_epoch(r, epoch, -EPROTO, "it doesn't build on what is here");
	if (r->as.epoch != epoch)
		drop_assembly(r);
	r->as.epoch = epoch;
	if (r->as.n < slabs || comes_again(r, epoch)) {
		e = mc_ring_peek(&r->in, 0, &h);
		if (e == 1)
			return next_slab(r, epoch, st, slabs, h);
		/* COMMIT is announced after the last slab. */
		if (e < 0 || st == MC_EPOCH_CAPTURING)
			return e;
		return refuse_epoch(r, epoch, -EBADMSG, "a slab is missing");
	}
	if (st == MC_EPOCH_CAPTURING)
		return 0; /* COMMIT hasn't come yet */
	if (!r->as.have_state)
		return refuse_epoch(r, epoch, -EBADMSG, "it has no device state");
	return commit(r, epoch);
}

/* An epoch that was announced as whole, but isn't in the ring: nobody else would notice. */
static int look_for_missing(struct restore *r)
{
	uint64_t n = restore_committed(r);
	mc_handle h;

	while ((n = mc_journal_next(&r->a->journal, n))) {
		enum mc_epoch_state st = mc_journal_state(&r->a->journal, n);

		if (st != MC_EPOCH_CAPTURED && st != MC_EPOCH_STAGED)
			continue;
		/* Announced after its slabs: another look at the ring tells. */
		return mc_ring_peek(&r->in, 0, &h) == 0
		               ? refuse_epoch(r, n, -EBADMSG, "its slabs are missing")
		               : 1;
	}
	return 0;
}

/* State of the epoch in the assembly; FREE: there is none, or it is void and was dropped. */
static enum mc_epoch_state assembled(struct restore *r)
{
	enum mc_epoch_state s =
	        r->as.epoch ? mc_journal_state(&r->a->journal, r->as.epoch) : MC_EPOCH_FREE;

	if (epoch_is_open(s))
		return s;
	drop_assembly(r);
	return MC_EPOCH_FREE;
}

int commit_step(struct restore *r)
{
	/* Before the ring: what is announced as whole has all of its slabs there. */
	enum mc_epoch_state st = assembled(r);
	struct mc_slab_meta *shared, m;
	mc_handle h;
	int e = mc_ring_peek(&r->in, 0, &h);

	if (e < 0)
		return e;
	if (e == 0)
		return st ? assemble(r, r->as.epoch, st) : look_for_missing(r);
	if (mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) < 0 ||
	    !(shared = mc_pool_meta(&r->a->slabs, h))) {
		mc_ring_advance(&r->in, 1); /* freed by one that died before it advanced */
		return 1;
	}
	m = *shared;
	if (m.kind == MC_KIND_ENCODED && !m.epoch)
		return sync_slab(r, h, &m);
	/* The next epoch follows only when the one before is whole: that is to be seen by now. */
	st = assembled(r);
	if (st && m.epoch > r->as.epoch)
		return assemble(r, r->as.epoch, st);
	st = mc_journal_state(&r->a->journal, m.epoch);
	if (m.kind == MC_KIND_ENCODED && m.epoch > restore_committed(r) && epoch_is_open(st))
		return assemble(r, m.epoch, st);
	commit_drop_first(r, h); /* its epoch is over, or void */
	return 1;
}

mc_handle commit_state_slab(const struct restore *r)
{
	const struct mc_pool *p = &r->a->slabs;

	for (uint64_t i = 0; i < p->max; i++) {
		uint64_t w = atomic_load_explicit(&p->word[i], memory_order_acquire);

		if (mc_slab_word_state(w) == MC_SLAB_OWNED &&
		    mc_slab_word_owner(w) == MC_ROLE_RESTORE && p->meta[i].kind == MC_KIND_STATE &&
		    p->meta[i].epoch == restore_committed(r))
			return i | (uint64_t)mc_slab_word_gen(w) << 32;
	}
	return MC_HANDLE_NONE;
}
