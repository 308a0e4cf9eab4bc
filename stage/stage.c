/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "stage.h"

#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"

/*
 * An epoch that can't be sent.  While capture still pushes its slabs only capture may abort it:
 * its move to CAPTURED rings.  0 wait for that, -1 done.
 */
static int give_up_on(struct stage *s, uint64_t epoch, int error)
{
	if (mc_journal_state(&s->a->journal, epoch) == MC_EPOCH_CAPTURING)
		return 0;
	(void)mc_journal_abort_from(&s->a->journal, epoch, error);
	mc_arena_ring_all(s->a);
	return -1;
}

/* An epoch may be encoded once the one that its deltas build on is; 1 yes, 0 wait, -1 never. */
static int may_encode(struct stage *s, uint64_t epoch, uint64_t *base)
{
	struct mc_journal *j = &s->a->journal;
	enum mc_epoch_state st = mc_journal_state(j, epoch), b;
	const struct mc_journal_record *r;

	*base = 0;
	if (!epoch)
		return 1; /* first copy */
	if (st != MC_EPOCH_CAPTURING && st != MC_EPOCH_CAPTURED)
		return -1;
	r = mc_journal_get(j, epoch);
	if (!r)
		return -1;
	*base = atomic_load(&r->base);
	if (!*base)
		return 1;
	b = mc_journal_state(j, *base);
	if (b == MC_EPOCH_ABORTED)
		return give_up_on(s, epoch, -ECANCELED);
	return b != MC_EPOCH_CAPTURING && b != MC_EPOCH_CAPTURED;
}

/* Lets go of the ring's first entry and of the slab behind it. */
static void finish_raw(struct stage *s, mc_handle raw)
{
	struct mc_slab_meta *m = mc_pool_meta(&s->a->slabs, raw);

	mc_ring_advance(&s->in, 1);
	(void)mc_fault(MC_FAULT_STAGE_ADVANCED);
	if (!m)
		return;
	if (m->desc && mc_pool_claim(&s->a->descs, m->desc, MC_ROLE_CAPTURE) == 0)
		(void)mc_pool_free(&s->a->descs, m->desc);
	(void)mc_pool_free(&s->a->slabs, raw);
	mc_arena_ring(s->a, MC_ROLE_CAPTURE);
}

/* The last worker that marks an epoch's slab makes it STAGED. */
static bool stage_if_complete(struct stage *s, uint64_t epoch)
{
	struct mc_journal_record *r = mc_journal_get(&s->a->journal, epoch);

	if (!r || mc_journal_state(&s->a->journal, epoch) != MC_EPOCH_CAPTURED ||
	    !mc_journal_complete(r))
		return false;
	if (mc_journal_move(&s->a->journal, epoch, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED) < 0)
		return false;
	for (unsigned i = 0; i < MC_STAGES_MAX; i++)
		mc_arena_ring(s->a, mc_role_stage(i));
	mc_arena_ring(s->a, MC_ROLE_TRANSPORT);
	return true;
}

static void count(struct stage *s, const struct encode_stats *st, const struct mc_slab_meta *in,
                  uint64_t out, uint64_t ns)
{
	struct mc_metrics_block *m = mc_worker_metrics(s->w);

	mc_metric_add(m, MC_M_ENCODED_PAGES, st->zero + st->full + st->delta);
	mc_metric_add(m, MC_M_ZERO_PAGES, st->zero);
	mc_metric_add(m, MC_M_FULL_PAGES, st->full);
	mc_metric_add(m, MC_M_DELTA_PAGES, st->delta);
	mc_metric_add(m, MC_M_BYTES_IN, in->used);
	mc_metric_add(m, MC_M_BYTES_OUT, out);
	mc_metric_add(m, MC_M_ENCODE_TIME, ns);
}

