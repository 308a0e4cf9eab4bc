/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The state table and the commit word: who may do what, and who wins a race. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "control.h"
#include "util.h"

static const enum mc_role roles[] = {MC_ROLE_SUPERVISOR, MC_ROLE_CAPTURE, MC_ROLE_TRANSPORT,
                                     MC_ROLE_NETGATE,    MC_ROLE_RESTORE, MC_ROLE_STAGE0};

static struct mc_control c;

static int try_move(enum mc_side side, enum mc_role role, enum mc_state from, enum mc_state to)
{
	atomic_store(&c.state, (uint64_t)from);
	return mc_state_move(&c, side, role, from, to, MC_REASON_RESOLVED);
}

/* Roles that may make a move, as bits. */
static unsigned who(enum mc_side side, enum mc_state from, enum mc_state to)
{
	unsigned mask = 0;

	for (size_t i = 0; i < MC_ARRAY_SIZE(roles); i++)
		if (try_move(side, roles[i], from, to) == 0)
			mask |= 1U << roles[i];
	return mask;
}

static void test_who_may_move(void **state)
{
	(void)state;
	for (int to = 0; to < MC_STATES; to++) {
		/* What has ended or stopped stays so; a survivor only ends. */
		assert_int_equal(who(MC_SIDE_PRIMARY, MC_STATE_STOPPED, (enum mc_state)to), 0);
		assert_int_equal(who(MC_SIDE_PRIMARY, MC_STATE_ENDED, (enum mc_state)to), 0);
		assert_int_equal(who(MC_SIDE_BACKUP, MC_STATE_STOPPED, (enum mc_state)to), 0);
		assert_int_equal(who(MC_SIDE_BACKUP, MC_STATE_ENDED, (enum mc_state)to), 0);
		if (to != MC_STATE_ENDED)
			assert_int_equal(who(MC_SIDE_BACKUP, MC_STATE_ACTIVE, (enum mc_state)to),
			                 0);
	}
	for (int from = 0; from < MC_STATES; from++) {
		/* Only restore takes over; only capture holds the guest, or a
		 * switchover; only an ACK protects for the first time. */
		assert_int_equal(who(MC_SIDE_BACKUP, (enum mc_state)from, MC_STATE_TAKING_OVER),
		                 from == MC_STATE_PROTECTED ? 1U << MC_ROLE_RESTORE : 0);
		assert_int_equal(who(MC_SIDE_BACKUP, (enum mc_state)from, MC_STATE_ACTIVE),
		                 from == MC_STATE_TAKING_OVER ? 1U << MC_ROLE_RESTORE : 0);
		assert_int_equal(who(MC_SIDE_PRIMARY, (enum mc_state)from, MC_STATE_HELD),
		                 from == MC_STATE_SYNCING ? 1U << MC_ROLE_CAPTURE
		                 : from == MC_STATE_PROTECTED
		                         ? 1U << MC_ROLE_CAPTURE | 1U << MC_ROLE_TRANSPORT
		                         : 0);
		assert_int_equal(who(MC_SIDE_PRIMARY, (enum mc_state)from, MC_STATE_PROTECTED),
		                 from == MC_STATE_SYNCING ? 1U << MC_ROLE_TRANSPORT
		                 : from == MC_STATE_HELD
		                         ? 1U << MC_ROLE_TRANSPORT | 1U << MC_ROLE_CAPTURE |
		                                   1U << MC_ROLE_SUPERVISOR
		                         : 0);
	}
}

static void test_move_needs_its_from(void **state)
{
	(void)state;
	atomic_store(&c.state, MC_STATE_HELD);
	assert_int_equal(mc_state_move(&c, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT, MC_STATE_SYNCING,
	                               MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT),
	                 -ESTALE);
	assert_int_equal(mc_state_of(atomic_load(&c.state)), MC_STATE_HELD);
	assert_int_equal(mc_state_move(&c, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT, MC_STATE_HELD,
	                               MC_STATE_PROTECTED, MC_REASON_PEER_BACK),
	                 0);
	assert_int_equal(mc_state_reason(atomic_load(&c.state)), MC_REASON_PEER_BACK);
}

static void test_names(void **state)
{
	(void)state;
	for (int s = 0; s < MC_STATES; s++)
		assert_string_not_equal(mc_state_name((enum mc_state)s), "?");
	for (int r = 0; r < MC_REASONS; r++) {
		assert_non_null(mc_reason_name((enum mc_reason)r));
		assert_string_not_equal(mc_reason_name((enum mc_reason)r), "?");
	}
	assert_string_equal(mc_state_name(MC_STATES), "?");
	assert_string_equal(mc_reason_name(MC_REASONS), "?");
}

