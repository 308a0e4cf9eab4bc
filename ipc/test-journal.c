/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Journal, guest state and commit word: who may do what. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "control.h"
#include "journal.h"

static struct mc_journal_shm shm;

static struct mc_journal as(enum mc_side side, enum mc_role role)
{
	return (struct mc_journal){.shm = &shm, .side = side, .role = role};
}

static const enum mc_role roles[] = {MC_ROLE_SUPERVISOR, MC_ROLE_CAPTURE, MC_ROLE_TRANSPORT,
                                     MC_ROLE_NETGATE,    MC_ROLE_RESTORE, MC_ROLE_STAGE0 + 3};

/* One legal way through, by side; every other role and every other step is refused. */
static void walk(enum mc_side side, const enum mc_epoch_state *path, const enum mc_role *who,
                 size_t steps)
{
	struct mc_journal j = as(side, who[0]);

	assert_int_equal(mc_journal_init(&shm, side), 0);
	assert_int_equal(mc_journal_begin(&j, 1), 0);
	for (size_t i = 1; i < steps; i++) {
		for (size_t r = 0; r < sizeof(roles) / sizeof(roles[0]); r++) {
			struct mc_journal other = as(side, roles[r]);

			if (roles[r] == who[i])
				continue;
			assert_int_equal(mc_journal_move(&other, 1, path[i - 1], path[i]), -EPERM);
		}
		j = as(side, who[i]);
		assert_int_equal(mc_journal_move(&j, 2, path[i - 1], path[i]), -ESTALE);
		assert_int_equal(mc_journal_move(&j, 1, path[i - 1], path[i]), 0);
		assert_int_equal(mc_journal_move(&j, 1, path[i - 1], path[i]), -ESTALE);
		assert_int_equal(mc_journal_state(&j, 1), path[i]);
		assert_true(atomic_load(&mc_journal_get(&j, 1)->stamp[path[i]]) > 0);
	}
}

static void test_primary_path(void **state)
{
	const enum mc_epoch_state path[] = {MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED,
	                                    MC_EPOCH_STAGED,    MC_EPOCH_SENT,
	                                    MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED};
	const enum mc_role who[] = {MC_ROLE_CAPTURE,   MC_ROLE_CAPTURE,   MC_ROLE_STAGE0 + 3,
	                            MC_ROLE_TRANSPORT, MC_ROLE_TRANSPORT, MC_ROLE_NETGATE};

	(void)state;
	walk(MC_SIDE_PRIMARY, path, who, 6);
	assert_int_equal(atomic_load(&shm.last_committed), 1);
	assert_int_equal(atomic_load(&shm.last_released), 1);
}

static void test_backup_path(void **state)
{
	const enum mc_epoch_state path[] = {MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED,
	                                    MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED};
	const enum mc_role who[] = {MC_ROLE_TRANSPORT, MC_ROLE_TRANSPORT, MC_ROLE_RESTORE,
	                            MC_ROLE_RESTORE, MC_ROLE_RESTORE};

	(void)state;
	walk(MC_SIDE_BACKUP, path, who, 5);
}

static void test_begin(void **state)
{
	struct mc_journal cap = as(MC_SIDE_PRIMARY, MC_ROLE_CAPTURE);
	struct mc_journal net = as(MC_SIDE_PRIMARY, MC_ROLE_NETGATE);

	(void)state;
	mc_journal_init(&shm, MC_SIDE_PRIMARY);
	assert_int_equal(mc_journal_begin(&net, 1), -EPERM);
	assert_int_equal(mc_journal_begin(&cap, 0), -EINVAL);
	assert_int_equal(mc_journal_begin(&cap, 5), 0);
	assert_int_equal(mc_journal_begin(&cap, 5), -EINVAL);
	assert_int_equal(mc_journal_begin(&cap, 4), -EINVAL);
	assert_int_equal(mc_journal_begin(&cap, MC_EPOCH_MAX + 1), -EINVAL);
	assert_int_equal(mc_journal_begin(&cap, UINT64_MAX), -EINVAL);
	/* The slot of an epoch on its way isn't taken from it. */
	assert_int_equal(mc_journal_begin(&cap, 5 + MC_JOURNAL_SLOTS), -EBUSY);
	assert_int_equal(mc_journal_in_flight(&cap), 1);
	assert_int_equal(mc_journal_rebegin(&cap, 5), -EPERM);
}

