/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A successor of mc-restore: the slabs that its predecessor had in hand. */
#include <errno.h>

#include "test-standby.h"

/* Between commit and the end of applying: what was acknowledged must be there. */
static void test_killed_while_applying(void **state)
{
	struct world *w = world_new(Q35);
	unsigned hits = 0, tries = 0;

	(void)state;
	arm(w);
	/* Beside other load most kills come too late: as many tries as it takes. */
	for (; tries < 25 || (hits < 3 && tries < 1000); tries++) {
		uint64_t n = w->last + 1 + pick(w, 2);

		send_epoch(w, n, w->last, 14);
		for (uint64_t end = mc_now_ns() + PROC_LIMIT_NS; committed(w) != n;)
			assert_true(mc_now_ns() < end);
		for (volatile uint32_t spin = pick(w, 20000); spin; spin--)
			;
		proc_kill(&w->restore);
		hits += mc_journal_state(&w->tra.journal, n) != MC_EPOCH_RELEASED;
		restore_start(w);
		check_applied(w);
		assert_int_equal(mc_journal_state(&w->tra.journal, n), MC_EPOCH_RELEASED);
	}
	assert_true(hits >= 3);
	world_end(w);
}

/*
 * An epoch that trickles in: what a predecessor had decoded of it is in no ring any more, and
 * some of it may be there twice.
 */
static void test_killed_while_it_comes(void **state)
{
	struct world *w = world_new(Q35);
	uint8_t text[STATE];

	(void)state;
	arm(w);
	for (int i = 0; i < 40; i++) {
		uint64_t n = w->last + 1;

		begin_epoch(w, n, w->last, 6);
		fill_state(text, n);
		push_state(w, n, text, STATE);
		for (uint32_t k = 1; k < 6; k++) {
			push_pages(w, n, w->last, k, k * 60, 1 + pick(w, 50));
			if (pick(w, 3))
				continue;
			for (volatile uint32_t spin = pick(w, 300000); spin; spin--)
				;
			proc_kill(&w->restore);
			restore_start(w);
		}
		end_epoch(w, n);
		check_applied(w);
	}
	assert_int_equal(refused(w), 0);
	world_end(w);
}

/* Puts a finished slab of the device state of @epoch there, as a predecessor left it. */
static void leave_decoded(struct mc_arena *as, uint64_t epoch, uint32_t seq, const uint8_t *text)
{
	struct mc_slab_meta *m;
	mc_handle h;

	assert_int_equal(mc_pool_alloc(&as->slabs, epoch, false, &h), 0);
	memcpy(mc_pool_data(&as->slabs, h), text, STATE);
	m = mc_pool_meta(&as->slabs, h);
	m->seq = seq;
	m->used = STATE;
	m->stamp = h;
	m->kind = MC_KIND_STATE;
}

/*
 * Two slabs were decoded, and the third one not finished; of those in the ring the first was
 * freed, but not let go of.
 */
static void test_decoded_but_in_the_ring(void **state)
{
	struct mc_arena as;
	struct world *w = orphan(&as);
	uint8_t text[STATE];
	mc_handle h;

	(void)state;
	begin_epoch(w, 2, 1, 4);
	fill_state(text, 2);
	leave_decoded(&as, 2, 0, text);
	(void)landing(w, 2, &h);
	push_slab(w, h, 2, 0, STATE);
	assert_int_equal(mc_pool_claim(&as.slabs, h, MC_ROLE_TRANSPORT), 0);
	assert_int_equal(mc_pool_free(&as.slabs, h), 0);
	assert_int_equal(mc_pool_alloc(&as.slabs, 2, false, &h), 0);
	mc_pool_meta(&as.slabs, h)->kind = MC_KIND_PAGES;
	mc_pool_meta(&as.slabs, h)->stamp = h;
	mc_pool_meta(&as.slabs, h)->seq = 1;
	assert_int_equal(mc_pool_alloc(&as.descs, 2, false, &mc_pool_meta(&as.slabs, h)->desc), 0);
	assert_int_equal(mc_pool_alloc(&as.slabs, 2, false, &h), 0);
	mc_pool_meta(&as.slabs, h)->seq = 2;
	for (uint32_t i = 1; i < 4; i++)
		push_pages(w, 2, 1, i, i * 60, 20);
	end_epoch(w, 2);
	/* Its slab 1 was empty: what the ring has of it is not applied. */
	memcpy(w->want + 60 * MC_PAGE_SIZE, w->ram + 60 * MC_PAGE_SIZE, 20 * MC_PAGE_SIZE);
	restore_start(w);
	check_applied(w);
	assert_int_equal(refused(w), 0);
	mc_arena_done(&as);
	world_end(w);
}

