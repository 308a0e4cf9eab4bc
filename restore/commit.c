/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From slabs in the ring to a committed and applied epoch. */
#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "restore.h"

static uint64_t committed(const struct restore *r)
{
	return mc_commit_epoch(atomic_load_explicit(&r->a->control->commit, memory_order_acquire));
}

/* Frees a slab of ours, with its descriptors. */
static void free_slab(struct restore *r, mc_handle h)
{
	struct mc_slab_meta *m = mc_pool_meta(&r->a->slabs, h);

	if (m && m->kind == MC_KIND_PAGES && m->desc)
		(void)mc_pool_free(&r->a->descs, m->desc);
	(void)mc_pool_free(&r->a->slabs, h);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
}

static void drop_assembly(struct restore *r)
{
	for (uint32_t i = 0; i < r->as.n; i++)
		free_slab(r, r->as.slab[i]);
	memset(r->as.seen, 0, sizeof(r->as.seen));
	r->as.epoch = 0;
	r->as.n = 0;
	r->as.have_state = false;
}

/* Takes the ring's first entry away and frees its slab. */
static void drop_first(struct restore *r, mc_handle h)
{
	if (mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) == 0)
		(void)mc_pool_free(&r->a->slabs, h);
	mc_ring_advance(&r->in, 1);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
}

void commit_drop_all(struct restore *r)
{
	mc_handle h;

	drop_assembly(r);
	while (mc_ring_peek(&r->in, 0, &h) == 1)
		drop_first(r, h);
}

/* The epoch can't be had: nothing of it is applied, the primary is told. */
static int refuse_epoch(struct restore *r, uint64_t epoch, int error, const char *what)
{
	mc_err("epoch %llu is refused: %s: %s", (unsigned long long)epoch, what, strerror(-error));
	drop_assembly(r);
	(void)mc_journal_abort_from(&r->a->journal, epoch, error);
	mc_metric_add(mc_worker_metrics(r->w), MC_M_REFUSED_EPOCHS, 1);
	atomic_store_explicit(&r->a->control->nack_epoch, epoch, memory_order_release);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	return 1;
}

static int parse(struct restore *r, mc_handle h, struct mc_enc_view *v, struct mc_slab_meta *meta)
{
	struct mc_enc_limits lim = {
	        .unit = r->a->slabs.unit, .nblocks = r->vm.nblocks, .block_size = r->block_size};
	int e;

	*meta = *mc_pool_meta(&r->a->slabs, h);
	if (meta->used > r->a->slabs.unit)
		return -EBADMSG;
	e = mc_enc_parse(mc_pool_data(&r->a->slabs, h), meta->used, &lim, v);
	if (e == 0 && (v->h.epoch != meta->epoch || v->h.seq != meta->seq))
		e = -EBADMSG;
	return e;
}

static int apply_page(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content)
{
	struct restore *r = ctx;

	if (content)
		memcpy(r->ram[block] + offset, content, MC_PAGE_SIZE);
	else
		memset(r->ram[block] + offset, 0, MC_PAGE_SIZE);
	return 0;
}

/* A round of the first copy: straight into the RAM of a standby that isn't armed. */
static int apply_sync(struct restore *r, mc_handle h)
{
	struct mc_control *ctl = r->a->control;
	struct mc_slab_meta meta;
	struct mc_enc_view v;
	int e = parse(r, h, &v, &meta);

	if (committed(r))
		e = -EPROTO;
	if (e == 0 && (v.h.of_kind != MC_KIND_PAGES || v.h.base))
		e = -EBADMSG;
	if (e == 0)
		e = decode_pages(r->decoder, &v, r->ram, apply_page, r);
	if (e < 0) {
		mc_err("a slab of the first copy is damaged: %s; the copy starts again",
		       strerror(-e));
		atomic_store(&ctl->nack_epoch, UINT64_MAX);
		mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	} else {
		atomic_fetch_add(&ctl->sync_applied, 1);
		mc_metric_add(mc_worker_metrics(r->w), MC_M_DECODED_PAGES, v.h.pages);
	}
	drop_first(r, h);
	return 1;
}

