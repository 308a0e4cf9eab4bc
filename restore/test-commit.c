/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Epochs on their way into a standby's RAM: whole ones only, whoever dies. */
#include <errno.h>

#include "test-standby.h"

static void test_first_copy_and_epochs(void **state)
{
	struct world *w = world_new(Q35);
	const struct mc_metrics_block *m = &w->sup.metrics[MC_ROLE_RESTORE];

	(void)state;
	arm(w);
	for (uint64_t n = 2; n < 60; n++) {
		send_epoch(w, n, n - 1, 1 + pick(w, 6));
		/* Every other one comes while the one before is still being worked on. */
		if (n % 2)
			check_applied(w);
	}
	check_applied(w);
	assert_int_equal(mc_journal_state(&w->tra.journal, w->last), MC_EPOCH_RELEASED);
	assert_int_equal(mc_metric_get(m, MC_M_COMMITS), 59);
	assert_int_equal(mc_metric_get(m, MC_M_REFUSED_EPOCHS), 0);
	assert_true(mc_metric_get(m, MC_M_DECODED_PAGES) > 0);
	world_end(w);
}

/* Epoch numbers with gaps, as after aborts on the primary. */
static void test_skipped_numbers(void **state)
{
	struct world *w = world_new(Q35);
	uint64_t base = 1;

	(void)state;
	arm(w);
	for (uint64_t n = 3; n < 200; n += 1 + pick(w, 5)) {
		send_epoch(w, n, base, 3);
		check_applied(w);
		base = n;
	}
	world_end(w);
}

/* A primary that begins the last epoch there can be, and gives it up: the next ones go on. */
static void test_leap_to_the_end(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	begin_epoch(w, MC_EPOCH_MAX, 1, 3);
	(void)mc_journal_abort_from(&w->tra.journal, MC_EPOCH_MAX, -ECONNRESET);
	mc_arena_ring_all(&w->tra);
	for (uint64_t n = 2; n < 6; n++) {
		send_epoch(w, n, n - 1, 3);
		check_applied(w);
	}
	world_end(w);
}

/* Killed at any moment: commits never go back, and in the end everything is there. */
static void test_killed_again_and_again(void **state)
{
	struct world *w = world_new(Q35);
	uint64_t seen = 0;

	(void)state;
	arm(w);
	for (int i = 0; i < 50; i++) {
		uint64_t n = w->last + 1 + pick(w, 2), base = w->last;

		send_epoch(w, n, base, 1 + pick(w, 7));
		if (pick(w, 2)) {
			send_epoch(w, n + 1, n, 2);
		}
		for (volatile uint32_t spin = pick(w, 1500000); spin; spin--)
			;
		proc_kill(&w->restore);
		assert_true(committed(w) >= seen);
		seen = committed(w);
		restore_start(w);
		check_applied(w);
	}
	assert_int_equal(mc_metric_get(&w->sup.metrics[MC_ROLE_RESTORE], MC_M_REFUSED_EPOCHS), 0);
	assert_int_equal(state_now(w), MC_STATE_PROTECTED);
	world_end(w);
}

static void test_killed_in_the_first_copy(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	admit(w, TERM);
	for (uint32_t i = 0; i < 24; i++) {
		push_sync(w, i, i * 40, 40);
		for (volatile uint32_t spin = pick(w, 300000); spin; spin--)
			;
		if (i % 3 == 2) {
			proc_kill(&w->restore);
			restore_start(w);
		}
	}
	send_epoch(w, 1, 0, 4);
	check_applied(w);
	assert_int_equal(atomic_load(&w->sup.control->sync_applied), 24);
	world_end(w);
}

/* --- refusals -------------------------------------------------------------------------- */

/* It is announced before it is done. */
static bool is_nacked(void *ctx)
{
	struct world *w = ctx;

	return atomic_load(&w->tra.control->nack_epoch) == w->last &&
	       mc_journal_state(&w->tra.journal, w->last) == MC_EPOCH_ABORTED &&
	       !mc_ring_depth(w->to.ring);
}

/* The epoch sent last must be refused without a trace; the next one builds on the one before. */
static void check_refused(struct world *w, uint64_t good, const uint8_t *before)
{
	uint64_t n = w->last;

	if (!wait_until(&w->tra, is_nacked, w))
		fail_msg("epoch %d isn't refused: %s, committed %d", (int)n,
		         mc_epoch_state_name(mc_journal_state(&w->tra.journal, n)),
		         (int)committed(w));
	assert_int_equal(mc_journal_state(&w->tra.journal, n), MC_EPOCH_ABORTED);
	assert_int_equal(committed(w), good);
	memcpy(w->want, before, RAM_SIZE);
	check_ram(w);
	assert_int_equal(pool_owned(&w->sup.slabs), 1);
	send_epoch(w, n + 1, good, 3);
	check_applied(w);
}

