/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Comparisons by page hashes.  The test plays the backup, whose RAM is `there`, and whoever is
 * between: in the end it must be as the guest's, `here`, and nothing was sent that was equal.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/test-process.h"
#include "../ipc/util.h"
#include "capture.h"

#define UNIT  (256ULL << 10)
#define PAGES 5000ULL /* of the first block; a second one follows */
#define MORE  700ULL
#define FIRST MC_ALIGN_UP(PAGES, 64)
#define ALL   (FIRST + MC_ALIGN_UP(MORE, 64))

struct world {
	struct mc_arena sup, sta, tra;
	struct mc_worker worker;
	struct capture c;
	struct mc_ring_end in;
	uint8_t *here, *there; /* ALL pages each, as numbered in bitmaps */
	bool hole[ALL];        /* of the guest's RAM */
	bool written[ALL];     /* since the scan: the next round sends it */
	uint64_t next_seq, sent;
	unsigned seed;
};

static uint32_t pick(struct world *w, uint32_t n)
{
	return (uint32_t)rand_r(&w->seed) % n;
}

static bool exists(uint64_t page)
{
	return page < PAGES || (page >= FIRST && page < FIRST + MORE);
}

static uint8_t *at(uint8_t *ram, uint64_t page)
{
	return ram + page * MC_PAGE_SIZE;
}

static void set_block(struct world *w, unsigned i, uint64_t first, uint64_t pages)
{
	w->sup.control->block[i].first_page = first;
	w->sup.control->block[i].size = w->c.vm.block[i].size = pages * MC_PAGE_SIZE;
	w->c.ram[i] = at(w->here, first);
}

/* A capture that knows nothing but the arena. */
static void new_capture(struct world *w)
{
	struct capture *c = &w->c;

	memset(c, 0, sizeof(*c));
	c->w = &w->worker;
	c->a = &w->worker.arena;
	c->vm.nblocks = 2;
	set_block(w, 0, 0, PAGES);
	set_block(w, 1, FIRST, MORE);
	assert_int_equal(
	        mc_ring_attach_producer(&c->ring[0], c->a->ring_stage[0], c->a->ring_slots), 0);
}

/* Equal, different, zero on one side, a hole here: a quarter of each page's neighbours. */
static void fill(struct world *w)
{
	for (uint64_t p = 0; p < ALL; p++) {
		uint32_t kind = exists(p) ? pick(w, 6) : 5;

		memset(at(w->here, p), kind == 2 ? 0 : (int)(p % 250 + 1), MC_PAGE_SIZE);
		memcpy(at(w->there, p), at(w->here, p), MC_PAGE_SIZE);
		w->hole[p] = kind >= 4;
		if (kind == 1)
			at(w->there, p)[pick(w, MC_PAGE_SIZE)] ^= 1;
		if (kind == 2)
			at(w->there, p)[0] = (uint8_t)pick(w, 2);
		if (kind == 3)
			memset(at(w->there, p), 0, MC_PAGE_SIZE);
		if (kind == 5) /* zero here, and there; `here` holds what must not be read */
			memset(at(w->there, p), 0, MC_PAGE_SIZE);
	}
}

static struct world *world_new(void)
{
	struct mc_arena_params p = {.slab_size = UNIT,
	                            .max_memory = 64 * UNIT,
	                            .ram_pages = ALL,
	                            .side = MC_SIDE_PRIMARY};
	struct world *w = calloc(1, sizeof(*w));

	w->seed = 5;
	w->here = malloc(ALL * MC_PAGE_SIZE);
	w->there = malloc(ALL * MC_PAGE_SIZE);
	assert_int_equal(mc_arena_create(&w->sup, NULL, &p), 0);
	w->sup.config->side = MC_SIDE_PRIMARY;
	strcpy(w->sup.config->guest, "test");
	arena_as(&w->worker.arena, &w->sup, MC_ROLE_CAPTURE);
	w->worker.role = MC_ROLE_CAPTURE;
	arena_as(&w->sta, &w->sup, mc_role_stage(0));
	arena_as(&w->tra, &w->sup, MC_ROLE_TRANSPORT);
	assert_int_equal(mc_ring_attach_consumer(&w->in, w->sta.ring_stage[0], w->sta.ring_slots),
	                 0);
	new_capture(w);
	fill(w);
	return w;
}

