/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mc-netgate with relay NICs as a process; the test plays QEMU, the world, and all other processes.
 */
#include "test-world.h"

static void test_passes_before_it_is_armed(void **state)
{
	struct world *w = world_new(MC_SIDE_PRIMARY);
	static uint8_t frame[9000], back[9000];
	struct sockaddr_un a;
	struct pollfd p = {.fd = w->qemu[1], .events = POLLIN};

	(void)state;
	for (int nic = 0; nic < NICS; nic++) {
		guest_counts(w, nic);
		world_sees(w, nic, 1);
	}
	memset(frame, 0xa5, sizeof(frame));
	assert_true(guest_sends(w, 1, frame, sizeof(frame)));
	assert_int_equal(world_gets(w, 1, back, sizeof(back), 5000), sizeof(frame));
	assert_memory_equal(frame, back, sizeof(frame));
	/* The other way, to where the guest's frames came from. */
	address(w, &a, "local", 1);
	assert_int_equal(
	        sendto(w->out[1], frame, sizeof(frame), 0, (struct sockaddr *)&a, sizeof(a)),
	        sizeof(frame));
	assert_int_equal(poll(&p, 1, 5000), 1);
	assert_int_equal(recv(w->qemu[1], back, sizeof(back), 0), sizeof(frame));
	assert_memory_equal(frame, back, sizeof(frame));
	world_end(w);
}

/* What was sent before a barrier leaves with its epoch, what came after stays. */
static void test_released_by_epoch(void **state)
{
	struct world *w = world_protected();

	(void)state;
	for (int round = 0; round < 20; round++) {
		uint64_t before[NICS];

		for (int i = 0; i < 40; i++)
			guest_counts(w, (int)((uint32_t)rand_r(&w->seed) % NICS));
		barrier(w);
		memcpy(before, w->sent, sizeof(before));
		for (int i = 0; i < 5; i++)
			guest_counts(w, i % NICS);
		for (int nic = 0; nic < NICS; nic++)
			nothing_comes(w, nic);
		commit(w, w->epoch);
		for (int nic = 0; nic < NICS; nic++)
			world_sees(w, nic, before[nic]);
		assert_true(wait_until(&w->cap, is_released, w));
	}
	world_end(w);
}

/* A receiver that is slow to take what was released gets all of it. */
static void test_slow_receiver(void **state)
{
	struct world *w = world_protected();

	(void)state;
	/* More than a socket of the world's has room for (net.unix.max_dgram_qlen, 4096 at most).
	 */
	for (int i = 0; i < 5000; i++)
		guest_counts(w, 0);
	barrier(w);
	commit(w, w->epoch);
	assert_true(wait_until(&w->cap, is_released, w));
	world_sees(w, 0, 5000);
	assert_int_equal(mc_metric_get(&w->sup.metrics[MC_ROLE_NETGATE], MC_M_PURGED), 0);
	world_end(w);
}

/* Frames for a guest that stands still wait until it takes them. */
static void test_guest_stands_still(void **state)
{
	struct world *w = world_protected();
	struct numbered f = {.number = 0};
	struct sockaddr_un a;

	(void)state;
	guest_counts(w, 1); /* tells where it is */
	barrier(w);
	commit(w, w->epoch);
	world_sees(w, 1, 1);
	address(w, &a, "local", 1);
	/* Until nobody has taken anything for a while. */
	for (int idle = 0; idle < 20;) {
		assert_true(f.number < 100000); /* somebody throws them away */
		f.number++;
		if (sendto(w->out[1], &f, sizeof(f), MSG_DONTWAIT, (struct sockaddr *)&a,
		           sizeof(a)) == (ssize_t)sizeof(f)) {
			idle = 0;
			continue;
		}
		f.number--;
		idle++;
		usleep(10000);
	}
	assert_true(f.number > 20);
	for (uint64_t i = 1; i <= f.number; i++) {
		struct pollfd p = {.fd = w->qemu[1], .events = POLLIN};
		struct numbered got;

		assert_int_equal(poll(&p, 1, 5000), 1);
		assert_int_equal(recv(w->qemu[1], &got, sizeof(got), 0), sizeof(got));
		assert_int_equal(got.number, i);
	}
	assert_int_equal(mc_metric_get(&w->sup.metrics[MC_ROLE_NETGATE], MC_M_PURGED), 0);
	world_end(w);
}

