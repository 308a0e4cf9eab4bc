/* SPDX-License-Identifier: GPL-2.0-or-later */
/* First copies that break off, standbys that are gone, protections that end. */
#include <errno.h>

#include "test-standby.h"

#define Q35 STANDBY "q35,memory-backend=ram" OLD_WAY

static uint64_t word(const struct world *w)
{
	return atomic_load(&w->sup.control->commit);
}

static bool is_broken_off(void *ctx)
{
	struct world *w = ctx;

	return state_now(w) == MC_STATE_WAITING && !mc_ring_depth(w->to.ring);
}

static bool is_emptied(void *ctx)
{
	return !atomic_load(&((struct world *)ctx)->sup.control->ram_kept);
}

/* For a primary that can't compare what there is. */
static void check_empty(struct world *w)
{
	assert_true(wait_until(&w->tra, is_broken_off, w));
	atomic_store(&w->tra.control->want_empty, 1);
	mc_arena_ring_all(&w->tra);
	assert_true(wait_until(&w->tra, is_emptied, w));
	atomic_store(&w->tra.control->want_empty, 0);
	memset(w->want, 0, RAM_SIZE);
	check_ram(w);
	assert_int_equal(pool_owned(&w->sup.slabs), 0);
	assert_int_equal(pool_owned(&w->sup.descs), 0);
	assert_int_equal(atomic_load(&w->sup.control->sync_applied), 0);
	assert_int_equal(atomic_load(&w->sup.control->standby_ready), 1);
	assert_int_equal(word(w) & (MC_COMMIT_TAKEN | MC_COMMIT_DISARMED), 0);
}

static void test_attach(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct mc_control *c;

	(void)state;
	w->want = calloc(1, RAM_SIZE);
	standby_start(w, Q35);
	arena_new(w);
	memset(w->ram, 0x77, RAM_SIZE); /* firmware and what else was there */
	restore_start(w);
	assert_true(wait_until(&w->tra, is_ready, w));
	check_empty(w);
	c = w->sup.control;
	assert_int_equal(atomic_load(&c->blocks), 1);
	assert_string_equal(c->block[0].name, "ram");
	assert_int_equal(c->block[0].size, RAM_SIZE);
	assert_int_equal(atomic_load(&c->qemu_pid), w->qemu.pid);
	assert_non_null(strstr(c->description, "Machine pc-q35"));
	assert_int_equal(word(w), 0);
	world_end(w);
}

/* Whenever the link breaks before the first commit, the next primary gets an empty RAM. */
static void test_first_copy_breaks_off(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	for (uint64_t i = 0; i < 20; i++) {
		uint8_t text[STATE] = {0};

		admit(w, TERM + i);
		for (uint32_t k = 0; k < pick(w, 5); k++)
			push_sync(w, k, k * 40, 30);
		if (pick(w, 2)) {
			begin_epoch(w, 1, 0, 3);
			push_state(w, 1, text, STATE);
		}
		for (volatile uint32_t spin = pick(w, 500000); spin; spin--)
			;
		if (i % 4 == 0)
			proc_kill(&w->restore);
		(void)mc_journal_abort_from(&w->tra.journal, 1, -ECONNRESET);
		link_down(w);
		if (i % 4 == 0)
			restore_start(w);
		check_empty(w);
	}
	admit(w, TERM + 40);
	push_sync(w, 0, 500, 50);
	send_epoch(w, 1, 0, 3);
	check_applied(w);
	assert_int_equal(mc_commit_term(word(w)), TERM + 40);
	world_end(w);
}

static bool is_nacked(void *ctx)
{
	struct world *w = ctx;

	return atomic_load(&w->tra.control->nack_epoch) == UINT64_MAX && !mc_ring_depth(w->to.ring);
}

