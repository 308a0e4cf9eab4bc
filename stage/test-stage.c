/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mc-stage as a process; the test plays capture and transport, and kills it. */
#include "test-world.h"

static void run_epochs(unsigned workers)
{
	struct world *w = world_new(workers);

	for (int i = 0; i < 80; i++) {
		capture(w);
		if (i % 2 && !wait_until(&w->tra, committed_all, w))
			fail_msg("epoch %d isn't encoded", (int)w->base);
	}
	assert_int_equal(w->repeats, 0);
	check_ram(w);
	assert_true(wait_until(&w->tra, nothing_owned, w));
	world_end(w);
}

static void test_one_worker(void **state)
{
	(void)state;
	run_epochs(1);
}

static void test_three_workers(void **state)
{
	(void)state;
	run_epochs(3);
}

/* Killed at any moment: no page is lost, and every slab comes back to the pool. */
static void test_killed_again_and_again(void **state)
{
	struct world *w = world_new(2);

	(void)state;
	atomic_store(&w->sup.config->zstd_level, 7);
	for (int i = 0; i < 60; i++) {
		unsigned victim = pick(w, 2);

		capture(w);
		(void)poll(NULL, 0, (int)pick(w, 2)); /* somewhere in the work */
		for (volatile uint32_t spin = pick(w, 2000000); spin; spin--)
			;
		proc_kill(&w->worker[victim]);
		if (pick(w, 2))
			capture(w);
		start(w, victim);
		if (!wait_until(&w->tra, committed_all, w))
			fail_msg("epoch %d isn't encoded after a kill", (int)w->base);
	}
	check_ram(w);
	assert_true(wait_until(&w->tra, nothing_owned, w));
	world_end(w);
}

static void test_aborted_before_it_was_encoded(void **state)
{
	struct world *w = world_new(1);
	uint64_t n;

	(void)state;
	capture(w);
	assert_true(wait_until(&w->tra, committed_all, w));
	kill(w->worker[0].pid, SIGSTOP);
	n = capture(w);
	assert_int_equal(mc_journal_abort_from(&w->cap.journal, n, -ECANCELED), 1);
	merge_aborted(w, n);
	kill(w->worker[0].pid, SIGCONT);
	mc_arena_ring_all(&w->cap);
	assert_true(wait_until(&w->tra, nothing_owned, w));
	capture(w);
	assert_true(wait_until(&w->tra, committed_all, w));
	check_ram(w);
	assert_true(wait_until(&w->tra, nothing_owned, w));
	world_end(w);
}

static bool is_staged(void *ctx)
{
	struct world *w = ctx;

	return mc_journal_state(&w->tra.journal, w->base) == MC_EPOCH_STAGED;
}

/* The shadow knows what the backup never got. */
static void test_aborted_after_it_was_encoded(void **state)
{
	struct world *w = world_new(2);

	(void)state;
	for (int i = 0; i < 10; i++) {
		uint64_t n;

		capture(w);
		assert_true(wait_until(&w->tra, committed_all, w));
		n = capture(w);
		assert_true(wait_until(&w->tra, is_staged, w));
		collect(w);
		assert_int_equal(mc_journal_abort_from(&w->tra.journal, n, -EREMOTEIO), 1);
		drop_sent(w, sent_of(w, n));
		merge_aborted(w, n);
	}
	capture(w);
	assert_true(wait_until(&w->tra, committed_all, w));
	check_ram(w);
	assert_true(wait_until(&w->tra, nothing_owned, w));
	world_end(w);
}

static bool last_is_aborted(void *ctx)
{
	struct world *w = ctx;
	uint64_t n = atomic_load(&w->cap.journal.shm->last_begun);

	return mc_journal_state(&w->cap.journal, n) == MC_EPOCH_ABORTED;
}

/* Begun a moment after its base was aborted: nobody but stage can know. */
static void test_base_is_aborted(void **state)
{
	struct world *w = world_new(1);
	uint32_t slabs;
	uint64_t n;

	(void)state;
	kill(w->worker[0].pid, SIGSTOP);
	n = capture(w);
	assert_int_equal(mc_journal_abort_from(&w->cap.journal, n, -ECANCELED), 1);
	memcpy(w->carry, w->in[n % KEPT], PAGES);
	n = hand_over(w, &slabs);
	kill(w->worker[0].pid, SIGCONT);
	mc_arena_ring_all(&w->cap);
	/* While capture still pushes, stage may neither abort it nor throw it away. */
	(void)poll(NULL, 0, 50);
	assert_int_equal(mc_journal_state(&w->cap.journal, n), MC_EPOCH_CAPTURING);
	captured(w, n, slabs);
	assert_true(wait_until(&w->cap, last_is_aborted, w));
	assert_true(wait_until(&w->tra, nothing_owned, w));
	merge_aborted(w, n - 1);
	merge_aborted(w, n);
	capture(w);
	assert_true(wait_until(&w->tra, committed_all, w));
	check_ram(w);
	assert_true(wait_until(&w->tra, nothing_owned, w));
	world_end(w);
}