static void test_commit_word(void **state)
{
	(void)state;
	atomic_store(&c.commit, 0);
	assert_int_equal(mc_commit_take(&c), -EPERM); /* never before the first commit */
	assert_int_equal(mc_commit_reset(&c, 7), 0);
	assert_int_equal(mc_commit_take(&c), -EPERM);
	assert_int_equal(mc_commit_advance(&c, 6, 1), -EPERM); /* another term */
	assert_int_equal(mc_commit_advance(&c, 7, 3), 0);
	assert_int_equal(mc_commit_advance(&c, 7, 3), -EPERM); /* not newer */
	assert_int_equal(mc_commit_advance(&c, 7, 2), -EPERM);
	assert_int_equal(mc_commit_reset(&c, 8), -EPERM); /* armed: never a first copy into it */
	assert_int_equal(mc_commit_term(atomic_load(&c.commit)), 7);
	assert_int_equal(mc_commit_epoch(atomic_load(&c.commit)), 3);
	assert_int_equal(mc_commit_take(&c), 0);
	assert_int_equal(mc_commit_take(&c), -EALREADY);
	assert_int_equal(mc_commit_advance(&c, 7, 4), -EPERM);
	assert_int_equal(mc_commit_disarm(&c), -EPERM);
	assert_int_equal(mc_commit_reset(&c, 9), -EPERM);
	assert_int_equal(mc_commit_epoch(atomic_load(&c.commit)), 3);
}

static void test_disarmed(void **state)
{
	(void)state;
	atomic_store(&c.commit, mc_commit_word(7, 3));
	assert_int_equal(mc_commit_disarm(&c), 0);
	assert_int_equal(mc_commit_disarm(&c), 0);
	assert_int_equal(mc_commit_take(&c), -EPERM);
	assert_int_equal(mc_commit_advance(&c, 7, 4), -EPERM);
	assert_int_equal(mc_commit_reset(&c, 8), 0);
	assert_int_equal(mc_commit_advance(&c, 8, 1), 0);
	assert_int_equal(mc_commit_take(&c), 0);
}

static void test_largest(void **state)
{
	(void)state;
	atomic_store(&c.commit, 0);
	assert_int_equal(mc_commit_reset(&c, (1 << 20) - 1), 0);
	assert_int_equal(mc_commit_advance(&c, (1 << 20) - 1, MC_EPOCH_MAX), 0);
	assert_int_equal(mc_commit_epoch(atomic_load(&c.commit)), MC_EPOCH_MAX);
	assert_int_equal(mc_commit_term(atomic_load(&c.commit)), (1 << 20) - 1);
	assert_int_equal(atomic_load(&c.commit) & (MC_COMMIT_TAKEN | MC_COMMIT_DISARMED), 0);
}

/*
 * One process commits as fast as it can, the other takes over or disarms at some moment: what
 * was acknowledged (written to *acked after the CAS) is never above what is in the word then.
 */
static void race(int (*against)(struct mc_control *), uint64_t bit)
{
	struct shared {
		struct mc_control c;
		_Atomic uint64_t acked;
	} *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t word;
	pid_t pid;

	assert_true(s != MAP_FAILED);
	atomic_store(&s->c.commit, mc_commit_word(5, 1));
	pid = fork();
	if (!pid) {
		for (uint64_t n = 2; mc_commit_advance(&s->c, 5, n) == 0; n++)
			atomic_store(&s->acked, n);
		_exit(0);
	}
	while (atomic_load(&s->acked) < 1000)
		;
	assert_int_equal(against(&s->c), 0);
	word = atomic_load(&s->c.commit);
	assert_true(word & bit);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(atomic_load(&s->acked), mc_commit_epoch(word));
	assert_int_equal(atomic_load(&s->c.commit), word);
	munmap(s, sizeof(*s));
}

static void test_race_of_commit_and_takeover(void **state)
{
	(void)state;
	for (int i = 0; i < 50; i++) {
		race(mc_commit_take, MC_COMMIT_TAKEN);
		race(mc_commit_disarm, MC_COMMIT_DISARMED);
	}
}

static void test_refusal_ends(void **state)
{
	char text[MC_WHY_MAX * 2];

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	mc_control_refuse(&c, "%s", text);
	assert_int_equal(strlen(c.refusal), MC_WHY_MAX - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_who_may_move),
	        cmocka_unit_test(test_move_needs_its_from),
	        cmocka_unit_test(test_names),
	        cmocka_unit_test(test_commit_word),
	        cmocka_unit_test(test_disarmed),
	        cmocka_unit_test(test_largest),
	        cmocka_unit_test(test_race_of_commit_and_takeover),
	        cmocka_unit_test(test_refusal_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