/* Lost, doubled, changed: said once; the RAM isn't emptied before the old primary is gone. */
static void test_first_copy_is_damaged(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	for (uint64_t i = 0; i < 4; i++) {
		mc_handle h;
		uint8_t *to;

		admit(w, TERM + i);
		push_sync(w, 0, 0, 30);
		switch (i) {
		case 0: /* one is missing */
			push_sync(w, 2, 40, 30);
			break;
		case 1: /* deltas have no business here */
			push_pages(w, 0, 3, 1, 40, 30);
			break;
		case 2:
			memset(landing(w, 0, &h), 0xee, UNIT);
			push_slab(w, h, 0, 1, UNIT);
			break;
		default: /* device state of epoch 0 */
			to = landing(w, 0, &h);
			push_slab(w, h, 0, 1, test_state(to, 0, 1, w->want, 99));
		}
		assert_true(wait_until(&w->tra, is_nacked, w));
		/* What was under way still comes; nothing of it is for the next copy. */
		push_sync(w, 3, 80, 30);
		assert_true(wait_until(&w->tra, is_nacked, w));
		assert_int_equal(state_now(w), MC_STATE_SYNCING);
		link_down(w);
		check_empty(w);
		assert_int_equal(atomic_load(&w->sup.control->nack_epoch), 0);
	}
	world_end(w);
}

static bool first_is_nacked(void *ctx)
{
	struct world *w = ctx;

	return atomic_load(&w->tra.control->nack_epoch) == 1;
}

/* Epoch 1 on top of a first copy of which a slab never came. */
static void test_first_copy_is_incomplete(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	admit(w, TERM);
	push_sync(w, 0, 0, 30);
	atomic_fetch_add(&w->tra.control->sync_received, 1);
	send_epoch(w, 1, 0, 2);
	assert_true(wait_until(&w->tra, first_is_nacked, w));
	assert_int_equal(committed(w), 0);
	world_end(w);
}

/* The guest died in its first copy: there is nothing to take over. */
static void test_no_takeover_before_the_first_commit(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	atomic_store(&w->sup.config->failure_timeout_ms, 100);
	atomic_store(&w->sup.config->restart_grace_ms, 10);
	admit(w, TERM);
	push_sync(w, 0, 0, 30);
	atomic_store(&w->tra.control->peer_end, MC_REASON_GUEST_DIED);
	atomic_store(&w->tra.control->want_takeover, MC_REASON_FAILOVER);
	mc_arena_ring_all(&w->tra);
	link_down(w);
	check_empty(w);
	(void)poll(NULL, 0, 200);
	assert_int_equal(word(w) & MC_COMMIT_TAKEN, 0);
	assert_int_equal(state_now(w), MC_STATE_WAITING);
	world_end(w);
}

static bool is_disarmed(void *ctx)
{
	struct world *w = ctx;

	return atomic_load(&w->tra.control->disarm_done);
}

static void check_ended(struct world *w)
{
	assert_true(wait_until(&w->tra, is_disarmed, w));
	assert_int_equal(state_now(w), MC_STATE_ENDED);
	assert_true(word(w) & MC_COMMIT_DISARMED);
	/* Silence and a broken link from now on say nothing. */
	link_down(w);
	atomic_store(&w->tra.control->last_rx, 1);
	mc_arena_ring_all(&w->tra);
	(void)poll(NULL, 0, 100);
	assert_int_equal(word(w) & MC_COMMIT_TAKEN, 0);
	assert_int_equal(state_now(w), MC_STATE_ENDED);
}

static void test_end_disarms(void **state)
{
	static const enum mc_reason why[] = {MC_REASON_UNPROTECT, MC_REASON_GUEST_SHUTDOWN,
	                                     MC_REASON_HOTPLUG};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(why); i++) {
		struct world *w = world_new(Q35);

		arm(w);
		atomic_store(&w->sup.config->restart_grace_ms, 20);
		atomic_store(&w->tra.control->peer_end, why[i]);
		mc_arena_ring_all(&w->tra);
		check_ended(w);
		assert_int_equal(mc_state_reason(atomic_load(&w->sup.control->state)), why[i]);
		world_end(w);
	}
}