/* ns that encoding may take at most, generously: zstd's highest levels make 2 MB/s. */
static uint64_t encode_limit(uint64_t bytes, int level)
{
	return (bytes >> 20) * (level > 9 ? 2000 : 100) * MC_NS_PER_MS;
}

/* Encodes @raw into @out. Length or negative errno. */
static int64_t encode(struct stage *s, mc_handle raw, const struct mc_slab_meta *meta,
                      uint64_t base, void *out)
{
	struct encode_stats st = {0};
	struct encode_job job = {
	        .meta = meta,
	        .raw = mc_pool_data(&s->a->slabs, raw),
	        .nblocks = (uint32_t)atomic_load(&s->a->control->blocks),
	        .shadow = meta->epoch && s->a->shadow.shm ? &s->a->shadow : NULL,
	        .base = base,
	        .level = atomic_load(&s->a->config->zstd_level),
	};
	uint64_t t = mc_now_ns();
	int64_t n;

	mc_worker_busy(s->w, encode_limit(meta->used, job.level));
	if (meta->kind == MC_KIND_PAGES) {
		job.desc = mc_pool_data_any(&s->a->descs, meta->desc);
		if (!job.desc)
			return -EBADMSG;
	}
	if (!job.raw)
		return -EBADMSG;
	n = encode_slab(s->encoder, &job, out, &st);
	if (n > 0)
		count(s, &st, meta, (uint64_t)n, mc_now_ns() - t);
	return n;
}

static int pass_on(struct stage *s, mc_handle raw, const struct mc_slab_meta *meta, mc_handle out,
                   int64_t len)
{
	struct mc_slab_meta *om = mc_pool_meta(&s->a->slabs, out);
	struct mc_journal_record *r;
	int e;

	if (!om)
		return -ESTALE;
	*om = (struct mc_slab_meta){.epoch = meta->epoch,
	                            .seq = meta->seq,
	                            .kind = MC_KIND_ENCODED,
	                            .used = (uint64_t)len,
	                            .pages = meta->pages,
	                            .of_kind = meta->kind,
	                            .raw = meta->used,
	                            .stamp = mc_now_ns()};
	e = mc_ring_push(&s->out, out);
	if (e < 0)
		return e;
	e = mc_fault(MC_FAULT_STAGE_PUSHED);
	if (e < 0)
		return e;
	if (meta->epoch) {
		r = mc_journal_get(&s->a->journal, meta->epoch);
		if (r) {
			bool complete = mc_journal_mark(r, meta->seq);

			(void)mc_fault(MC_FAULT_STAGE_MARKED);
			if (complete)
				(void)stage_if_complete(s, meta->epoch);
		}
	}
	finish_raw(s, raw);
	mc_arena_ring(s->a, MC_ROLE_TRANSPORT);
	return 1;
}

/* A raw slab that makes no sense: without it neither epoch nor first copy can be had. */
static int reject(struct stage *s, mc_handle raw, uint64_t epoch, int error)
{
	if (epoch && give_up_on(s, epoch, error) == 0)
		return 0;
	mc_err("epoch %llu: a slab can't be encoded: %s; %s", (unsigned long long)epoch,
	       strerror(-error),
	       epoch ? "the epoch is aborted and taken again" : "protect the guest again");
	if (!epoch) {
		mc_control_refuse(
		        s->a->control,
		        "a slab of the first copy can't be encoded: %s; protect the guest again",
		        strerror(-error));
		(void)mc_state_move(s->a->control, MC_SIDE_PRIMARY, s->w->role, MC_STATE_SYNCING,
		                    MC_STATE_STOPPED, MC_REASON_ERROR);
	}
	finish_raw(s, raw);
	mc_arena_ring_all(s->a);
	return 1;
}