static void world_end(struct world *w)
{
	mc_arena_done(&w->tra);
	mc_arena_done(&w->sta);
	mc_arena_done(&w->worker.arena);
	mc_arena_done(&w->sup);
	free(w->here);
	free(w->there);
	free(w);
}

/* As restore answers, by way of transport. */
static void answer(struct world *w, bool known)
{
	struct mc_hash_box *box = w->tra.hashes;
	struct mc_hash_slot *s;

	while ((s = mc_hash_question(box, atomic_load(&box->answered)))) {
		for (uint64_t i = 0; i < s->q.pages; i++) {
			uint64_t p = s->q.first + i;

			s->hash[i] = p < ALL ? mc_hash_page(at(w->there, p), s->q.seed)
			                     : (struct mc_page_hash){0, 0};
		}
		mc_hash_answered(box, known);
	}
}

/* A slab arrives: each once, as transport sees to. */
static void take_slab(struct world *w, mc_handle h)
{
	struct mc_slab_meta *m = mc_pool_meta(&w->sta.slabs, h);
	const struct mc_page_desc *d = mc_pool_data(&w->sta.descs, m->desc);
	const uint8_t *from = mc_pool_data(&w->sta.slabs, h);

	if (m->seq < w->next_seq)
		return;
	assert_int_equal(m->seq, w->next_seq++);
	for (uint32_t i = 0; i < m->pages; i++) {
		uint64_t p = (d[i].block ? FIRST : 0) + d[i].offset / MC_PAGE_SIZE;

		w->sent++;
		if (d[i].flags & MC_PAGE_ZEROED) {
			memset(at(w->there, p), 0, MC_PAGE_SIZE);
			continue;
		}
		memcpy(at(w->there, p), from, MC_PAGE_SIZE);
		from += MC_PAGE_SIZE;
	}
}

static void take_slabs(struct world *w)
{
	mc_handle h;

	while (mc_ring_peek(&w->in, 0, &h) == 1) {
		mc_handle desc;

		assert_int_equal(mc_pool_claim(&w->sta.slabs, h, MC_ROLE_CAPTURE), 0);
		desc = mc_pool_meta(&w->sta.slabs, h)->desc;
		assert_int_equal(mc_pool_claim(&w->sta.descs, desc, MC_ROLE_CAPTURE), 0);
		take_slab(w, h);
		(void)mc_pool_free(&w->sta.descs, desc);
		(void)mc_pool_free(&w->sta.slabs, h);
		mc_ring_advance(&w->in, 1);
	}
}

/* As after the first scan: what is populated is to be copied. */
static void open_copy(struct world *w)
{
	for (uint64_t p = 0; p < ALL; p++)
		if (!w->hole[p])
			atomic_fetch_or(&w->c.a->bitmap[CARRY][p / 64], 1ULL << p % 64);
	atomic_store(&w->sup.control->peer_keeps, 1);
	atomic_store(&w->sup.control->sync_total, ALL * MC_PAGE_SIZE);
	w->c.rounds = 1;
	w->c.round_open = true;
	hashes_begin(&w->c, 0);
	assert_true(w->c.hash.on);
}

static uint64_t differing(const struct world *w)
{
	static const uint8_t zero[MC_PAGE_SIZE];
	uint64_t n = 0;

	for (uint64_t p = 0; p < ALL; p++)
		n += memcmp(w->there + p * MC_PAGE_SIZE,
		            w->hole[p] ? zero : w->here + p * MC_PAGE_SIZE, MC_PAGE_SIZE) != 0;
	return n;
}

static void check_there(struct world *w)
{
	for (uint64_t p = 0; p < ALL; p++) {
		if (w->hole[p])
			memset(at(w->here, p), 0, MC_PAGE_SIZE);
		if (!w->written[p] && memcmp(at(w->there, p), at(w->here, p), MC_PAGE_SIZE) != 0)
			fail_msg("page %d isn't as the guest's", (int)p);
	}
	assert_int_equal(bitmap_count(w->c.a->bitmap[CARRY], w->c.a->bitmap_words), 0);
	assert_int_equal(atomic_load(&w->sup.slabs.shm->in_use), 0);
}

static uint64_t metric(const struct world *w, enum mc_metric m)
{
	return mc_metric_get(&w->sup.metrics[MC_ROLE_CAPTURE], m);
}