/* Aborting an epoch aborts all later ones; after SENT only transport may. */
static void test_abort(void **state)
{
	struct mc_journal cap = as(MC_SIDE_PRIMARY, MC_ROLE_CAPTURE);
	struct mc_journal stg = as(MC_SIDE_PRIMARY, MC_ROLE_STAGE0);
	struct mc_journal tra = as(MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT);

	(void)state;
	mc_journal_init(&shm, MC_SIDE_PRIMARY);
	for (uint64_t n = 1; n <= 3; n++)
		assert_int_equal(mc_journal_begin(&cap, n), 0);
	mc_journal_move(&cap, 1, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED);
	mc_journal_move(&stg, 1, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED);
	mc_journal_move(&tra, 1, MC_EPOCH_STAGED, MC_EPOCH_SENT);
	assert_int_equal(mc_journal_abort_from(&cap, 1, -EIO), -EPERM);
	assert_int_equal(mc_journal_state(&cap, 1), MC_EPOCH_SENT);
	assert_int_equal(mc_journal_abort_from(&cap, 2, -EIO), 2);
	assert_int_equal(mc_journal_state(&cap, 3), MC_EPOCH_ABORTED);
	assert_int_equal(atomic_load(&mc_journal_get(&cap, 2)->reason), EIO);
	assert_int_equal(mc_journal_abort_from(&tra, 1, -EIO), 1);
	assert_int_equal(mc_journal_in_flight(&cap), 0);
}

static void test_rebegin(void **state)
{
	struct mc_journal tra = as(MC_SIDE_BACKUP, MC_ROLE_TRANSPORT);
	struct mc_journal res = as(MC_SIDE_BACKUP, MC_ROLE_RESTORE);

	(void)state;
	mc_journal_init(&shm, MC_SIDE_BACKUP);
	assert_int_equal(mc_journal_rebegin(&tra, 1), 0);
	assert_int_equal(mc_journal_rebegin(&tra, 1), -EBUSY);
	assert_int_equal(mc_journal_abort_from(&tra, 1, -EIO), 1);
	assert_int_equal(mc_journal_rebegin(&tra, 1), 0);
	mc_journal_move(&tra, 1, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED);
	mc_journal_move(&res, 1, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED);
	mc_journal_move(&res, 1, MC_EPOCH_STAGED, MC_EPOCH_COMMITTED);
	/* What is committed is never received again. */
	assert_int_equal(mc_journal_rebegin(&tra, 1), -EINVAL);
}

static void test_completion(void **state)
{
	static struct mc_journal_record r;

	(void)state;
	assert_false(mc_journal_mark(&r, 0)); /* the number isn't known yet */
	atomic_store(&r.slabs, 66);
	for (uint32_t i = 1; i < 65; i++)
		assert_false(mc_journal_mark(&r, i));
	assert_false(mc_journal_mark(&r, 64)); /* again */
	assert_true(mc_journal_mark(&r, 65));
	assert_false(mc_journal_mark(&r, MC_EPOCH_SLABS_MAX));
	atomic_store(&r.slabs, MC_EPOCH_SLABS_MAX + 1);
	assert_false(mc_journal_complete(&r));
}

/* --- control.h ------------------------------------------------------------------------- */

static struct mc_control ctl;

