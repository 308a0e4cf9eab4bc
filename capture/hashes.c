/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A first copy to a standby that was filled before: its first round sends only what differs.
 *
 * The standby tells the hashes of its pages, block by block, ahead of the copying.  A page is
 * compared at the moment in which it would be copied, after it was protected: who writes to it
 * later makes it dirty again, so that the comparison is as good as a copy.  A hash is used once:
 * in later rounds everything that was written is sent.
 */
#include <errno.h>
#include <sys/random.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

static uint64_t until(const struct capture *c, uint64_t from)
{
	return mc_min_u64(from + HASH_WORDS, c->a->bitmap_words);
}

void hashes_draw(struct capture *c)
{
	mc_hash_asker_init(&c->hash.asker, c->a->hashes);
	while (getrandom(&c->hash.seed, sizeof(c->hash.seed), 0) != sizeof(c->hash.seed))
		;
}

void hashes_begin(struct capture *c, uint64_t word)
{
	c->hash.on = atomic_load(&c->a->control->peer_keeps) && word < c->a->bitmap_words;
	if (!c->hash.on)
		return;
	c->hash.begin = c->hash.from = c->hash.next = c->hash.counted = word;
	c->hash.compared = c->hash.equal = c->hash.taken_off = 0;
	hashes_draw(c);
}

static void ask(struct capture *c)
{
	uint64_t next = c->hash.next;

	while (c->hash.next < c->a->bitmap_words &&
	       MC_HASH_SLOTS - mc_hash_room(&c->hash.asker) < HASH_WINDOW) {
		uint64_t to = until(c, c->hash.next);
		struct mc_hash_question q = {.seed = c->hash.seed,
		                             .first = c->hash.next * 64,
		                             .pages = (to - c->hash.next) * 64};

		if (mc_hash_ask(&c->hash.asker, &q) < 0)
			break;
		c->hash.next = to;
	}
	if (c->hash.next == next)
		return;
	(void)mc_fault(MC_FAULT_CAPTURE_HASH_ASK);
	mc_arena_ring(c->a, MC_ROLE_TRANSPORT);
}

uint64_t hashes_limit(struct capture *c)
{
	const struct mc_hash_slot *s;

	if (c->cursor < c->hash.begin) /* a predecessor compared these, and left them to be sent */
		return c->hash.begin;
	if (c->cursor == until(c, c->hash.from)) {
		mc_hash_taken(&c->hash.asker);
		c->hash.from = c->cursor;
	}
	ask(c);
	s = mc_hash_answer(&c->hash.asker);
	/* Unknown: the link is gone, and the copy begins again. */
	return s && s->known ? until(c, c->hash.from) : c->cursor;
}

static const uint8_t *content_of(const struct capture *c, uint64_t page)
{
	unsigned b = copy_block_of(c, page);
	uint64_t off = (page - c->a->control->block[b].first_page) * MC_PAGE_SIZE;

	return off < c->vm.block[b].size ? c->ram[b] + off : NULL;
}

static void count(struct capture *c, uint64_t word, uint64_t compared, uint64_t equal)
{
	struct mc_metrics_block *m = mc_worker_metrics(c->w);

	if (word < c->hash.counted) /* there was no memory for it, it is looked at again */
		return;
	c->hash.counted = word + 1;
	c->hash.compared += compared;
	c->hash.equal += equal;
	mc_metric_add(m, MC_M_HASH_COMPARED, compared);
	mc_metric_add(m, MC_M_HASH_EQUAL, equal);
}

uint64_t hashes_equal(const struct capture *c, uint64_t word, uint64_t bits,
                      const struct mc_page_hash there[64])
{
	uint64_t equal = 0;

	for (uint64_t left = bits; left; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);
		const uint8_t *page = content_of(c, word * 64 + i);
		struct mc_page_hash here = {0, 0};

		if (page)
			here = mc_hash_page(page, c->hash.seed);
		if (mc_hash_equal(&here, &there[i]))
			equal |= 1ULL << i;
	}
	return equal;
}

uint64_t hashes_differ(struct capture *c, uint64_t word, uint64_t bits, uint64_t *holes)
{
	const struct mc_hash_slot *s = mc_hash_answer(&c->hash.asker);
	const struct mc_page_hash *there;
	uint64_t equal;

	*holes = 0;
	if (word < c->hash.begin || !s)
		return bits;
	there = s->hash + (word - c->hash.from) * 64;
	equal = hashes_equal(c, word, bits, there);
	/* What isn't in the set was never written to: it is zero, and isn't read. */
	for (unsigned i = 0; i < 64; i++)
		if (!(bits >> i & 1) && !mc_hash_is_zero(&there[i]))
			*holes |= 1ULL << i;
	c->hash.differ[word - c->hash.from] = (bits & ~equal) | *holes;
	count(c, word, (uint64_t)__builtin_popcountll(bits | *holes),
	      (uint64_t)__builtin_popcountll(equal));
	return (bits & ~equal) | *holes;
}

void hashes_tell(struct capture *c, uint64_t epoch, uint64_t equal, uint64_t compared)
{
	mc_info("resync by page hashes: %llu of %llu pages equal", (unsigned long long)equal,
	        (unsigned long long)compared);
	mc_worker_event(c->w, "resync", epoch, "resync by page hashes: %llu of %llu pages equal",
	                (unsigned long long)equal, (unsigned long long)compared);
}

/* The progress is of what has to be sent. */
static void take_off(struct capture *c, uint64_t pages)
{
	_Atomic uint64_t *total = &c->a->control->sync_total;
	uint64_t bytes = pages * MC_PAGE_SIZE, now = atomic_load(total);

	/* 0 would mean that the copy hasn't begun. */
	atomic_store(total, now > bytes + MC_PAGE_SIZE ? now - bytes : MC_PAGE_SIZE);
}

/*
 * The carry bitmap becomes what was found, in an order that a successor can go on from: first the
 * holes are added, then the words count as compared, then what is equal is taken out.  Whoever dies
 * in between leaves too many pages, never too few; and whoever dies with the slab pushed, but not
 * counted, leaves the very pages in it: the repeat, which transport drops, holds no others.
 */
static void settle(struct capture *c, uint64_t from, uint64_t to)
{
	_Atomic uint64_t *carry = c->a->bitmap[CARRY];

	for (uint64_t w = from; w < to; w++)
		atomic_fetch_or(&carry[w], c->hash.differ[w - c->hash.from]);
	(void)mc_fault(MC_FAULT_CAPTURE_HASH_COMPARED);
	atomic_store(&c->a->control->sync_compared, to);
	for (uint64_t w = from; w < to; w++)
		atomic_fetch_and(&carry[w], c->hash.differ[w - c->hash.from]);
	(void)mc_fault(MC_FAULT_CAPTURE_HASH_SETTLED);
	c->hash.begin = to;
}

void hashes_passed(struct capture *c, uint64_t from, uint64_t to)
{
	uint64_t equal = c->hash.equal - c->hash.taken_off;

	if (to <= c->hash.begin)
		return; /* what a predecessor had compared */
	settle(c, mc_max_u64(from, c->hash.begin), to);
	take_off(c, equal);
	c->hash.taken_off += equal;
	if (to < c->a->bitmap_words)
		return;
	c->hash.on = false;
	hashes_tell(c, 0, c->hash.equal, c->hash.compared);
}