struct sink {
	struct restore *r;
	struct mc_slab_meta *meta;
	uint8_t *data;
	struct mc_page_desc *desc;
};

static int keep_page(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content)
{
	struct sink *s = ctx;

	s->desc[s->meta->pages] = (struct mc_page_desc){
	        .block = block, .offset = offset, .flags = content ? 0 : MC_PAGE_ZEROED};
	if (content) {
		memcpy(s->data + s->meta->used, content, MC_PAGE_SIZE);
		s->meta->used += MC_PAGE_SIZE;
	}
	s->meta->pages++;
	return 0;
}

/* A slab of our own for what @v decodes to. */
static int new_slab(struct restore *r, const struct mc_enc_view *v, mc_handle *ret, struct sink *s)
{
	mc_handle desc = MC_HANDLE_NONE;
	int e = mc_pool_alloc(&r->a->slabs, v->h.epoch, false, ret);

	if (e < 0)
		return e;
	if (v->h.of_kind == MC_KIND_PAGES) {
		e = mc_pool_alloc(&r->a->descs, v->h.epoch, false, &desc);
		if (e < 0) {
			(void)mc_pool_free(&r->a->slabs, *ret);
			return e;
		}
	}
	*s = (struct sink){.r = r,
	                   .meta = mc_pool_meta(&r->a->slabs, *ret),
	                   .data = mc_pool_data(&r->a->slabs, *ret),
	                   .desc = desc ? mc_pool_data(&r->a->descs, desc) : NULL};
	s->meta->epoch = v->h.epoch;
	s->meta->seq = v->h.seq;
	s->meta->kind = v->h.of_kind;
	s->meta->desc = desc;
	return 0;
}

static int decode_one(struct restore *r, mc_handle h)
{
	struct mc_metrics_block *m = mc_worker_metrics(r->w);
	uint64_t t = mc_now_ns();
	struct mc_slab_meta meta;
	struct mc_enc_view v;
	struct sink s;
	mc_handle out;
	int e = parse(r, h, &v, &meta);

	if (e < 0)
		return e;
	if (v.h.seq >= MC_EPOCH_SLABS_MAX || r->as.seen[v.h.seq / 64] >> v.h.seq % 64 & 1)
		return -EBADMSG;
	e = new_slab(r, &v, &out, &s);
	if (e < 0)
		return e;
	if (v.h.of_kind == MC_KIND_PAGES) {
		e = decode_pages(r->decoder, &v, r->ram, keep_page, &s);
	} else {
		e = r->as.have_state ? -EBADMSG : decode_state(r->decoder, &v, s.data);
		s.meta->used = v.h.raw_len;
		r->as.have_state = true;
	}
	if (e < 0) {
		free_slab(r, out);
		return e;
	}
	r->as.seen[v.h.seq / 64] |= 1ULL << v.h.seq % 64;
	r->as.slab[r->as.n++] = out;
	mc_metric_add(m, MC_M_DECODED_PAGES, v.h.pages);
	mc_metric_add(m, MC_M_DECODE_TIME, mc_now_ns() - t);
	return 0;
}

/* Copies a decoded slab into the standby's RAM. */
static void apply_slab(struct restore *r, mc_handle h)
{
	struct mc_slab_meta *m = mc_pool_meta(&r->a->slabs, h);
	const uint8_t *data = mc_pool_data(&r->a->slabs, h);
	const struct mc_page_desc *d;

	if (!m || m->kind != MC_KIND_PAGES)
		return;
	d = mc_pool_data(&r->a->descs, m->desc);
	for (uint32_t i = 0; d && i < m->pages; i++) {
		bool zero = d[i].flags & MC_PAGE_ZEROED;

		(void)apply_page(r, d[i].block, d[i].offset, zero ? NULL : data);
		data += zero ? 0 : MC_PAGE_SIZE;
	}
}

