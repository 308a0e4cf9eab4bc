/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A successor of mc-restore: how far its predecessor had come with a commit, or a refusal. */
#include <errno.h>
#include <string.h>

#include "test-standby.h"

/* Verified, but not committed, with whatever number. */
static void test_left_at_staged(void **state)
{
	struct world *w = world_new(Q35);
	struct mc_arena as;

	(void)state;
	arena_as(&as, &w->sup, MC_ROLE_RESTORE);
	arm(w);
	for (int i = 0; i < 4; i++) {
		uint64_t n = w->last + 1 + (uint64_t)i;

		proc_kill(&w->restore);
		send_epoch(w, n, w->last, 5);
		assert_int_equal(
		        mc_journal_move(&as.journal, n, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED), 0);
		restore_start(w);
		check_applied(w);
	}
	assert_int_equal(refused(w), 0);
	mc_arena_done(&as);
	world_end(w);
}

/* The commit word moved, the journal not yet. */
static void test_left_before_the_journal(void **state)
{
	struct mc_arena as;
	struct world *w = orphan(&as);

	(void)state;
	send_epoch(w, 2, 1, 1); /* device state only: nothing to apply */
	assert_int_equal(mc_journal_move(&as.journal, 2, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED), 0);
	assert_int_equal(mc_commit_advance(as.control, TERM, 2), 0);
	restore_start(w);
	w->last = 2;
	assert_true(wait_until(&w->tra, second_is_released, w));
	assert_int_equal(atomic_load(&w->sup.control->applied), 2);
	send_epoch(w, 3, 2, 4);
	check_applied(w);
	mc_arena_done(&as);
	world_end(w);
}

/* The first commit was made, the state not moved. */
static void test_left_before_the_state(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	proc_kill(&w->restore);
	atomic_store(&w->sup.control->state, MC_STATE_SYNCING);
	restore_start(w);
	send_epoch(w, 2, 1, 4);
	check_applied(w);
	assert_int_equal(state_now(w), MC_STATE_PROTECTED);
	world_end(w);
}

/* The primary was told that an epoch is refused: no successor may commit it after all. */
static void test_refusal_was_announced(void **state)
{
	mc_autofree uint8_t *before = malloc(RAM_SIZE);
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	memcpy(before, w->want, RAM_SIZE);
	proc_kill(&w->restore);
	send_epoch(w, 2, 1, 6);
	atomic_store(&w->sup.control->nack_epoch, 2);
	restore_start(w);
	assert_true(wait_until(&w->tra, second_is_aborted, w));
	assert_int_equal(committed(w), 1);
	memcpy(w->want, before, RAM_SIZE);
	send_epoch(w, 3, 1, 6);
	check_applied(w);
	assert_int_equal(committed(w), 3);
	world_end(w);
}

/* What was refused, and sent anew since, is no reason to refuse what follows. */
static void test_refusal_is_over(void **state)
{
	mc_autofree uint8_t *before = malloc(RAM_SIZE);
	struct world *w = world_new(Q35);
	uint64_t nacks;

	(void)state;
	arm(w);
	memcpy(before, w->want, RAM_SIZE);
	begin_epoch(w, 2, 1, 2);
	push_pages(w, 2, 1, 1, 0, 5);
	end_epoch(w, 2);
	assert_true(wait_until(&w->tra, second_is_aborted, w));
	nacks = atomic_load(&w->sup.control->nacks);
	memcpy(w->want, before, RAM_SIZE);
	proc_kill(&w->restore);
	send_epoch(w, 3, 1, 6);
	restore_start(w);
	check_applied(w);
	assert_int_equal(atomic_load(&w->sup.control->nacks), nacks);
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_left_at_staged),
	        cmocka_unit_test(test_left_before_the_journal),
	        cmocka_unit_test(test_left_before_the_state),
	        cmocka_unit_test(test_refusal_was_announced),
	        cmocka_unit_test(test_refusal_is_over),
	};

	return cmocka_run_group_tests(tests, NULL, sweep);
}
