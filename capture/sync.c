/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The first copy, in rounds while the guest runs.  The set to copy is the carry bitmap; its
 * bits are cleared only once the slab that holds the pages was pushed.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

#define ROUNDS_MAX   12
#define SMALL_PAGES  4096 /* 16 MiB: small enough for an epoch */
#define SLABS_A_STEP 1
#define SLABS_ON_WAY 12

static void set_range(_Atomic uint64_t *b, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		atomic_fetch_or_explicit(&b[i / 64], 1ULL << i % 64, memory_order_relaxed);
}

/* All populated pages, by the holes of the RAM files; reading a hole would allocate it. */
static int add_populated(struct capture *c)
{
	for (unsigned i = 0; i < c->vm.nblocks; i++) {
		uint64_t size = c->vm.block[i].size;
		off_t at = 0;

		while ((uint64_t)at < size) {
			off_t data = lseek(c->ram_fd[i], at, SEEK_DATA);
			off_t hole;

			if (data < 0 && errno == ENXIO)
				break;
			hole = data < 0 ? -1 : lseek(c->ram_fd[i], data, SEEK_HOLE);
			if (hole < 0)
				return -errno;
			if ((uint64_t)data >= size)
				break;
			hole = (off_t)mc_min_u64((uint64_t)hole, size);
			set_range(c->a->bitmap[CARRY],
			          c->a->control->block[i].first_page +
			                  (uint64_t)data / MC_PAGE_SIZE,
			          ((uint64_t)(hole - data) + MC_PAGE_SIZE - 1) / MC_PAGE_SIZE);
			at = hole;
		}
	}
	return 0;
}

/* Stop, re-protect everything, look at what there is to copy, go on. */
static int open_round(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	uint64_t began, words = c->a->bitmap_words;
	_Atomic uint64_t *scratch = c->a->bitmap[0];
	int64_t n;
	int r = pause_begin(c, false, &began), e;

	if (r < 0)
		return r;
	if (!c->rounds)
		hashes_begin(c, 0);
	/* The first scan reports all of the RAM, holes too: the populated pages are what counts. */
	n = tracker_scan(&c->tracker, c->rounds ? c->a->bitmap[CARRY] : scratch, NULL);
	r = n < 0 ? (int)n : 0;
	if (r == 0 && !c->rounds)
		r = add_populated(c);
	(void)mc_fault(MC_FAULT_CAPTURE_SYNC_SCANNED);
	e = pause_end(c, began, NULL);
	if (!c->rounds)
		bitmap_clear(scratch, words);
	if (r < 0 || e < 0)
		return r < 0 ? r : e;
	c->round_pages = bitmap_count(c->a->bitmap[CARRY], words);
	if (!c->rounds)
		atomic_store(&ctl->sync_total, c->round_pages * MC_PAGE_SIZE);
	(void)mc_fault(MC_FAULT_CAPTURE_SYNC_ROUND);
	c->rounds++;
	c->cursor = 0;
	return 0;
}

static bool round_is_last(const struct capture *c)
{
	uint64_t most = atomic_load(&c->a->control->peer_max_epoch) / MC_PAGE_SIZE / 2;

	if (c->hash.on)
		return false; /* pages that aren't in the set must be compared, too */
	return c->round_pages <= mc_min_u64(SMALL_PAGES, most) || c->rounds > ROUNDS_MAX ||
	       (c->rounds > 2 && c->round_pages > c->last_round * 3 / 4);
}

/* Clears the bits of words [from, to) that were copied. */
static void clear_words(struct capture *c, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		atomic_store_explicit(&c->a->bitmap[CARRY][i], 0, memory_order_relaxed);
}

bool sync_again(const struct capture *c)
{
	const struct mc_control *ctl = c->a->control;

	return atomic_load_explicit(&ctl->sync_wanted, memory_order_acquire) !=
	       atomic_load(&ctl->sync_copy);
}

/* True while a slab of the old copy, or of an epoch on top of it, is anywhere. */
static bool on_its_way(const struct capture *c)
{
	const struct mc_pool *p = &c->a->slabs;

	for (uint64_t i = 0; i < p->max; i++)
		if (mc_slab_word_state(atomic_load(&p->word[i])) == MC_SLAB_OWNED)
			return true;
	return mc_journal_in_flight(&c->a->journal) != 0;
}

int sync_begin_again(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	struct mc_journal *j = &c->a->journal;

	copy_list_free(c);
	(void)mc_journal_abort_from(j, atomic_load(&j->shm->last_begun), -ECONNRESET);
	if (on_its_way(c))
		return 0; /* stage and transport free and ring */
	/* What the backup holds is found out anew: no page of it counts, and no base. */
	c->hash.on = false;
	atomic_store(&ctl->sync_compared, 0);
	atomic_store(&ctl->armed_epoch, 0);
	bitmap_clear(c->a->bitmap[CARRY], c->a->bitmap_words);
	bitmap_clear(c->a->bitmap[NOBASE], c->a->bitmap_words);
	memset(c->owner, 0, sizeof(c->owner));
	c->rounds = 0;
	c->cursor = c->last_round = 0;
	c->round_open = false;
	atomic_store(&ctl->sync_total, 0);
	atomic_store(&ctl->sync_bytes, 0);
	atomic_store(&ctl->sync_slabs, 0);
	atomic_store_explicit(&ctl->sync_copy, atomic_load(&ctl->sync_wanted),
	                      memory_order_release);
	c->phase = PHASE_WAIT;
	mc_arena_ring_all(c->a);
	return 1;
}

int sync_step(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	uint64_t from = c->cursor, to = c->a->bitmap_words, pages = 0;
	uint32_t pushed;
	int r;

	if (!c->round_open) {
		if (!c->running)
			return 0;
		r = open_round(c);
		if (r == -EAGAIN)
			return 0;
		if (r < 0)
			return r;
		if (round_is_last(c))
			return 2;
		c->last_round = c->round_pages;
		c->round_open = true;
		return 1;
	}
	copy_list_init(c);
	/* More on its way would only fall out of the processor's cache before it is used. */
	if (atomic_load_explicit(&c->a->slabs.shm->in_use, memory_order_relaxed) >= SLABS_ON_WAY ||
	    !copy_has_room(c, c->a->slabs.max / 2))
		return 0; /* transport frees and rings */
	if (c->hash.on)
		to = hashes_limit(c);
	if (from == to)
		return 0; /* transport rings when it has an answer */
	r = copy_pages(c, c->a->bitmap[CARRY], &c->cursor, to, 0, false, SLABS_A_STEP, &pages);
	pushed = c->list.n;
	(void)mc_fault(MC_FAULT_CAPTURE_SYNC_COPIED);
	if (r == 0 && c->hash.on)
		hashes_passed(c, from, c->cursor);
	if (r == 0 && pushed)
		r = copy_list_push(c, (uint32_t)atomic_load(&ctl->sync_slabs));
	(void)mc_fault(MC_FAULT_CAPTURE_SYNC_PUSHED);
	if (r < 0) {
		c->cursor = from;
		copy_list_free(c);
		return r == -ENOSPC ? 0 : r;
	}
	atomic_fetch_add(&ctl->sync_slabs, pushed);
	mc_metric_add(mc_worker_metrics(c->w), MC_M_PAGES_TOTAL, pages);
	(void)mc_fault(MC_FAULT_CAPTURE_SYNC_COUNTED);
	clear_words(c, from, c->cursor);
	c->round_open = c->cursor < c->a->bitmap_words;
	return 1;
}