static void test_nonsense_aborts_the_epoch(void **state)
{
	static const enum mc_slab_kind kinds[] = {MC_KIND_NONE, MC_KIND_ENCODED, MC_KIND_PAGES};
	struct world *w = world_new(1);

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(kinds); i++) {
		uint64_t n = begin(w);
		mc_handle h = raw_slab(w, n, 1, kinds[i]);

		state_slab(w, n);
		if (kinds[i] == MC_KIND_PAGES)
			mc_pool_meta(&w->cap.slabs, h)->pages = UINT32_MAX;
		push(w, 1, h);
		captured(w, n, 2);
		assert_true(wait_until(&w->cap, last_is_aborted, w));
		assert_true(wait_until(&w->tra, nothing_owned, w));
		w->base = 0;
	}
	world_end(w);
}

static bool is_stopped(void *ctx)
{
	struct world *w = ctx;

	return mc_state_of(atomic_load(&w->cap.control->state)) == MC_STATE_STOPPED;
}

static void test_nonsense_ends_the_first_copy(void **state)
{
	struct world *w = world_new(1);
	mc_handle h;

	(void)state;
	assert_int_equal(mc_state_move(w->sup.control, MC_SIDE_PRIMARY, MC_ROLE_SUPERVISOR,
	                               MC_STATE_NONE, MC_STATE_SYNCING, MC_REASON_STARTED),
	                 0);
	h = raw_slab(w, 0, 0, MC_KIND_NONE);
	push(w, 0, h);
	assert_true(wait_until(&w->cap, is_stopped, w));
	assert_non_null(strstr(w->sup.control->refusal, "first copy"));
	assert_true(wait_until(&w->tra, nothing_owned, w));
	world_end(w);
}

static bool three_pushed(void *ctx)
{
	struct world *w = ctx;

	return mc_ring_depth(w->tra.ring_transport[0]) == 3;
}

static void test_first_copy(void **state)
{
	struct world *w = world_new(1);
	struct mc_enc_view v;
	mc_handle h;

	(void)state;
	for (uint64_t p = 0; p < 160; p++) {
		w->carry[p] = 1;
		dirty_page(w, p);
	}
	assert_int_equal(page_slabs(w, 0, 0, w->carry), 3);
	assert_true(wait_until(&w->tra, three_pushed, w));
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(mc_ring_peek(&w->from[0], i, &h), 1);
		assert_int_equal(mc_pool_claim(&w->tra.slabs, h, MC_ROLE_STAGE0), 0);
		assert_true(backup_decode(&w->backup, mc_pool_data(&w->tra.slabs, h),
		                          mc_pool_meta(&w->tra.slabs, h)->used, &v));
		assert_int_equal(v.h.epoch, 0);
		assert_int_equal(v.h.base, 0);
		assert_int_equal(v.h.seq, i);
	}
	check_ram(w);
	/* Nothing of it is in the shadow: those rounds may be applied in any state. */
	assert_int_equal(atomic_load(&w->sup.shadow.shm->misses), 0);
	assert_true(wait_until(&w->tra, nothing_owned, w));
	world_end(w);
}

static void test_waits_for_a_slab(void **state)
{
	struct world *w = world_new(1);
	mc_handle hog[SLABS];
	int n = 0;

	(void)state;
	kill(w->worker[0].pid, SIGSTOP);
	capture(w);
	while (mc_pool_alloc(&w->cap.slabs, 99, false, &hog[n]) == 0)
		n++;
	kill(w->worker[0].pid, SIGCONT);
	mc_arena_ring_all(&w->cap);
	(void)poll(NULL, 0, 50);
	assert_int_equal(mc_journal_state(&w->cap.journal, w->base), MC_EPOCH_CAPTURED);
	while (n--)
		assert_int_equal(mc_pool_free(&w->cap.slabs, hog[n]), 0);
	mc_arena_ring_all(&w->cap);
	assert_true(wait_until(&w->tra, committed_all, w));
	check_ram(w);
	assert_true(wait_until(&w->tra, nothing_owned, w));
	world_end(w);
}

static void test_metrics(void **state)
{
	struct world *w = world_new(1);
	const struct mc_metrics_block *m = &w->sup.metrics[MC_ROLE_STAGE0];

	(void)state;
	for (int i = 0; i < 8; i++) {
		capture(w);
		assert_true(wait_until(&w->tra, committed_all, w));
	}
	assert_true(wait_until(&w->tra, nothing_owned, w));
	assert_true(mc_metric_get(m, MC_M_ZERO_PAGES) > 0);
	assert_true(mc_metric_get(m, MC_M_DELTA_PAGES) > 0);
	assert_int_equal(mc_metric_get(m, MC_M_ENCODED_PAGES),
	                 mc_metric_get(m, MC_M_ZERO_PAGES) + mc_metric_get(m, MC_M_FULL_PAGES) +
	                         mc_metric_get(m, MC_M_DELTA_PAGES));
	assert_true(mc_metric_get(m, MC_M_BYTES_OUT) < mc_metric_get(m, MC_M_BYTES_IN));
	assert_true(mc_metric_get(m, MC_M_ENCODE_TIME) > 0);
	assert_int_equal(mc_metric_get(m, MC_M_QUEUE_DEPTH), 0);
	world_end(w);
}