/* One round sends what differs, each page once, and reads no hole. */
static void test_first_copy(void **state)
{
	struct world *w = world_new();
	uint64_t differ = differing(w);

	(void)state;
	open_copy(w);
	while (w->c.round_open) {
		assert_true(sync_step(&w->c) >= 0);
		take_slabs(w);
		answer(w, true);
	}
	assert_false(w->c.hash.on);
	assert_int_equal(w->sent, differ);
	assert_int_equal(metric(w, MC_M_HASH_COMPARED) - metric(w, MC_M_HASH_EQUAL), differ);
	assert_true(metric(w, MC_M_HASH_EQUAL) > PAGES / 4);
	check_there(w);
	world_end(w);
}

/* Without answers it waits; a link that broke leaves it waiting, until it is begun again. */
static void test_no_answer(void **state)
{
	struct world *w = world_new();

	(void)state;
	open_copy(w);
	for (int i = 0; i < 5; i++)
		assert_int_equal(sync_step(&w->c), 0);
	answer(w, false);
	for (int i = 0; i < 5; i++)
		assert_int_equal(sync_step(&w->c), 0);
	assert_int_equal(w->c.cursor, 0);
	assert_int_equal(sync_begin_again(&w->c), 1);
	assert_int_equal(w->c.phase, PHASE_WAIT);
	/* What came too late isn't taken for an answer to what is asked now. */
	fill(w);
	open_copy(w);
	while (w->c.round_open) {
		assert_true(sync_step(&w->c) >= 0);
		take_slabs(w);
		answer(w, true);
	}
	check_there(w);
	world_end(w);
}

/* A successor goes on where its predecessor died between two steps. */
static void succeed(struct world *w)
{
	new_capture(w);
	(void)mc_pool_reserve(&w->c.a->slabs, 1);
	w->c.rounds = 1;
	w->c.round_open = true;
	hashes_begin(&w->c, atomic_load(&w->sup.control->sync_compared));
}

static void test_successor(void **state)
{
	struct world *w = world_new();

	(void)state;
	open_copy(w);
	while (w->c.round_open) {
		assert_true(sync_step(&w->c) >= 0);
		take_slabs(w);
		if (pick(w, 2))
			answer(w, true);
		if (w->c.round_open && pick(w, 4) == 0)
			succeed(w);
	}
	check_there(w);
	world_end(w);
}

/* A page of a slab is written as the backup had it: its repeat would leave it out. */
static void write_one(struct world *w, uint64_t from, const uint8_t *old)
{
	for (uint64_t p = from * 64; p < w->c.cursor * 64 && p < ALL; p++) {
		if (w->hole[p] || memcmp(at(w->here, p), old + p * MC_PAGE_SIZE, MC_PAGE_SIZE) == 0)
			continue;
		memcpy(at(w->here, p), old + p * MC_PAGE_SIZE, MC_PAGE_SIZE);
		w->written[p] = true;
		return;
	}
}

/*
 * Dead with a slab pushed that isn't counted: the successor's first one has the same number, and is
 * dropped.  It must hold no page that the other one hadn't, whatever was written meanwhile.
 */
static void test_pushed_not_counted(void **state)
{
	mc_autofree uint8_t *old = malloc(ALL * MC_PAGE_SIZE);
	struct world *w = world_new();

	(void)state;
	open_copy(w);
	while (w->c.round_open) {
		uint64_t from = w->c.cursor, slabs = atomic_load(&w->sup.control->sync_slabs);
		uint64_t set[HASH_WORDS];

		memcpy(old, w->there, ALL * MC_PAGE_SIZE);
		memcpy(set, w->c.hash.differ, sizeof(set));
		assert_true(sync_step(&w->c) >= 0);
		memcpy(set, w->c.hash.differ, sizeof(set));
		take_slabs(w);
		answer(w, true);
		if (!w->c.round_open || atomic_load(&w->sup.control->sync_slabs) == slabs)
			continue;
		/* Back to the moment after the push. */
		write_one(w, from, old);
		for (uint64_t k = from; k < w->c.cursor; k++)
			atomic_store(&w->c.a->bitmap[CARRY][k],
			             k >= w->c.hash.from ? set[k - w->c.hash.from] : 0);
		atomic_store(&w->sup.control->sync_slabs, slabs);
		succeed(w);
		/* Its repeat is dropped; one step, so that it dies no more before it got on. */
		assert_true(sync_step(&w->c) >= 0);
		take_slabs(w);
	}
	check_there(w);
	world_end(w);
}

