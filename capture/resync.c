/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An epoch was too large for an armed backup, and all after it would be.  Much of what it holds may
 * be there already: written again with the same content, or changed and changed back.  So the pages
 * to be sent are compared with the backup's once, while the guest runs and its output stays held;
 * what is equal is taken off, the rest must fit an epoch, or the overload policy follows.
 *
 * In the RAM of an armed backup nothing changes meanwhile: it is as of the last committed epoch,
 * none is on its way.  The pages are in the carry bitmap, re-protected by a drained scan before
 * they are looked at: one that is written later is found by the next scan.
 */
#include <errno.h>
#include <string.h>

#include "../ipc/util.h"
#include "capture.h"

#define ANSWER_NS MC_NS_PER_S /* a backup that is silent about it for so long has other worries */

static bool too_large(int error)
{
	return error == -EFBIG || error == -ENOSPC;
}

bool resync_wanted(struct capture *c)
{
	if (!c->aborts_in_row) /* one was committed since */
		c->resync.on = c->resync.tried = false;
	if (c->resync.on)
		return true;
	if (c->resync.tried || !c->aborts_in_row || !too_large(c->abort_error) ||
	    !atomic_load(&c->a->control->peer_hashes) ||
	    mc_state_of(atomic_load(&c->a->control->state)) != MC_STATE_PROTECTED)
		return false;
	c->resync.on = c->resync.tried = true;
	c->resync.scanned = false;
	c->resync.heard = mc_now_ns();
	return true;
}

/* Everything that is to be compared is in the carry bitmap, and will be found if written again. */
static int scan(struct capture *c)
{
	uint64_t began;
	int64_t n;
	int r = pause_begin(c, false, &began), e;

	if (r < 0)
		return r;
	n = tracker_scan(&c->tracker, c->a->bitmap[CARRY], NULL);
	e = pause_end(c, began, NULL);
	return n < 0 ? (int)n : e;
}

void resync_begin(struct capture *c)
{
	c->resync.scanned = true;
	c->resync.heard = mc_now_ns();
	c->resync.epoch = carry_base(c);
	c->resync.next = 0;
	c->resync.open = 0;
	c->resync.compared = c->resync.equal = 0;
	hashes_draw(c);
}

/* Words [from, from + HASH_WORDS) name a page. */
static bool any(const struct capture *c, uint64_t from)
{
	uint64_t to = mc_min_u64(from + HASH_WORDS, c->a->bitmap_words);

	for (uint64_t w = from; w < to; w++)
		if (atomic_load_explicit(&c->a->bitmap[CARRY][w], memory_order_relaxed))
			return true;
	return false;
}

static void ask(struct capture *c)
{
	unsigned before = c->resync.open;

	for (; c->resync.next < c->a->bitmap_words && c->resync.open < HASH_WINDOW;
	     c->resync.next += HASH_WORDS) {
		uint64_t from = c->resync.next;
		struct mc_hash_question q = {
		        .seed = c->hash.seed,
		        .epoch = c->resync.epoch,
		        .first = from * 64,
		        .pages = mc_min_u64(HASH_WORDS, c->a->bitmap_words - from) * 64};

		if (!any(c, from))
			continue;
		if (mc_hash_ask(&c->hash.asker, &q) < 0)
			break;
		c->resync.word[c->resync.open++] = from;
	}
	if (c->resync.open != before)
		mc_arena_ring(c->a, MC_ROLE_TRANSPORT);
}

/* Takes off what is equal; an entry of the table is used here, and never again. */
static void compare(struct capture *c, uint64_t from, const struct mc_hash_slot *s)
{
	uint64_t to = mc_min_u64(from + HASH_WORDS, c->a->bitmap_words);
	struct mc_metrics_block *m = mc_worker_metrics(c->w);
	uint64_t compared = 0, equal = 0;

	for (uint64_t w = from; w < to; w++) {
		uint64_t bits = atomic_load(&c->a->bitmap[CARRY][w]);
		uint64_t same = hashes_equal(c, w, bits, s->hash + (w - from) * 64);

		compared += (uint64_t)__builtin_popcountll(bits);
		equal += (uint64_t)__builtin_popcountll(same);
		atomic_fetch_and(&c->a->bitmap[CARRY][w], ~same);
	}
	c->resync.compared += compared;
	c->resync.equal += equal;
	mc_metric_add(m, MC_M_HASH_COMPARED, compared);
	mc_metric_add(m, MC_M_HASH_EQUAL, equal);
}

static int end(struct capture *c)
{
	c->resync.on = false;
	c->due = mc_now_ns();
	c->dirty_estimate = bitmap_count(c->a->bitmap[CARRY], c->a->bitmap_words);
	hashes_tell(c, c->resync.epoch, c->resync.equal, c->resync.compared);
	return 1;
}

/* Nothing to be done yet: 0; 1 when it has lasted too long, and the policy is to have its turn. */
static int wait_for_it(struct capture *c)
{
	if (mc_now_ns() - c->resync.heard < ANSWER_NS)
		return 0;
	c->resync.on = false;
	return 1;
}

int resync_step(struct capture *c)
{
	const struct mc_hash_slot *s;

	/* An epoch that is on its way may change what the backup holds. */
	if (mc_journal_in_flight(&c->a->journal))
		return wait_for_it(c);
	if (!c->resync.scanned) {
		int r = scan(c);

		if (r == -EAGAIN)
			return wait_for_it(c); /* somebody else holds the guest */
		/* What is wrong the next epoch finds, too, and says so. */
		c->resync.on = r == 0;
		resync_begin(c);
		return 1;
	}
	ask(c);
	if (!c->resync.open)
		return end(c);
	s = mc_hash_answer(&c->hash.asker);
	if (!s)
		return wait_for_it(c); /* transport rings */
	c->resync.heard = mc_now_ns();
	if (!s->known) { /* the link broke, or an epoch was committed after all */
		c->resync.on = false;
		return 1;
	}
	compare(c, c->resync.word[0], s);
	mc_hash_taken(&c->hash.asker);
	memmove(c->resync.word, c->resync.word + 1, --c->resync.open * sizeof(c->resync.word[0]));
	return 1;
}