struct visit {
	struct restore *r;
	uint64_t epoch;
};

static bool apply_if_of(void *ctx, mc_handle h)
{
	struct visit *v = ctx;
	struct mc_slab_meta *m = mc_pool_meta(&v->r->a->slabs, h);

	if (m && m->epoch == v->epoch)
		apply_slab(v->r, h);
	return false;
}

/* After an epoch is applied only its device state stays. */
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

/* Applies the committed epoch from the decoded slabs; the same result however often. */
static void apply(struct restore *r, uint64_t epoch)
{
	struct mc_control *ctl = r->a->control;
	struct visit v = {.r = r, .epoch = epoch};
	uint64_t t = mc_now_ns();

	(void)mc_pool_reclaim(&r->a->slabs, apply_if_of, &v);
	atomic_store_explicit(&ctl->applied, epoch, memory_order_release);
	(void)mc_journal_move(&r->a->journal, epoch, MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED);
	(void)mc_pool_reclaim(&r->a->slabs, free_if_done, &v);
	mc_metric_add(mc_worker_metrics(r->w), MC_M_APPLY_TIME, mc_now_ns() - t);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
}

static void first_commit(struct restore *r)
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

/* All slabs are decoded and verified: the epoch becomes what the standby would run. */
static int commit(struct restore *r, uint64_t epoch, uint32_t slabs)
{
	struct mc_control *ctl = r->a->control;
	struct mc_journal *j = &r->a->journal;
	bool first = !committed(r);
	int e;

	e = mc_journal_move(j, epoch, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED);
	if (e == 0)
		e = mc_fault("restore.staged");
	if (e == 0)
		e = mc_commit_advance(ctl, atomic_load(&ctl->peer_term_number), epoch);
	if (e < 0)
		return refuse_epoch(r, epoch, e, "it can't be committed");
	(void)mc_journal_move(j, epoch, MC_EPOCH_STAGED, MC_EPOCH_COMMITTED);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	e = mc_fault("restore.committed");
	if (e < 0)
		return e;
	if (first)
		first_commit(r);
	for (uint32_t i = 0; i < slabs; i++) {
		mc_handle h;

		if (mc_ring_peek(&r->in, 0, &h) == 1)
			drop_first(r, h);
	}
	memset(r->as.seen, 0, sizeof(r->as.seen));
	r->as.epoch = 0;
	r->as.n = 0;
	r->as.have_state = false;
	apply(r, epoch);
	mc_metric_add(mc_worker_metrics(r->w), MC_M_COMMITS, 1);
	pool_policy(r);
	return 1;
}

/* True when deltas of this epoch fit what is applied, and the first copy is complete. */
static bool base_is_here(const struct restore *r, const struct mc_journal_record *rec)
{
	const struct mc_control *ctl = r->a->control;

	return atomic_load(&rec->base) == atomic_load(&ctl->applied) &&
	       committed(r) == atomic_load(&ctl->applied);
}

static int assemble(struct restore *r, uint64_t epoch)
{
	struct mc_journal_record *rec = mc_journal_get(&r->a->journal, epoch);
	enum mc_epoch_state st = mc_journal_state(&r->a->journal, epoch);
	uint32_t slabs;
	mc_handle h;
	int e;

	if (!rec || !base_is_here(r, rec))
		return refuse_epoch(r, epoch, -EPROTO, "it doesn't build on what is here");
	slabs = atomic_load(&rec->slabs);
	if (r->as.epoch != epoch) {
		drop_assembly(r);
		r->as.epoch = epoch;
	}
	if (r->as.n < slabs) {
		e = mc_ring_peek(&r->in, r->as.n, &h);
		if (e <= 0)
			return e;
		if (mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) < 0 ||
		    mc_pool_meta(&r->a->slabs, h)->epoch != epoch)
			return refuse_epoch(r, epoch, -EBADMSG, "its slabs are out of order");
		e = decode_one(r, h);
		return e < 0 ? refuse_epoch(r, epoch, e, "a slab can't be decoded") : 1;
	}
	if (st != MC_EPOCH_CAPTURED)
		return 0; /* COMMIT hasn't come yet */
	if (!r->as.have_state)
		return refuse_epoch(r, epoch, -EBADMSG, "it has no device state");
	return commit(r, epoch, slabs);
}

