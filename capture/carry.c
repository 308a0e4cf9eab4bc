/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What becomes of the pages of epochs that didn't make it, and what the next one builds on. */
#include <errno.h>

#include "../ipc/fault.h"
#include "capture.h"

static bool is_over(enum mc_epoch_state s)
{
	return s == MC_EPOCH_COMMITTED || s == MC_EPOCH_RELEASED || s == MC_EPOCH_FREE;
}

void carry_recover(struct capture *c)
{
	struct mc_journal *j = &c->a->journal;

	/* The newest epoch of a bitmap is the one whose pages are in it. */
	for (uint64_t n = 0; (n = mc_journal_next(j, n));)
		c->owner[n % EPOCH_BITMAPS] = n;
	carry_merge(c);
}

/* What a commit ends: epochs that fail one after the other, wherever. */
static void count_abort(struct capture *c, uint64_t n)
{
	const struct mc_journal_record *rec = mc_journal_get(&c->a->journal, n);

	if (n < c->committed_seen)
		return;
	c->aborts_in_row++;
	c->abort_error = rec && atomic_load(&rec->reason) ? -(int)atomic_load(&rec->reason) : -EIO;
}

void carry_merge(struct capture *c)
{
	uint64_t committed = atomic_load(&c->a->journal.shm->last_committed);
	uint64_t words = c->a->bitmap_words;

	if (committed != c->committed_seen)
		c->aborts_in_row = c->aborts_told = 0;
	c->committed_seen = committed;

	/* Each for itself: one that is still on its way must not keep others' pages from the next.
	 */
	for (int i = 0; i < EPOCH_BITMAPS; i++) {
		uint64_t n = c->owner[i];
		enum mc_epoch_state s = mc_journal_state(&c->a->journal, n);

		if (n && s == MC_EPOCH_ABORTED) {
			bitmap_or(c->a->bitmap[CARRY], c->a->bitmap[i], words);
			(void)mc_fault(MC_FAULT_CAPTURE_MERGED);
			bitmap_or(c->a->bitmap[NOBASE], c->a->bitmap[i], words);
			count_abort(c, n);
		} else if (n && !is_over(s)) {
			continue;
		}
		c->owner[i] = 0;
	}
}

uint64_t carry_base(const struct capture *c)
{
	const struct mc_journal *j = &c->a->journal;
	uint64_t base = atomic_load(&j->shm->last_committed);

	for (uint64_t n = base; (n = mc_journal_next(j, n));) {
		enum mc_epoch_state s = mc_journal_state(j, n);

		if (s != MC_EPOCH_FREE && s != MC_EPOCH_CAPTURING && s != MC_EPOCH_ABORTED)
			base = n;
	}
	return base;
}

int carry_number(const struct capture *c, uint64_t *ret)
{
	uint64_t n = atomic_load(&c->a->journal.shm->last_begun) + 1;

	for (int i = 0; i < EPOCH_BITMAPS; i++, n++) {
		if (c->owner[n % EPOCH_BITMAPS])
			continue;
		*ret = n;
		return 0;
	}
	return -EAGAIN;
}