/* Killed when an epoch was applied, and not all of it freed: that would stay until the next one. */
static void test_applied_but_not_freed(void **state)
{
	struct world *w = world_new(Q35);
	struct mc_slab_meta *m;
	uint8_t text[STATE];
	struct mc_arena as;
	mc_handle h;

	(void)state;
	arena_as(&as, &w->sup, MC_ROLE_RESTORE);
	arm(w);
	send_epoch(w, 2, 1, 3);
	check_applied(w);
	proc_kill(&w->restore);
	fill_state(text, 1);
	leave_decoded(&as, 1, 0, text);
	assert_int_equal(mc_pool_alloc(&as.slabs, 2, false, &h), 0);
	m = mc_pool_meta(&as.slabs, h);
	m->kind = MC_KIND_PAGES;
	m->stamp = h;
	m->seq = 1;
	assert_int_equal(mc_pool_alloc(&as.descs, 2, false, &m->desc), 0);
	restore_start(w);
	check_applied(w);
	send_epoch(w, 3, 2, 3);
	check_applied(w);
	mc_arena_done(&as);
	world_end(w);
}

static bool is_taken(void *ctx)
{
	struct world *w = ctx;

	return !mc_ring_depth(w->to.ring);
}

/* A free slab that still says of itself that it was slab @seq of epoch 2; -1: there is none. */
static int64_t stale_slab(const struct mc_arena *as, uint32_t seq)
{
	for (uint64_t i = 0; i < as->slabs.max; i++) {
		const struct mc_slab_meta *m = &as->slabs.meta[i];

		if (mc_slab_word_state(atomic_load(&as->slabs.word[i])) == MC_SLAB_FREE &&
		    m->kind == MC_KIND_PAGES && m->epoch == 2 && m->seq == seq)
			return (int64_t)i;
	}
	return -1;
}

/*
 * Killed while it allocated, in the second try of an epoch: what it had taken says of itself
 * that it is a slab of the first one.
 */
static void test_left_by_the_first_try(void **state)
{
	struct world *w = world_new(Q35);
	mc_autofree uint8_t *before = malloc(RAM_SIZE);
	uint8_t text[STATE];
	struct mc_arena as;
	int64_t found = -1;
	uint32_t seq = 1;

	(void)state;
	arena_as(&as, &w->sup, MC_ROLE_RESTORE);
	arm(w);
	memcpy(before, w->want, RAM_SIZE);
	fill_state(text, 2);
	for (int try = 0; try < 2; try++) {
		begin_epoch(w, 2, 1, 12);
		push_state(w, 2, text, STATE);
		for (uint32_t i = 1; i < 11 && try == 0; i++)
			push_pages(w, 2, 1, i, i * 60, 20);
		assert_true(wait_until(&w->tra, is_taken, w));
		if (try == 0) {
			link_down(w);
			assert_int_equal(mc_journal_abort_from(&w->tra.journal, 2, -ECONNRESET), 1);
			memcpy(w->want, before, RAM_SIZE);
			link_up(w);
		}
	}
	/* Dead, so that nothing moves any more; slab 0 of the second try was decoded before. */
	proc_kill(&w->restore);
	for (; seq < 11 && found < 0; seq++)
		found = stale_slab(&as, seq);
	assert_true(found >= 0);
	atomic_store(&as.slabs.word[found],
	             mc_slab_word(MC_SLAB_OWNED, MC_ROLE_RESTORE,
	                          mc_slab_word_gen(atomic_load(&as.slabs.word[found])) + 1, 2));
	for (uint32_t i = 1; i < 12; i++)
		push_pages(w, 2, 1, i, i * 60, 20);
	end_epoch(w, 2);
	restore_start(w);
	check_applied(w);
	mc_arena_done(&as);
	world_end(w);
}

/* Killed after it had decoded a second device state, before it could refuse it. */
static void test_two_states(void **state)
{
	struct mc_arena as;
	struct world *w = orphan(&as);
	uint8_t text[STATE], *to;
	mc_handle h;

	(void)state;
	begin_epoch(w, 2, 1, 2);
	fill_state(text, 2);
	leave_decoded(&as, 2, 0, text);
	leave_decoded(&as, 2, 1, text);
	to = landing(w, 2, &h);
	push_slab(w, h, 2, 1, test_state(to, 2, 1, text, STATE));
	end_epoch(w, 2);
	restore_start(w);
	assert_true(wait_until(&w->tra, second_is_aborted, w));
	assert_int_equal(committed(w), 1);
	assert_int_equal(refused(w), 1);
	mc_arena_done(&as);
	world_end(w);
}