/* Two epochs in flight, the first aborted: its frames leave with the second. */
static void test_aborted_epoch(void **state)
{
	struct world *w = world_protected();

	(void)state;
	guest_counts(w, 0);
	barrier(w);
	guest_counts(w, 0);
	assert_int_equal(mc_journal_abort_from(&w->cap.journal, w->epoch, -EIO), 1);
	mc_arena_ring_all(&w->cap);
	nothing_comes(w, 0);
	barrier(w);
	guest_counts(w, 0);
	commit(w, w->epoch);
	world_sees(w, 0, 2);
	nothing_comes(w, 0);
	world_end(w);
}

/* A commit that is heard of after the lease releases nothing until the lease is renewed. */
static void test_lease(void **state)
{
	struct world *w = world_protected();

	(void)state;
	guest_counts(w, 0);
	barrier(w);
	atomic_store(&w->sup.control->lease_until, mc_now_ns() - 1);
	commit(w, w->epoch);
	nothing_comes(w, 0);
	lease(w, 60000);
	mc_arena_ring_all(&w->tra);
	world_sees(w, 0, 1);
	world_end(w);
}

static void test_limit(void **state)
{
	struct world *w = world_protected();
	struct mc_metrics_block *m = &w->sup.metrics[MC_ROLE_NETGATE];
	uint8_t frame[1000] = {0};
	struct numbered f = {0};

	(void)state;
	atomic_store(&w->sup.config->gate_limit, 5500);
	mc_arena_ring_all(&w->sup);
	for (int i = 0; i < 9; i++) {
		f.number = ++w->sent[0];
		memcpy(frame, &f, sizeof(f));
		assert_true(guest_sends(w, 0, frame, sizeof(frame)));
	}
	barrier(w);
	assert_int_equal(mc_metric_get(m, MC_M_HELD_PACKETS), 5);
	assert_int_equal(mc_metric_get(m, MC_M_HELD_BYTES), 5000);
	assert_int_equal(mc_metric_get(m, MC_M_GATE_DROPS), 4);
	commit(w, w->epoch);
	world_sees(w, 0, 5);
	assert_true(wait_until(&w->cap, is_released, w));
	assert_int_equal(mc_metric_get(m, MC_M_HELD_PACKETS), 0);
	assert_int_equal(mc_metric_get(m, MC_M_LEAKS), 0);
	world_end(w);
}

/*
 * Killed at any moment, again and again: no frame beyond the newest committed barrier ever
 * comes out, in order, and a successor goes on releasing.
 */
static void test_killed(void **state)
{
	struct world *w = world_protected();
	uint64_t marked[NICS];

	(void)state;
	for (int round = 0; round < 40; round++) {
		bool kill_now = rand_r(&w->seed) % 2, kill_later = rand_r(&w->seed) % 2;

		for (int i = 0; i < 30; i++)
			guest_counts(w, i % NICS);
		if (kill_now) {
			proc_kill(&w->gate);
			gate_start(w);
		}
		for (int i = 0; i < 10; i++)
			guest_counts(w, i % NICS);
		barrier(w);
		memcpy(marked, w->sent, sizeof(marked));
		for (int i = 0; i < 10; i++)
			guest_counts(w, i % NICS);
		if (kill_later)
			proc_kill(&w->gate);
		commit(w, w->epoch);
		if (kill_later)
			gate_start(w);
		assert_true(wait_until(&w->cap, is_released, w));
		for (int nic = 0; nic < NICS; nic++) {
			world_reads(w, nic);
			if (w->seen[nic] > marked[nic])
				fail_msg("NIC %d: frame %llu is out, the barrier was at %llu", nic,
				         (unsigned long long)w->seen[nic],
				         (unsigned long long)marked[nic]);
		}
	}
	for (int nic = 0; nic < NICS; nic++)
		assert_true(w->seen[nic] > 100);
	world_end(w);
}

/* Commits that no gate saw: none may stay COMMITTED, or its slot is never free again. */
static void test_away_for_long(void **state)
{
	struct world *w = world_protected();

	(void)state;
	proc_kill(&w->gate);
	for (int i = 0; i < 40; i++) {
		assert_int_equal(mc_journal_begin(&w->cap.journal, ++w->epoch), 0);
		commit(w, w->epoch);
	}
	gate_start(w);
	assert_true(wait_until(&w->cap, is_released, w));
	for (uint64_t n = 1; n <= w->epoch; n++)
		assert_int_equal(mc_journal_state(&w->sup.journal, n), MC_EPOCH_RELEASED);
	world_end(w);
}

static void move(struct world *w, enum mc_role role, enum mc_state from, enum mc_state to)
{
	assert_int_equal(mc_state_move(w->sup.control, w->sup.config->side, role, from, to,
	                               MC_REASON_RESOLVED),
	                 0);
	mc_arena_ring_all(&w->sup);
}