static void test_commit_word(void **state)
{
	(void)state;
	atomic_store(&ctl.commit, 0);
	assert_int_equal(mc_commit_take(&ctl), -EPERM); /* nothing committed */
	assert_int_equal(mc_commit_reset(&ctl, 7), 0);
	assert_int_equal(mc_commit_advance(&ctl, 6, 1), -EPERM);
	assert_int_equal(mc_commit_advance(&ctl, 7, 1), 0);
	assert_int_equal(mc_commit_advance(&ctl, 7, 1), -EPERM);
	assert_int_equal(mc_commit_reset(&ctl, 8), -EPERM); /* armed */
	assert_int_equal(mc_commit_take(&ctl), 0);
	assert_int_equal(mc_commit_take(&ctl), -EALREADY);
	assert_int_equal(mc_commit_advance(&ctl, 7, 2), -EPERM);
	assert_int_equal(mc_commit_disarm(&ctl), -EPERM);
	assert_int_equal(mc_commit_epoch(atomic_load(&ctl.commit)), 1);

	atomic_store(&ctl.commit, mc_commit_word(9, 4));
	assert_int_equal(mc_commit_disarm(&ctl), 0);
	assert_int_equal(mc_commit_disarm(&ctl), 0);
	assert_int_equal(mc_commit_take(&ctl), -EPERM);
	assert_int_equal(mc_commit_advance(&ctl, 9, 5), -EPERM);
	assert_int_equal(mc_commit_reset(&ctl, 10), 0);
	assert_int_equal(mc_commit_term(atomic_load(&ctl.commit)), 10);
}

static void test_states(void **state)
{
	(void)state;
	atomic_store(&ctl.state, 0);
	assert_int_equal(mc_state_move(&ctl, MC_SIDE_PRIMARY, MC_ROLE_CAPTURE, MC_STATE_NONE,
	                               MC_STATE_SYNCING, 0),
	                 -EPERM);
	assert_int_equal(mc_state_move(&ctl, MC_SIDE_PRIMARY, MC_ROLE_SUPERVISOR, MC_STATE_NONE,
	                               MC_STATE_SYNCING, MC_REASON_STARTED),
	                 0);
	assert_int_equal(mc_state_move(&ctl, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT, MC_STATE_HELD,
	                               MC_STATE_PROTECTED, 0),
	                 -ESTALE);
	/* Only restore takes over, and only on a backup. */
	atomic_store(&ctl.state, MC_STATE_PROTECTED);
	for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++)
		assert_int_equal(mc_state_move(&ctl, MC_SIDE_PRIMARY, roles[i], MC_STATE_PROTECTED,
		                               MC_STATE_TAKING_OVER, 0),
		                 -EPERM);
	assert_int_equal(mc_state_move(&ctl, MC_SIDE_BACKUP, MC_ROLE_SUPERVISOR, MC_STATE_PROTECTED,
	                               MC_STATE_TAKING_OVER, 0),
	                 -EPERM);
	assert_int_equal(mc_state_move(&ctl, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_PROTECTED,
	                               MC_STATE_TAKING_OVER, MC_REASON_SILENCE),
	                 0);
	assert_int_equal(mc_state_reason(atomic_load(&ctl.state)), MC_REASON_SILENCE);
	for (int s = 0; s < MC_STATES; s++)
		assert_string_not_equal(mc_state_name((enum mc_state)s), "?");
	for (int r = 0; r < MC_REASONS; r++)
		assert_string_not_equal(mc_reason_name((enum mc_reason)r), "?");
}

/* A peer's numbers may leap: what is older than the newest by more than the slots is aborted, too.
 */
static void test_abort_behind_a_leap(void **state)
{
	struct mc_journal tra = as(MC_SIDE_BACKUP, MC_ROLE_TRANSPORT);

	(void)state;
	mc_journal_init(&shm, MC_SIDE_BACKUP);
	assert_int_equal(mc_journal_rebegin(&tra, 1000000), 0);
	assert_int_equal(mc_journal_abort_from(&tra, 1000000, -EPROTO), 1);
	assert_int_equal(mc_journal_rebegin(&tra, 2), 0);
	assert_int_equal(mc_journal_abort_from(&tra, 2, -EPROTO), 1);
	assert_int_equal(mc_journal_state(&tra, 2), MC_EPOCH_ABORTED);
	assert_int_equal(mc_journal_rebegin(&tra, 2), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_primary_path),
	        cmocka_unit_test(test_backup_path),
	        cmocka_unit_test(test_abort_behind_a_leap),
	        cmocka_unit_test(test_begin),
	        cmocka_unit_test(test_abort),
	        cmocka_unit_test(test_rebegin),
	        cmocka_unit_test(test_completion),
	        cmocka_unit_test(test_commit_word),
	        cmocka_unit_test(test_states),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