/* Died between disarming and saying so; its QEMU is gone as well by now. */
static void test_end_is_finished_by_a_successor(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	proc_kill(&w->restore);
	assert_int_equal(mc_commit_disarm(w->sup.control), 0);
	assert_int_equal(mc_state_move(w->sup.control, MC_SIDE_BACKUP, MC_ROLE_RESTORE,
	                               MC_STATE_PROTECTED, MC_STATE_ENDED, MC_REASON_UNPROTECT),
	                 0);
	atomic_store(&w->tra.control->peer_end, MC_REASON_UNPROTECT);
	guest_kill(&w->qemu);
	restore_start(w);
	check_ended(w);
	world_end(w);
}

static enum mc_reason reason(const struct world *w)
{
	return mc_state_reason(atomic_load(&w->sup.control->state));
}

static void test_standby_dies(void **state)
{
	(void)state;
	for (int armed = 0; armed < 2; armed++) {
		struct world *w = world_new(Q35);

		if (armed)
			arm(w);
		guest_kill(&w->qemu);
		assert_true(wait_until(&w->tra, is_stopped, w));
		assert_int_equal(reason(w), MC_REASON_STANDBY_LOST);
		assert_true(word(w) & MC_COMMIT_DISARMED);
		assert_int_equal(atomic_load(&w->sup.control->standby_ready), 0);
		assert_non_null(strstr(w->sup.control->refusal, "ended"));
		world_end(w);
	}
}

/* Same name, same socket, same RAM file, same bytes in it: still another QEMU. */
static void test_standby_is_replaced_unseen(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	arm(w);
	proc_kill(&w->restore);
	guest_kill(&w->qemu);
	unlink(w->qemu.sock);
	guest_spawn(&w->qemu);
	guest_connect(&w->qemu);
	guest_remember(&w->qemu);
	w->qemu.q = qmp_free(w->qemu.q);
	restore_start(w);
	assert_true(wait_until(&w->tra, is_stopped, w));
	assert_int_equal(reason(w), MC_REASON_REFUSED);
	assert_non_null(strstr(w->sup.control->refusal, "restarted"));
	assert_true(word(w) & MC_COMMIT_DISARMED);
	world_end(w);
}

/* Not a standby at all: refused with what to do, its RAM untouched. */
static void test_no_standby(void **state)
{
	static const struct {
		const char *args, *word;
	} bad[] = {
	        {STANDBY "q35,memory-backend=ram", "-incoming defer"},
	        {"-m 64 -object memory-backend-file,id=ram,size=64M,mem-path=%s,share=off "
	         "-machine q35,memory-backend=ram" OLD_WAY,
	         "share=on"},
	};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(bad); i++) {
		struct world *w = calloc(1, sizeof(*w));

		w->want = calloc(1, RAM_SIZE);
		standby_start(w, bad[i].args);
		arena_new(w);
		w->ram[40 * MIB] = 1;
		restore_start(w);
		assert_true(wait_until(&w->tra, is_stopped, w));
		assert_int_equal(reason(w), MC_REASON_REFUSED);
		if (!strstr(w->sup.control->refusal, bad[i].word))
			fail_msg("refused with: %s", w->sup.control->refusal);
		assert_int_equal(w->ram[40 * MIB], 1);
		world_end(w);
	}
}

static void test_monitor_in_use(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	(void)state;
	w->want = calloc(1, RAM_SIZE);
	guest_start(&w->qemu, Q35); /* keeps the monitor */
	w->ram = mmap(NULL, RAM_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	arena_new(w);
	restore_start(w);
	assert_true(wait_until(&w->tra, is_stopped, w));
	assert_non_null(strstr(w->sup.control->refusal, "in use"));
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_attach),
	        cmocka_unit_test(test_first_copy_breaks_off),
	        cmocka_unit_test(test_first_copy_is_damaged),
	        cmocka_unit_test(test_first_copy_is_incomplete),
	        cmocka_unit_test(test_no_takeover_before_the_first_commit),
	        cmocka_unit_test(test_end_disarms),
	        cmocka_unit_test(test_end_is_finished_by_a_successor),
	        cmocka_unit_test(test_standby_dies),
	        cmocka_unit_test(test_standby_is_replaced_unseen),
	        cmocka_unit_test(test_no_standby),
	        cmocka_unit_test(test_monitor_in_use),
	};

	return cmocka_run_group_tests(tests, NULL, sweep);
}
