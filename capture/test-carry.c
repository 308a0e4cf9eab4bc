/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages of epochs that were aborted: the next epoch holds them all, whatever else is on its way. */
#include <errno.h>
#include <stdlib.h>

#include "../ipc/test-process.h"
#include "capture.h"

#define PAGES 4096ULL

struct world {
	struct mc_arena sup, cap, sta, tra;
	struct capture c;
};

static struct world *world_new(void)
{
	struct mc_arena_params p = {.slab_size = 1 << 20,
	                            .max_memory = 4 << 20,
	                            .ram_pages = PAGES,
	                            .side = MC_SIDE_PRIMARY};
	struct world *w = calloc(1, sizeof(*w));

	assert_int_equal(mc_arena_create(&w->sup, NULL, &p), 0);
	w->sup.config->side = MC_SIDE_PRIMARY;
	strcpy(w->sup.config->guest, "test");
	arena_as(&w->cap, &w->sup, MC_ROLE_CAPTURE);
	arena_as(&w->sta, &w->sup, mc_role_stage(0));
	arena_as(&w->tra, &w->sup, MC_ROLE_TRANSPORT);
	w->c.a = &w->cap;
	return w;
}

static void world_end(struct world *w)
{
	mc_arena_done(&w->tra);
	mc_arena_done(&w->sta);
	mc_arena_done(&w->cap);
	mc_arena_done(&w->sup);
	free(w);
}

static bool carries(struct world *w, int map, uint64_t page)
{
	return atomic_load(&w->cap.bitmap[map][page / 64]) >> page % 64 & 1;
}

/* As capture begins an epoch: page N of RAM is written in epoch N. */
static uint64_t begin(struct world *w)
{
	uint64_t n;

	carry_merge(&w->c);
	assert_int_equal(carry_number(&w->c, &n), 0);
	bitmap_clear(w->cap.bitmap[n % EPOCH_BITMAPS], w->cap.bitmap_words);
	assert_int_equal(mc_journal_begin(&w->cap.journal, n), 0);
	w->c.owner[n % EPOCH_BITMAPS] = n;
	atomic_fetch_or(&w->cap.bitmap[n % EPOCH_BITMAPS][n / 64], 1ULL << n % 64);
	return n;
}

static void advance(struct world *w, uint64_t n, enum mc_epoch_state to)
{
	if (mc_journal_state(&w->cap.journal, n) == MC_EPOCH_CAPTURING)
		assert_int_equal(
		        mc_journal_move(&w->cap.journal, n, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED),
		        0);
	if (to >= MC_EPOCH_SENT) {
		assert_int_equal(
		        mc_journal_move(&w->sta.journal, n, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED), 0);
		assert_int_equal(
		        mc_journal_move(&w->tra.journal, n, MC_EPOCH_STAGED, MC_EPOCH_SENT), 0);
	}
	if (to == MC_EPOCH_COMMITTED)
		assert_int_equal(
		        mc_journal_move(&w->tra.journal, n, MC_EPOCH_SENT, MC_EPOCH_COMMITTED), 0);
}

static void give_up(struct world *w, uint64_t n)
{
	assert_int_equal(mc_journal_abort_from(&w->cap.journal, n, -EIO), 1);
}

/* The one before is still on its way when an epoch is given up: the next one holds its pages. */
static void test_given_up_behind_one_on_its_way(void **state)
{
	struct world *w = world_new();
	uint64_t one = begin(w), two, three;

	(void)state;
	advance(w, one, MC_EPOCH_SENT);
	two = begin(w);
	give_up(w, two);
	three = begin(w);
	assert_true(carries(w, CARRY, two));
	assert_true(carries(w, NOBASE, two));
	assert_false(carries(w, CARRY, one));
	assert_int_equal(carry_base(&w->c), one);
	advance(w, three, MC_EPOCH_CAPTURED);
	assert_int_equal(carry_base(&w->c), three);
	assert_int_equal(mc_journal_move(&w->tra.journal, one, MC_EPOCH_SENT, MC_EPOCH_COMMITTED),
	                 0);
	carry_merge(&w->c);
	/* What was given up between the two is no reason to build on the older one. */
	assert_int_equal(carry_base(&w->c), three);
	world_end(w);
}