static void test_not_on_a_backup(void **state)
{
	struct mc_arena_params p = {.slab_size = UNIT,
	                            .max_memory = SLABS * UNIT,
	                            .ram_pages = PAGES,
	                            .side = MC_SIDE_BACKUP};
	struct mc_arena a;
	struct proc proc;
	int status;

	(void)state;
	assert_int_equal(mc_arena_create(&a, NULL, &p), 0);
	a.config->side = MC_SIDE_BACKUP;
	strcpy(a.config->guest, "test");
	proc_start(&proc, &a, MC_ROLE_STAGE0);
	status = proc_reap(&proc);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
	assert_non_null(strstr(a.proc[MC_ROLE_STAGE0].last_words, "primary"));
	mc_arena_done(&a);
}

static bool has_signed_in(void *ctx)
{
	const struct world *w = ctx;

	return atomic_load(&w->sup.proc[MC_ROLE_STAGE0].pid) == (uint64_t)w->worker[0].pid;
}

/* A second process of the same place ends before it touches anything; a successor may come. */
static void test_place_is_taken(void **state)
{
	struct world *w = world_new(1);
	struct mc_proc *p = &w->sup.proc[MC_ROLE_STAGE0];
	struct proc second;
	int status;

	(void)state;
	assert_true(wait_until(&w->cap, has_signed_in, w));
	assert_true(mc_arena_place_taken(&w->sup, MC_ROLE_STAGE0));
	assert_false(mc_arena_place_taken(&w->sup, mc_role_stage(1)));
	proc_start(&second, &w->sup, MC_ROLE_STAGE0);
	status = proc_reap(&second);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == MC_EXIT_BUSY);
	assert_int_equal(atomic_load(&p->starts), 1);
	assert_int_equal(atomic_load(&p->pid), w->worker[0].pid);
	proc_kill(&w->worker[0]);
	assert_false(mc_arena_place_taken(&w->sup, MC_ROLE_STAGE0));
	start(w, 0);
	assert_true(wait_until(&w->cap, has_signed_in, w));
	assert_int_equal(atomic_load(&p->starts), 2);
	world_end(w);
}

/* A program of another ABI says so by its exit status, and hasn't written a word. */
static void test_other_abi(void **state)
{
	struct world *w = world_new(1);
	struct proc other;
	int status;

	(void)state;
	proc_end(&w->worker[0]);
	w->sup.header->abi = MC_ABI_VERSION + 1;
	memset(&w->sup.proc[MC_ROLE_STAGE0], 0, sizeof(struct mc_proc));
	proc_start(&other, &w->sup, MC_ROLE_STAGE0);
	status = proc_reap(&other);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == MC_EXIT_ABI);
	for (size_t i = 0; i < sizeof(struct mc_proc); i++)
		assert_int_equal(((uint8_t *)&w->sup.proc[MC_ROLE_STAGE0])[i], 0);
	world_end(w);
}

/* The loop of an idle worker turns when its bell rings. */
static bool has_turned(void *ctx)
{
	const struct world *w = ctx;

	return atomic_load(&w->sup.proc[MC_ROLE_STAGE0].heartbeat) >
	       atomic_load(&w->sup.proc[MC_ROLE_SUPERVISOR].heartbeat);
}

static void test_heartbeat(void **state)
{
	struct world *w = world_new(1);

	(void)state;
	assert_true(wait_until(&w->cap, has_signed_in, w));
	for (int i = 0; i < 20; i++) {
		/* Its own clock: what we compare with. */
		atomic_store(&w->sup.proc[MC_ROLE_SUPERVISOR].heartbeat, mc_now_ns());
		mc_bell_ring_always(w->sup.bell_fd[MC_ROLE_STAGE0]);
		assert_true(wait_until(&w->cap, has_turned, w));
	}
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_one_worker),
	        cmocka_unit_test(test_three_workers),
	        cmocka_unit_test(test_killed_again_and_again),
	        cmocka_unit_test(test_aborted_before_it_was_encoded),
	        cmocka_unit_test(test_aborted_after_it_was_encoded),
	        cmocka_unit_test(test_base_is_aborted),
	        cmocka_unit_test(test_nonsense_aborts_the_epoch),
	        cmocka_unit_test(test_nonsense_ends_the_first_copy),
	        cmocka_unit_test(test_first_copy),
	        cmocka_unit_test(test_waits_for_a_slab),
	        cmocka_unit_test(test_metrics),
	        cmocka_unit_test(test_not_on_a_backup),
	        cmocka_unit_test(test_place_is_taken),
	        cmocka_unit_test(test_other_abi),
	        cmocka_unit_test(test_heartbeat),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