static void no_state(struct world *w, uint64_t n)
{
	begin_epoch(w, n, w->last, 1);
	push_pages(w, n, w->last, 0, 3, 5);
}

static void two_states(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};
	mc_handle h;
	uint8_t *to;

	begin_epoch(w, n, w->last, 2);
	push_state(w, n, state, STATE);
	to = landing(w, n, &h);
	push_slab(w, h, n, 1, test_state(to, n, 1, state, STATE));
}

static void missing_slab(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};

	begin_epoch(w, n, w->last, 3);
	push_state(w, n, state, STATE);
	push_pages(w, n, w->last, 1, 3, 5);
}

static void missing_all(struct world *w, uint64_t n)
{
	begin_epoch(w, n, w->last, 3);
}

static void wrong_order(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};

	begin_epoch(w, n, w->last, 3);
	push_state(w, n, state, STATE);
	push_pages(w, n, w->last, 2, 3, 5);
	push_pages(w, n, w->last, 1, 20, 5);
}

static void wrong_base(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};

	begin_epoch(w, n, w->last - 1, 1);
	push_state(w, n, state, STATE);
}

static void no_slabs(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};

	begin_epoch(w, n, w->last, 0);
	push_state(w, n, state, STATE);
}

static void too_many_slabs(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};

	begin_epoch(w, n, w->last, MC_EPOCH_SLABS_MAX + 1);
	push_state(w, n, state, STATE);
}

static void delta_of_something_else(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};

	begin_epoch(w, n, w->last, 2);
	push_state(w, n, state, STATE);
	/* As if an epoch in between had been lost. */
	for (uint64_t i = 0; i < 20 * MC_PAGE_SIZE; i++)
		w->want[i] ^= 1;
	push_pages(w, n, w->last, 1, 0, 20);
}

static void garbage(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};
	mc_handle h;
	uint8_t *to;

	begin_epoch(w, n, w->last, 2);
	push_state(w, n, state, STATE);
	to = landing(w, n, &h);
	memset(to, 0x5a, UNIT);
	push_slab(w, h, n, 1, UNIT);
}

static void longer_than_a_slab(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};
	mc_handle h;

	begin_epoch(w, n, w->last, 2);
	push_state(w, n, state, STATE);
	(void)landing(w, n, &h);
	push_slab(w, h, n, 1, UINT64_MAX);
}

/* The slab says another number than transport. */
static void other_number_inside(struct world *w, uint64_t n)
{
	uint8_t state[STATE] = {0};
	mc_handle h;
	uint8_t *to;

	begin_epoch(w, n, w->last, 1);
	to = landing(w, n, &h);
	push_slab(w, h, n, 0, test_state(to, n - 1, 0, state, STATE));
}

static void test_refused(void **state)
{
	static void (*const bad[])(struct world *, uint64_t) = {
	        no_state,
	        two_states,
	        missing_slab,
	        missing_all,
	        wrong_order,
	        wrong_base,
	        no_slabs,
	        garbage,
	        too_many_slabs,
	        other_number_inside,
	        delta_of_something_else,
	        longer_than_a_slab,
	};
	mc_autofree uint8_t *before = malloc(RAM_SIZE);
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	for (size_t i = 0; i < MC_ARRAY_SIZE(bad); i++) {
		uint64_t good = w->last, n = good + 1;

		memcpy(before, w->want, RAM_SIZE);
		bad[i](w, n);
		end_epoch(w, n);
		check_refused(w, good, before);
	}
	assert_int_equal(mc_metric_get(&w->sup.metrics[MC_ROLE_RESTORE], MC_M_REFUSED_EPOCHS),
	                 MC_ARRAY_SIZE(bad));
	world_end(w);
}

/* What builds on a refused epoch goes with it; the primary hears of the first one. */
static void test_refused_with_its_base(void **state)
{
	mc_autofree uint8_t *before = malloc(RAM_SIZE);
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	memcpy(before, w->want, RAM_SIZE);
	garbage(w, 2);
	end_epoch(w, 2);
	assert_true(wait_until(&w->tra, is_nacked, w));
	/* On the wire already when the NACK went out. */
	send_epoch(w, 3, 2, 3);
	w->last = 2;
	assert_true(wait_until(&w->tra, is_nacked, w));
	assert_int_equal(mc_journal_state(&w->tra.journal, 3), MC_EPOCH_ABORTED);
	w->last = 3;
	memcpy(w->want, before, RAM_SIZE);
	send_epoch(w, 4, 1, 3);
	check_applied(w);
	world_end(w);
}

/* --- links that break ------------------------------------------------------------------ */