int commit_step(struct restore *r)
{
	struct mc_slab_meta *m;
	enum mc_epoch_state st;
	mc_handle h;
	int e = mc_ring_peek(&r->in, 0, &h);

	if (e <= 0)
		return e;
	if (mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) < 0) {
		mc_ring_advance(&r->in, 1);
		return 1;
	}
	m = mc_pool_meta(&r->a->slabs, h);
	if (m->kind != MC_KIND_ENCODED) {
		drop_first(r, h);
		return 1;
	}
	if (!m->epoch)
		return apply_sync(r, h);
	st = mc_journal_state(&r->a->journal, m->epoch);
	if (m->epoch <= committed(r) || (st != MC_EPOCH_CAPTURING && st != MC_EPOCH_CAPTURED)) {
		if (r->as.epoch == m->epoch)
			drop_assembly(r);
		drop_first(r, h);
		return 1;
	}
	return assemble(r, m->epoch);
}

bool commit_has_whole_epoch(const struct restore *r)
{
	uint64_t last = atomic_load(&r->a->journal.shm->last_begun);

	return mc_journal_state(&r->a->journal, last) == MC_EPOCH_CAPTURED ||
	       (last && mc_journal_state(&r->a->journal, last - 1) == MC_EPOCH_CAPTURED);
}

mc_handle commit_state_slab(const struct restore *r)
{
	const struct mc_pool *p = &r->a->slabs;

	for (uint64_t i = 0; i < p->max; i++) {
		uint64_t w = atomic_load_explicit(&p->word[i], memory_order_acquire);

		if (mc_slab_word_state(w) == MC_SLAB_OWNED &&
		    mc_slab_word_owner(w) == MC_ROLE_RESTORE && p->meta[i].kind == MC_KIND_STATE &&
		    p->meta[i].epoch == committed(r))
			return i | (uint64_t)mc_slab_word_gen(w) << 32;
	}
	return MC_HANDLE_NONE;
}

/* Decoded slabs of epochs that weren't committed are void: decoded again from the ring. */
static bool uncommitted(void *ctx, mc_handle h)
{
	struct restore *r = ctx;
	struct mc_slab_meta *m = mc_pool_meta(&r->a->slabs, h);

	if (!m || m->kind == MC_KIND_ENCODED)
		return m && !mc_ring_contains(r->in.ring, r->a->ring_slots, h);
	if (m->epoch <= committed(r) && m->epoch)
		return false;
	if (m->kind == MC_KIND_PAGES && m->desc)
		(void)mc_pool_free(&r->a->descs, m->desc);
	return true;
}

int commit_recover(struct restore *r)
{
	uint64_t n = committed(r);

	(void)mc_pool_reclaim(&r->a->slabs, uncommitted, r);
	/* A predecessor that decoded but died before the commit left its epoch at STAGED. */
	if (mc_journal_state(&r->a->journal, n + 1) == MC_EPOCH_STAGED)
		(void)refuse_epoch(r, n + 1, -EOWNERDEAD, "the process died before the commit");
	if (!n)
		return 0;
	if (mc_journal_state(&r->a->journal, n) == MC_EPOCH_STAGED)
		(void)mc_journal_move(&r->a->journal, n, MC_EPOCH_STAGED, MC_EPOCH_COMMITTED);
	if (mc_state_of(atomic_load(&r->a->control->state)) == MC_STATE_SYNCING)
		first_commit(r);
	if (atomic_load(&r->a->control->applied) < n ||
	    mc_journal_state(&r->a->journal, n) == MC_EPOCH_COMMITTED)
		apply(r, n);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	return 0;
}