/* The epoch is being begun: how many slabs it has isn't there yet. */
static void test_just_begun(void **state)
{
	struct mc_arena as;
	struct world *w = orphan(&as);
	uint8_t text[STATE];

	(void)state;
	fill_state(text, 2);
	leave_decoded(&as, 2, 0, text);
	assert_int_equal(mc_journal_rebegin(&w->tra.journal, 2), 0);
	restore_start(w);
	mc_arena_ring(&w->tra, MC_ROLE_RESTORE);
	usleep(50000); /* nothing is to happen */
	assert_int_equal(mc_journal_state(&w->tra.journal, 2), MC_EPOCH_CAPTURING);
	atomic_store(&mc_journal_get(&w->tra.journal, 2)->base, 1);
	atomic_store(&mc_journal_get(&w->tra.journal, 2)->slabs, 2);
	push_state(w, 2, text, STATE);
	push_pages(w, 2, 1, 1, 60, 20);
	end_epoch(w, 2);
	check_applied(w);
	assert_int_equal(refused(w), 0);
	mc_arena_done(&as);
	world_end(w);
}

/* A predecessor had thrown away part of a first try when the second one began. */
static void test_rest_of_a_first_try(void **state)
{
	mc_autofree uint8_t *before = malloc(RAM_SIZE);
	struct world *w = world_new(Q35);
	uint8_t text[STATE];
	struct mc_ring_end in;
	struct mc_arena as;
	mc_handle h;

	(void)state;
	arena_as(&as, &w->sup, MC_ROLE_RESTORE);
	arm(w);
	memcpy(before, w->want, RAM_SIZE);
	proc_kill(&w->restore);
	begin_epoch(w, 2, 1, 6);
	fill_state(text, 2);
	push_state(w, 2, text, STATE);
	for (uint32_t i = 1; i < 4; i++)
		push_pages(w, 2, 1, i, i * 60, 20);
	assert_int_equal(mc_journal_abort_from(&w->tra.journal, 2, -ECONNRESET), 1);
	assert_int_equal(mc_ring_attach_consumer(&in, as.ring_restore, as.ring_slots), 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(mc_ring_peek(&in, 0, &h), 1);
		assert_int_equal(mc_pool_claim(&as.slabs, h, MC_ROLE_TRANSPORT), 0);
		assert_int_equal(mc_pool_free(&as.slabs, h), 0);
		mc_ring_advance(&in, 1);
	}
	memcpy(w->want, before, RAM_SIZE);
	send_epoch(w, 2, 1, 6);
	restore_start(w);
	check_applied(w);
	assert_int_equal(refused(w), 0);
	mc_arena_done(&as);
	world_end(w);
}

/* Freed, but still in the ring: its place may belong to somebody else by now. */
static void test_freed_but_in_the_ring(void **state)
{
	struct mc_arena as;
	struct world *w = orphan(&as);
	mc_handle h, other;

	(void)state;
	(void)landing(w, 1, &h);
	push_slab(w, h, 1, 0, 100);
	assert_int_equal(mc_pool_claim(&as.slabs, h, MC_ROLE_TRANSPORT), 0);
	assert_int_equal(mc_pool_free(&as.slabs, h), 0);
	(void)landing(w, 2, &other);
	send_epoch(w, 2, 1, 3);
	restore_start(w);
	assert_true(wait_until(&w->tra, second_is_released, w));
	assert_int_equal(mc_pool_free(&w->tra.slabs, other), 0); /* untouched, still ours */
	check_applied(w);
	mc_arena_done(&as);
	world_end(w);
}

/* Decoded slabs that aren't what was verified: the standby must not run them. */
static void test_damaged_in_memory(void **state)
{
	struct mc_arena as;
	struct world *w = orphan(&as);
	struct mc_slab_meta *m;
	mc_handle h;

	(void)state;
	assert_int_equal(mc_pool_alloc(&as.slabs, 2, false, &h), 0);
	m = mc_pool_meta(&as.slabs, h);
	m->kind = MC_KIND_PAGES;
	m->stamp = h;
	m->pages = 1;
	m->used = MC_PAGE_SIZE;
	assert_int_equal(mc_pool_alloc(&as.descs, 2, false, &m->desc), 0);
	*(struct mc_page_desc *)mc_pool_data(&as.descs, m->desc) =
	        (struct mc_page_desc){.offset = RAM_SIZE};
	assert_int_equal(mc_commit_advance(as.control, TERM, 2), 0);
	restore_start(w);
	assert_true(wait_until(&w->tra, is_stopped, w));
	assert_true(atomic_load(&w->sup.control->commit) & MC_COMMIT_DISARMED);
	assert_non_null(strstr(w->sup.control->refusal, "damaged"));
	check_ram(w);
	mc_arena_done(&as);
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_killed_while_applying),
	        cmocka_unit_test(test_killed_while_it_comes),
	        cmocka_unit_test(test_decoded_but_in_the_ring),
	        cmocka_unit_test(test_applied_but_not_freed),
	        cmocka_unit_test(test_left_by_the_first_try),
	        cmocka_unit_test(test_two_states),
	        cmocka_unit_test(test_just_begun),
	        cmocka_unit_test(test_rest_of_a_first_try),
	        cmocka_unit_test(test_freed_but_in_the_ring),
	        cmocka_unit_test(test_damaged_in_memory),
	};

	return cmocka_run_group_tests(tests, NULL, sweep);
}