static void half_an_epoch(struct world *w, uint64_t n, uint32_t upto)
{
	uint8_t state[STATE];

	begin_epoch(w, n, w->last, 6);
	fill_state(state, n);
	push_state(w, n, state, STATE);
	for (uint32_t i = 1; i < upto; i++)
		push_pages(w, n, w->last, i, i * 60, 20);
}

/* Broken off in the middle and sent again under the same number, at all speeds. */
static void test_sent_again(void **state)
{
	mc_autofree uint8_t *before = malloc(RAM_SIZE);
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	for (int i = 0; i < 60; i++) {
		uint64_t n = w->last + 1;

		memcpy(before, w->want, RAM_SIZE);
		half_an_epoch(w, n, 1 + pick(w, 6));
		for (volatile uint32_t spin = pick(w, 600000); spin; spin--)
			;
		link_down(w);
		assert_int_equal(mc_journal_abort_from(&w->tra.journal, n, -ECONNRESET), 1);
		mc_arena_ring(&w->tra, MC_ROLE_RESTORE);
		for (volatile uint32_t spin = pick(w, 60000); spin; spin--)
			;
		memcpy(w->want, before, RAM_SIZE);
		link_up(w);
		send_epoch(w, n, n - 1, 6);
		check_applied(w);
	}
	assert_int_equal(mc_metric_get(&w->sup.metrics[MC_ROLE_RESTORE], MC_M_REFUSED_EPOCHS), 0);
	world_end(w);
}

/* --- memory ---------------------------------------------------------------------------- */

static bool is_taken(void *ctx)
{
	struct world *w = ctx;

	return !mc_ring_depth(w->to.ring) && pool_owned(&w->sup.slabs) == 5 + 1 &&
	       pool_owned(&w->sup.descs) == 4;
}

/* What was decoded is held once, while the rest of its epoch is still to come. */
static void test_held_once(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	half_an_epoch(w, 2, 5);
	assert_true(wait_until(&w->tra, is_taken, w)); /* and the device state of epoch 1 */
	push_pages(w, 2, 1, 5, 5 * 60, 20);
	end_epoch(w, 2);
	check_applied(w);
	world_end(w);
}

static void test_pool_gives_back(void **state)
{
	struct world *w = world_new(Q35);
	uint64_t peak, held;

	(void)state;
	atomic_store(&w->tra.control->peer_strikes, 3);
	arm(w);
	send_epoch(w, 2, 1, 14);
	check_applied(w);
	peak = atomic_load(&w->sup.slabs.shm->held);
	assert_true(peak >= 15);
	for (uint64_t n = 3; n < 40; n++) {
		send_epoch(w, n, n - 1, 2);
		check_applied(w);
	}
	held = atomic_load(&w->sup.slabs.shm->held);
	if (held > peak / 2)
		fail_msg("%d slabs held, %d at the peak", (int)held, (int)peak);
	assert_true(atomic_load(&w->sup.descs.shm->shrunk) > 0);
	world_end(w);
}

/* No room to decode into: refused, and taken when there is room again. */
static void test_full_pool(void **state)
{
	struct world *w = world_new(Q35);
	mc_autofree uint8_t *before = malloc(RAM_SIZE);
	mc_handle hog[SLABS];
	int n = 0;

	(void)state;
	arm(w);
	memcpy(before, w->want, RAM_SIZE);
	begin_epoch(w, 2, 1, 3);
	while (mc_pool_alloc(&w->tra.slabs, 99, false, &hog[n]) == 0)
		n++;
	for (int i = 0; i < 3; i++)
		assert_int_equal(mc_pool_free(&w->tra.slabs, hog[--n]), 0);
	kill(w->restore.pid, SIGSTOP); /* it would take one of the three */
	push_pages(w, 2, 1, 0, 0, 5);
	push_pages(w, 2, 1, 1, 100, 5);
	push_pages(w, 2, 1, 2, 200, 5);
	end_epoch(w, 2);
	kill(w->restore.pid, SIGCONT);
	assert_true(wait_until(&w->tra, is_nacked, w));
	while (n)
		assert_int_equal(mc_pool_free(&w->tra.slabs, hog[--n]), 0);
	check_refused(w, 1, before);
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_first_copy_and_epochs),
	        cmocka_unit_test(test_skipped_numbers),
	        cmocka_unit_test(test_leap_to_the_end),
	        cmocka_unit_test(test_killed_again_and_again),
	        cmocka_unit_test(test_killed_in_the_first_copy),
	        cmocka_unit_test(test_refused),
	        cmocka_unit_test(test_refused_with_its_base),
	        cmocka_unit_test(test_sent_again),
	        cmocka_unit_test(test_held_once),
	        cmocka_unit_test(test_pool_gives_back),
	        cmocka_unit_test(test_full_pool),
	};

	return cmocka_run_group_tests(tests, NULL, sweep);
}