static int one_slab(struct stage *s)
{
	struct mc_slab_meta meta;
	mc_handle raw, out;
	uint64_t base;
	int64_t len;
	int r = mc_ring_peek(&s->in, 0, &raw);

	mc_metric_set(mc_worker_metrics(s->w), MC_M_QUEUE_DEPTH, mc_ring_depth(s->in.ring));
	if (r <= 0)
		return r;
	if (mc_pool_claim(&s->a->slabs, raw, MC_ROLE_CAPTURE) < 0) {
		mc_ring_advance(&s->in, 1); /* its epoch is long over */
		return 1;
	}
	(void)mc_fault(MC_FAULT_STAGE_CLAIMED);
	meta = *mc_pool_meta(&s->a->slabs, raw);
	r = may_encode(s, meta.epoch, &base);
	if (r < 0) {
		finish_raw(s, raw);
		return 1;
	}
	if (r == 0)
		return 0;
	if (meta.epoch && meta.seq >= MC_EPOCH_SLABS_MAX)
		return reject(s, raw, meta.epoch, -EBADMSG);
	if (mc_pool_alloc(&s->a->slabs, meta.epoch, false, &out) < 0)
		return 0; /* transport frees and rings */
	len = encode(s, raw, &meta, base, mc_pool_data(&s->a->slabs, out));
	if (mc_fault(MC_FAULT_STAGE_ENCODED) < 0)
		len = -EIO;
	if (len > 0)
		return pass_on(s, raw, &meta, out, len);
	(void)mc_pool_free(&s->a->slabs, out);
	return reject(s, raw, meta.epoch, (int)len);
}

static int stage_work(struct mc_worker *w, void *ctx)
{
	struct stage *s = ctx;
	const struct mc_journal *j = &s->a->journal;
	uint64_t n = atomic_load(&j->shm->last_committed);
	int r = one_slab(s);

	(void)w;
	if (r)
		return r;
	/* Capture may have told the number of slabs only after the last one was encoded. */
	while ((n = mc_journal_next(j, n)))
		if (stage_if_complete(s, n))
			return 1;
	return 0;
}

/* A slab that the predecessor held in neither ring; a raw one takes its descriptors along. */
static bool not_pushed(void *ctx, mc_handle h)
{
	struct stage *s = ctx;
	struct mc_slab_meta *m;

	if (mc_ring_contains(s->out.ring, s->a->ring_slots, h) ||
	    mc_ring_contains(s->in.ring, s->a->ring_slots, h))
		return false;
	m = mc_pool_meta(&s->a->slabs, h);
	if (m && m->kind == MC_KIND_PAGES && m->desc &&
	    mc_pool_claim(&s->a->descs, m->desc, MC_ROLE_CAPTURE) == 0)
		(void)mc_pool_free(&s->a->descs, m->desc);
	return true;
}

static bool always(void *ctx, mc_handle h)
{
	(void)ctx;
	(void)h;
	return true;
}

static int stage_start(struct mc_worker *w, void *ctx)
{
	struct stage *s = ctx;
	unsigned i = mc_role_index(w->role);
	int r;

	s->w = w;
	s->a = &w->arena;
	if (!s->a->ring_stage[i])
		return mc_log_errno(-EINVAL, "the arena is not a primary's");
	r = mc_ring_attach_consumer(&s->in, s->a->ring_stage[i], s->a->ring_slots);
	if (r == 0)
		r = mc_ring_attach_producer(&s->out, s->a->ring_transport[i], s->a->ring_slots);
	if (r < 0)
		return mc_log_errno(r, "rings are damaged; protect the guest anew");
	(void)mc_pool_reclaim(&s->a->slabs, not_pushed, s);
	(void)mc_pool_reclaim(&s->a->descs, always, s);
	mc_shadow_unlock(&s->a->shadow);
	r = encoder_new(&s->encoder, s->a->slabs.unit);
	return r < 0 ? mc_log_errno(r, "can't make an encoder") : 0;
}

const struct mc_worker_ops stage_ops = {
        .role = MC_ROLE_STAGE0,
        .process = "mc-stage",
        .start = stage_start,
        .work = stage_work,
};
