/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the standby's RAM holds, told by hashes: to a primary that fills it once more, so that only
 * what differs is sent.  Such a RAM is kept as it is, whatever it holds: every page of it is either
 * found equal or replaced, one that is zero at the primary as well.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "restore.h"

#define KEEP_MIN (4ULL << 20) /* bytes: less is sent faster than it is asked for */
#define EMPTY_NS (60 * MC_NS_PER_S)

/* Bytes of memory that the standby's RAM has. */
static uint64_t populated(const struct restore *r)
{
	uint64_t sum = 0;
	struct stat st;

	for (unsigned i = 0; i < r->vm.nblocks; i++)
		if (fstat(r->ram_fd[i], &st) == 0)
			sum += (uint64_t)st.st_blocks * 512;
	return sum;
}

int hashes_keep(struct restore *r)
{
	bool keep = populated(r) >= KEEP_MIN;
	int e = keep ? 0 : standby_empty(r);

	if (e < 0)
		return e;
	free(r->filled);
	r->filled = NULL;
	atomic_store_explicit(&r->a->control->ram_kept, keep, memory_order_release);
	return 0;
}

/* The primary can't compare: it is let in once the RAM is empty. */
static int empty(struct restore *r)
{
	int e;

	mc_worker_busy(r->w, EMPTY_NS);
	e = standby_empty(r);
	mc_worker_busy(r->w, 0);
	if (e < 0)
		return e;
	free(r->filled);
	r->filled = NULL;
	atomic_store_explicit(&r->a->control->ram_kept, 0, memory_order_release);
	return 1;
}

/* The pages [at, end) of a block into @hash; a hole isn't read, which would fill it. */
static void hash_pages(const struct restore *r, unsigned block, uint64_t at, uint64_t end,
                       uint64_t seed, struct mc_page_hash *hash)
{
	while (at < end) {
		off_t data = lseek(r->ram_fd[block], (off_t)(at * MC_PAGE_SIZE), SEEK_DATA);
		off_t hole = (off_t)(end * MC_PAGE_SIZE);
		uint64_t to;

		if (data < 0 && errno == ENXIO)
			return;
		if (data < 0) /* a file system that can't tell */
			data = (off_t)(at * MC_PAGE_SIZE);
		else
			hole = lseek(r->ram_fd[block], data, SEEK_HOLE);
		to = mc_min_u64(end, ((uint64_t)hole + MC_PAGE_SIZE - 1) / MC_PAGE_SIZE);
		hash += mc_min_u64((uint64_t)data / MC_PAGE_SIZE, end) - at;
		for (at = (uint64_t)data / MC_PAGE_SIZE; at < to; at++)
			*hash++ = mc_hash_page(r->ram[block] + at * MC_PAGE_SIZE, seed);
	}
}

/* The RAM is as the question wants it, and nobody writes to it meanwhile. */
static bool is_as_of(const struct restore *r, uint64_t epoch)
{
	const struct mc_control *c = r->a->control;
	enum mc_state s = restore_state(r);

	if (!epoch)
		return s == MC_STATE_SYNCING && !restore_committed(r);
	return s == MC_STATE_PROTECTED && restore_committed(r) == epoch &&
	       atomic_load(&c->applied) == epoch;
}

static void compute(const struct restore *r, const struct mc_hash_question *q,
                    struct mc_page_hash *hash)
{
	memset(hash, 0, q->pages * sizeof(*hash));
	for (unsigned i = 0; i < r->vm.nblocks; i++) {
		uint64_t first = r->a->control->block[i].first_page;
		uint64_t pages = r->block_size[i] / MC_PAGE_SIZE;
		uint64_t from = mc_max_u64(q->first, first);
		uint64_t to = mc_min_u64(q->first + q->pages, first + pages);

		if (from < to)
			hash_pages(r, i, from - first, to - first, q->seed,
			           hash + (from - q->first));
	}
}

int hashes_step(struct restore *r)
{
	struct mc_control *c = r->a->control;
	struct mc_hash_box *box = r->a->hashes;
	struct mc_hash_slot *s;
	struct mc_hash_question q;
	bool known;

	if (atomic_load(&c->want_empty) && atomic_load(&c->ram_kept) &&
	    restore_state(r) == MC_STATE_WAITING)
		return empty(r);
	s = mc_hash_question(box, atomic_load(&box->answered));
	if (!s)
		return 0;
	q = s->q;
	known = q.pages && q.pages <= MC_HASH_PAGES && q.first < r->a->bitmap_words * 64 &&
	        is_as_of(r, q.epoch);
	if (known) {
		compute(r, &q, s->hash);
		mc_metric_add(mc_worker_metrics(r->w), MC_M_HASHED_PAGES, q.pages);
	}
	(void)mc_fault(MC_FAULT_RESTORE_HASHED);
	mc_hash_answered(box, known);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	return 1;
}