/* --- an armed backup ------------------------------------------------------------------- */

static void open_resync(struct world *w)
{
	struct mc_control *ctl = w->sup.control;

	atomic_store(&ctl->state, MC_STATE_PROTECTED);
	atomic_store(&ctl->peer_hashes, 1);
	w->c.aborts_in_row = 1;
	w->c.abort_error = -EFBIG;
	assert_true(resync_wanted(&w->c));
	resync_begin(&w->c);
	for (uint64_t p = 0; p < ALL; p++)
		if (!w->hole[p]) {
			atomic_fetch_or(&w->c.a->bitmap[CARRY][p / 64], 1ULL << p % 64);
			atomic_fetch_or(&w->c.a->bitmap[NOBASE][p / 64], 1ULL << p % 64);
		}
}

/* What is equal is taken off, all else stays to be sent; marks stay until it is. */
static void test_armed(void **state)
{
	struct world *w = world_new();
	uint64_t marks;

	(void)state;
	open_resync(w);
	marks = bitmap_count(w->c.a->bitmap[NOBASE], w->c.a->bitmap_words);
	while (w->c.resync.on) {
		(void)resync_step(&w->c);
		answer(w, true);
	}
	for (uint64_t p = 0; p < ALL; p++) {
		bool differs =
		        !w->hole[p] && memcmp(at(w->here, p), at(w->there, p), MC_PAGE_SIZE) != 0;

		if ((atomic_load(&w->c.a->bitmap[CARRY][p / 64]) >> p % 64 & 1) != differs)
			fail_msg("page %d: %s", (int)p, differs ? "left out" : "not taken off");
	}
	assert_int_equal(bitmap_count(w->c.a->bitmap[NOBASE], w->c.a->bitmap_words), marks);
	bitmap_and_not(w->c.a->bitmap[NOBASE], w->c.a->bitmap[CARRY], w->c.a->bitmap_words);
	assert_int_equal(bitmap_count(w->c.a->bitmap[NOBASE], w->c.a->bitmap_words),
	                 marks - bitmap_count(w->c.a->bitmap[CARRY], w->c.a->bitmap_words));
	world_end(w);
}

/* One that says nothing isn't waited for: the policy must have its turn. */
static void test_armed_silent(void **state)
{
	struct world *w = world_new();

	(void)state;
	open_resync(w);
	assert_int_equal(resync_step(&w->c), 0);
	w->c.resync.heard -= 2 * MC_NS_PER_S;
	assert_int_equal(resync_step(&w->c), 1);
	assert_false(w->c.resync.on);
	world_end(w);
}

/* Once for what was too large, until an epoch is committed; the rest is the policy's. */
static void test_armed_once(void **state)
{
	struct world *w = world_new();
	uint64_t all;

	(void)state;
	open_resync(w);
	all = bitmap_count(w->c.a->bitmap[CARRY], w->c.a->bitmap_words);
	assert_int_equal(resync_step(&w->c), 0); /* asked */
	answer(w, false);
	assert_int_equal(resync_step(&w->c), 1);
	assert_false(w->c.resync.on);
	assert_int_equal(bitmap_count(w->c.a->bitmap[CARRY], w->c.a->bitmap_words), all);
	w->c.aborts_in_row = 2;
	assert_false(resync_wanted(&w->c));
	w->c.aborts_in_row = 0;
	assert_false(resync_wanted(&w->c));
	w->c.aborts_in_row = 1;
	w->c.abort_error = -EIO; /* nothing that a comparison helps against */
	assert_false(resync_wanted(&w->c));
	w->c.abort_error = -ENOSPC;
	atomic_store(&w->sup.control->peer_hashes, 0);
	assert_false(resync_wanted(&w->c));
	atomic_store(&w->sup.control->peer_hashes, 1);
	assert_true(resync_wanted(&w->c));
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_first_copy), cmocka_unit_test(test_no_answer),
	        cmocka_unit_test(test_successor),  cmocka_unit_test(test_pushed_not_counted),
	        cmocka_unit_test(test_armed),      cmocka_unit_test(test_armed_silent),
	        cmocka_unit_test(test_armed_once),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
