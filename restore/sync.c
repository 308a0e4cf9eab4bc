/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The first copy: slabs of epoch 0, applied in place to a standby that isn't armed.  Whatever
 * goes wrong, it begins again once the link is down, with an empty RAM, or with what is there and
 * its hashes (hashes.c): transport lets no primary in before, so nothing of an old copy can follow.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* Pages that follow one another in a slab and in a RAM block: written by one call. */
struct run {
	struct restore *r;
	uint32_t block;
	uint64_t offset, len;
	const uint8_t *content;
};

/*
 * By the file, not by the mapping: the kernel needn't clear a page that is written whole, no fault
 * is taken for each, and a full /dev/shm is an error.
 */
static int flush(struct run *u)
{
	while (u->len) {
		ssize_t n = pwrite(u->r->ram_fd[u->block], u->content, u->len, (off_t)u->offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		u->content += n;
		u->offset += (uint64_t)n;
		u->len -= (uint64_t)n;
	}
	return 0;
}

static int put_page(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content)
{
	static const uint8_t zero[MC_PAGE_SIZE];
	struct run *u = ctx;
	struct restore *r = u->r;
	uint64_t page = r->a->control->block[block].first_page + offset / MC_PAGE_SIZE;
	int e = 0;

	if (page >= r->a->bitmap_words * 64)
		return -EBADMSG;
	/* What is zero stays as it is, and unallocated. */
	if (!content && !(r->filled[page / 64] >> page % 64 & 1))
		return 0;
	r->filled[page / 64] |= 1ULL << page % 64;
	content = content ? content : zero;
	if (u->len &&
	    (u->block != block || u->offset + u->len != offset || u->content + u->len != content))
		e = flush(u);
	if (!u->len)
		*u = (struct run){.r = r, .block = block, .offset = offset, .content = content};
	u->len += MC_PAGE_SIZE;
	return e;
}

/* Which pages of the RAM may be other than zero: all, when it was kept, or filled in part. */
static int track_filled(struct restore *r, bool unknown)
{
	size_t bytes = r->a->bitmap_words * 8;

	if (!r->filled)
		r->filled = malloc(bytes);
	if (!r->filled)
		return -ENOMEM;
	memset(r->filled, unknown ? 0xff : 0, bytes);
	return 0;
}

int sync_slab(struct restore *r, mc_handle h, const struct mc_slab_meta *m)
{
	struct mc_control *c = r->a->control;
	uint64_t applied = atomic_load(&c->sync_applied);
	struct run run = {.r = r};
	struct mc_enc_view v;
	int e;

	/* A repeat, or the rest of a copy that is given up. */
	if (restore_committed(r) || atomic_load(&c->nack_epoch) == UINT64_MAX ||
	    m->seq + 1 == (uint32_t)applied) {
		commit_drop_first(r, h);
		return 1;
	}
	e = r->filled ? 0 : track_filled(r, applied || atomic_load(&c->ram_kept));
	if (e == 0)
		e = slab_open(r, decoders_main(r->decoders), h, &v);
	if (e == 0 && (v.h.of_kind != MC_KIND_PAGES || v.h.base || v.h.seq != (uint32_t)applied))
		e = -EBADMSG;
	if (e == 0)
		e = decode_pages(decoders_main(r->decoders), &v, r->ram, put_page, &run);
	if (e == 0)
		e = flush(&run);
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

	mc_warn("the first copy broke off; waits for the primary, which begins it again");
	commit_drop_all(r);
	(void)mc_journal_abort_from(&r->a->journal, 1, -ECANCELED);
	(void)mc_hash_drain(r->a->hashes); /* transport lets no primary in before we wait */
	e = hashes_keep(r);
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

/* What had come when the link broke need not be sent again. */
static bool has_slabs(struct restore *r)
{
	const struct mc_slab_meta *m;
	mc_handle h;

	if (r->ring_bad || mc_ring_peek(&r->in, 0, &h) != 1 ||
	    mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) < 0)
		return false;
	m = mc_pool_meta(&r->a->slabs, h);
	return m && m->kind == MC_KIND_ENCODED && !m->epoch;
}

int sync_step(struct restore *r)
{
	struct mc_control *c = r->a->control;
	int e = begin(r);

	if (e || atomic_load_explicit(&c->link, memory_order_acquire) == MC_LINK_UP ||
	    restore_committed(r) || has_slabs(r))
		return e;
	return begin_again(r);
}