/* One that stays on its way keeps its bitmap, however many are given up meanwhile. */
static void test_many_given_up(void **state)
{
	struct world *w = world_new();
	uint64_t first = begin(w), n = 0;

	(void)state;
	advance(w, first, MC_EPOCH_SENT);
	for (int i = 0; i < 50; i++) {
		n = begin(w);
		assert_true(n % EPOCH_BITMAPS != first % EPOCH_BITMAPS);
		give_up(w, n);
	}
	carry_merge(&w->c);
	for (uint64_t k = first + 1; k <= n; k++)
		assert_int_equal(carries(w, CARRY, k), k % EPOCH_BITMAPS != first % EPOCH_BITMAPS);
	assert_false(carries(w, CARRY, first));
	/* Refused in the end: its pages are still known. */
	assert_int_equal(mc_journal_abort_from(&w->tra.journal, first, -EREMOTEIO), 1);
	carry_merge(&w->c);
	assert_true(carries(w, CARRY, first) && carries(w, NOBASE, first));
	assert_int_equal(carry_base(&w->c), 0);
	world_end(w);
}

/* As many on their way as there are bitmaps: none is free. */
static void test_all_on_their_way(void **state)
{
	struct world *w = world_new();
	uint64_t n, first = begin(w);

	(void)state;
	advance(w, first, MC_EPOCH_SENT);
	for (int i = 1; i < EPOCH_BITMAPS; i++)
		advance(w, begin(w), MC_EPOCH_SENT);
	carry_merge(&w->c);
	assert_int_equal(carry_number(&w->c, &n), -EAGAIN);
	assert_int_equal(mc_journal_move(&w->tra.journal, first, MC_EPOCH_SENT, MC_EPOCH_COMMITTED),
	                 0);
	carry_merge(&w->c);
	assert_int_equal(carry_number(&w->c, &n), 0);
	world_end(w);
}

/* A successor knows nothing but the arena: what its predecessor hadn't carried yet, it does. */
static void test_successor(void **state)
{
	struct world *w = world_new();
	uint64_t one = begin(w), two, three;
	struct capture fresh = {.a = &w->cap};

	(void)state;
	advance(w, one, MC_EPOCH_COMMITTED);
	two = begin(w);
	advance(w, two, MC_EPOCH_SENT);
	three = begin(w);
	give_up(w, three);
	w->c = fresh;
	carry_recover(&w->c);
	assert_true(carries(w, CARRY, three) && carries(w, NOBASE, three));
	assert_false(carries(w, CARRY, two) || carries(w, CARRY, one));
	assert_int_equal(carry_base(&w->c), two);
	assert_int_equal(mc_journal_abort_from(&w->tra.journal, two, -EREMOTEIO), 1);
	carry_merge(&w->c);
	assert_true(carries(w, CARRY, two));
	assert_int_equal(carry_base(&w->c), one);
	world_end(w);
}

/* Failures count wherever an epoch failed, once each, until one is committed. */
static void test_failures_in_a_row(void **state)
{
	struct world *w = world_new();
	uint64_t n;

	(void)state;
	for (unsigned i = 1; i <= 3; i++) {
		n = begin(w);
		advance(w, n, MC_EPOCH_SENT);
		assert_int_equal(mc_journal_abort_from(&w->tra.journal, n, -EFBIG), 1);
		carry_merge(&w->c);
		carry_merge(&w->c);
		assert_int_equal(w->c.aborts_in_row, i);
		assert_int_equal(w->c.abort_error, -EFBIG);
	}
	n = begin(w);
	give_up(w, n);
	carry_merge(&w->c);
	assert_int_equal(w->c.aborts_in_row, 4);
	assert_int_equal(w->c.abort_error, -EIO);
	n = begin(w);
	advance(w, n, MC_EPOCH_COMMITTED);
	carry_merge(&w->c);
	assert_int_equal(w->c.aborts_in_row, 0);
	n = begin(w);
	give_up(w, n);
	carry_merge(&w->c);
	assert_int_equal(w->c.aborts_in_row, 1);
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_given_up_behind_one_on_its_way),
	        cmocka_unit_test(test_many_given_up),
	        cmocka_unit_test(test_all_on_their_way),
	        cmocka_unit_test(test_successor),
	        cmocka_unit_test(test_failures_in_a_row),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