/* HELD holds; DEGRADED lets everything out, held frames first. */
static void test_degraded(void **state)
{
	struct world *w = world_protected();

	(void)state;
	guest_counts(w, 0);
	barrier(w);
	guest_counts(w, 0);
	move(w, MC_ROLE_CAPTURE, MC_STATE_PROTECTED, MC_STATE_HELD);
	nothing_comes(w, 0);
	move(w, MC_ROLE_SUPERVISOR, MC_STATE_HELD, MC_STATE_DEGRADED);
	world_sees(w, 0, 2);
	guest_counts(w, 0);
	world_sees(w, 0, 3);
	world_end(w);
}

/* The backup took over: what this guest held, and whatever it still says, is discarded. */
static void test_taken_over(void **state)
{
	struct world *w = world_protected();

	(void)state;
	guest_counts(w, 0);
	barrier(w);
	guest_counts(w, 0);
	atomic_store(&w->sup.control->peer_taken, 1);
	move(w, MC_ROLE_TRANSPORT, MC_STATE_PROTECTED, MC_STATE_STOPPED);
	nothing_comes(w, 0);
	guest_counts(w, 0);
	nothing_comes(w, 0);
	proc_kill(&w->gate);
	gate_start(w);
	guest_counts(w, 0);
	nothing_comes(w, 0);
	world_end(w);
}

/* A standby's gate is shut both ways until it runs the guest. */
static void test_backup(void **state)
{
	struct world *w = world_new(MC_SIDE_BACKUP);
	struct mc_control *c = w->sup.control;
	struct pollfd p = {.fd = w->qemu[0], .events = POLLIN};
	struct sockaddr_un a;

	(void)state;
	guest_counts(w, 0);
	nothing_comes(w, 0);
	address(w, &a, "local", 0);
	assert_int_equal(sendto(w->out[0], "in", 2, 0, (struct sockaddr *)&a, sizeof(a)), 2);
	assert_int_equal(poll(&p, 1, 50), 0);
	move(w, MC_ROLE_TRANSPORT, MC_STATE_WAITING, MC_STATE_SYNCING);
	assert_int_equal(mc_commit_reset(c, 3), 0);
	assert_int_equal(mc_commit_advance(c, 3, 1), 0);
	move(w, MC_ROLE_RESTORE, MC_STATE_SYNCING, MC_STATE_PROTECTED);
	move(w, MC_ROLE_RESTORE, MC_STATE_PROTECTED, MC_STATE_TAKING_OVER);
	guest_counts(w, 0);
	nothing_comes(w, 0);
	assert_int_equal(mc_commit_take(c), 0);
	move(w, MC_ROLE_RESTORE, MC_STATE_TAKING_OVER, MC_STATE_ACTIVE);
	/* The bell says when: a frame of before may still be read, and is discarded. */
	for (int i = 0; i < 100 && !w->seen[0]; i++) {
		guest_counts(w, 0);
		(void)poll(NULL, 0, 10);
		world_reads(w, 0);
	}
	assert_true(w->seen[0] > 2);
	assert_int_equal(sendto(w->out[0], "in", 2, 0, (struct sockaddr *)&a, sizeof(a)), 2);
	assert_int_equal(poll(&p, 1, 5000), 1);
	world_end(w);
}

static bool is_stopped(void *ctx)
{
	return mc_state_of(atomic_load(&((struct world *)ctx)->sup.control->state)) ==
	       MC_STATE_STOPPED;
}

/* A NIC that can't be opened: refused by name, nothing is armed. */
static void test_cant_open(void **state)
{
	struct world *w = world_prepare(MC_SIDE_PRIMARY);
	struct mc_control *c = w->sup.control;

	(void)state;
	snprintf(w->sup.config->nic[1].path, sizeof(w->sup.config->nic[1].path),
	         "%s/no/such/folder", w->dir);
	proc_start(&w->gate, &w->sup, MC_ROLE_NETGATE);
	assert_true(wait_until(&w->cap, is_stopped, w));
	assert_false(is_ready(w));
	assert_non_null(strstr(c->refusal, "n1"));
	assert_non_null(strstr(c->refusal, "no/such/folder"));
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_passes_before_it_is_armed),
	        cmocka_unit_test(test_released_by_epoch),
	        cmocka_unit_test(test_slow_receiver),
	        cmocka_unit_test(test_guest_stands_still),
	        cmocka_unit_test(test_aborted_epoch),
	        cmocka_unit_test(test_lease),
	        cmocka_unit_test(test_limit),
	        cmocka_unit_test(test_killed),
	        cmocka_unit_test(test_away_for_long),
	        cmocka_unit_test(test_degraded),
	        cmocka_unit_test(test_taken_over),
	        cmocka_unit_test(test_backup),
	        cmocka_unit_test(test_cant_open),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
