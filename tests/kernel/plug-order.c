/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which packets come out, and when. */
#include "plug.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "../../ipc/util.h"

static void all_protocols_are_held_in_order(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_PASS);
	guest_sends_run(&g, 0, 1, 12);
	world_gets(&g, 0, 1, 12);
	set_mode(&g, 0, GATE_HOLD);
	guest_sends_run(&g, 0, 13, 24);
	world_gets(&g, 0, 1, 0);
	assert_int_equal(barrier(&g, 0, 1), 1);
	guest_sends_run(&g, 0, 25, 36);
	world_gets(&g, 0, 1, 0);
	assert_int_equal(release(&g, 0, 1), 1);
	world_gets(&g, 0, 13, 24);
	assert_int_equal(release(&g, 0, 1), 0);
	world_gets(&g, 0, 1, 0);
	assert_int_equal(barrier(&g, 0, 2), 1);
	assert_int_equal(release(&g, 0, 2), 1);
	world_gets(&g, 0, 25, 36);
	assert_int_equal(metric(&g, MC_M_LEAKS), 0);
	rig_down(&g);
}

/* Two epochs in flight: the second has no mark of its own, and nothing is stranded. */
static void barriers_coalesce(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_HOLD);
	guest_sends_run(&g, 0, 1, 2);
	assert_int_equal(barrier(&g, 0, 1), 1);
	guest_sends_run(&g, 0, 3, 5);
	assert_int_equal(barrier(&g, 0, 2), 0);
	guest_sends_run(&g, 0, 6, 9);
	assert_int_equal(metric(&g, MC_M_COALESCED), 1);
	/* The ack of both lets out what the mark covers. */
	assert_int_equal(release(&g, 0, 2), 1);
	world_gets(&g, 0, 1, 2);
	assert_int_equal(barrier(&g, 0, 3), 1);
	guest_sends_run(&g, 0, 10, 11);
	/* A late ack of an older epoch lets nothing out. */
	assert_int_equal(release(&g, 0, 2), 0);
	world_gets(&g, 0, 1, 0);
	assert_int_equal(release(&g, 0, 3), 1);
	world_gets(&g, 0, 3, 9);
	/* Epoch 4 is aborted: its mark counts for 5. */
	assert_int_equal(barrier(&g, 0, 4), 1);
	guest_sends_run(&g, 0, 12, 13);
	assert_int_equal(barrier(&g, 0, 5), 0);
	assert_int_equal(release(&g, 0, 5), 1);
	world_gets(&g, 0, 10, 11);
	set_mode(&g, 0, GATE_PASS);
	world_gets(&g, 0, 12, 13);
	assert_int_equal(metric(&g, MC_M_LEAKS), 0);
	rig_down(&g);
}

static void shut_discards_both_ways(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	assert_true(guest_hears(&g, 0));
	rig_open(&g, 0, GATE_SHUT);
	guest_sends_run(&g, 0, 1, 6);
	assert_false(guest_hears(&g, 0));
	world_gets(&g, 0, 1, 0);
	/* A takeover. */
	set_mode(&g, 0, GATE_PASS);
	guest_sends_run(&g, 0, 7, 12);
	world_gets(&g, 0, 7, 12);
	assert_true(guest_hears(&g, 0));
	/* What is held when it is shut again never comes out. */
	set_mode(&g, 0, GATE_HOLD);
	assert_true(guest_hears(&g, 0));
	guest_sends_run(&g, 0, 13, 18);
	assert_int_equal(barrier(&g, 0, 1), 1);
	set_mode(&g, 0, GATE_SHUT);
	assert_false(guest_hears(&g, 0));
	set_mode(&g, 0, GATE_HOLD);
	assert_int_equal(release(&g, 0, 1), 0);
	world_gets(&g, 0, 1, 0);
	guest_sends_run(&g, 0, 19, 20);
	assert_int_equal(barrier(&g, 0, 2), 1);
	assert_int_equal(release(&g, 0, 2), 1);
	world_gets(&g, 0, 19, 20);
	rig_down(&g);
}

static void two_nics_are_independent(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 2);
	rig_open(&g, 0, GATE_HOLD);
	rig_open(&g, 1, GATE_HOLD);
	guest_sends_run(&g, 0, 1, 4);
	guest_sends_run(&g, 1, 1, 6);
	assert_int_equal(barrier(&g, 0, 1), 1);
	assert_int_equal(barrier(&g, 1, 1), 1);
	guest_sends_run(&g, 0, 5, 6);
	guest_sends_run(&g, 1, 7, 8);
	assert_int_equal(release(&g, 1, 1), 1);
	world_gets(&g, 0, 1, 0);
	world_gets(&g, 1, 1, 6);
	assert_int_equal(release(&g, 0, 1), 1);
	world_gets(&g, 0, 1, 4);
	world_gets(&g, 1, 1, 0);
	rig_down(&g);
}

/* What goes beyond the limit is dropped, counted, and the rest keeps its epochs. */
static void limit_is_counted_and_changes(void **state)
{
	struct rig g;
	struct nl_qdisc_info q;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_HOLD);
	assert_int_equal(g.nic[0]->ops->set_limit(g.nic[0], 65536), 0);
	for (uint32_t n = 1; n <= 100; n++)
		guest_sends_sized(&g, 0, n, 1286); /* 1300 bytes: 50 fit */
	assert_int_equal(barrier(&g, 0, 1), 1);
	assert_int_equal(metric(&g, MC_M_GATE_DROPS), 50);
	assert_int_equal(metric(&g, MC_M_HELD_PACKETS), 50);
	assert_int_equal(metric(&g, MC_M_HELD_BYTES), 50 * 1300);
	guest_sends_sized(&g, 0, 101, 1286);
	assert_int_equal(g.nic[0]->ops->set_limit(g.nic[0], 1 << 20), 0);
	for (uint32_t n = 51; n <= 60; n++)
		guest_sends_sized(&g, 0, n, 1286);
	assert_int_equal(release(&g, 0, 1), 1);
	world_gets(&g, 0, 1, 50);
	assert_int_equal(barrier(&g, 0, 2), 1);
	assert_int_equal(release(&g, 0, 2), 1);
	world_gets(&g, 0, 51, 60);
	assert_int_equal(plug_stats(to_plug(g.nic[0]), &q), 0);
	assert_int_equal(metric(&g, MC_M_GATE_DROPS), 51);
	assert_int_equal(metric(&g, MC_M_HELD_PACKETS), 0);
	assert_int_equal(metric(&g, MC_M_LEAKS), 0);
	rig_down(&g);
}

/* --- a guest that never stops but in its pauses -------------------------------------------- */

#define CYCLES 400

struct load {
	struct rig *g;
	pthread_mutex_t pause;
	_Atomic bool stop;
	_Atomic uint32_t sent; /* numbers 1..sent were written */
};

static void *guest_thread(void *ctx)
{
	struct load *l = ctx;

	while (!atomic_load(&l->stop)) {
		uint32_t n = atomic_load(&l->sent) + 1;

		pthread_mutex_lock(&l->pause);
		guest_sends(l->g, 0, n, (enum kind)(n % KINDS));
		atomic_store(&l->sent, n);
		pthread_mutex_unlock(&l->pause);
		if (n % 16 == 0)
			sched_yield();
	}
	return NULL;
}

struct seen {
	uint32_t next;
	uint32_t allowed; /* numbers up to this may have come */
};

/* Takes what has come; none beyond what was committed, none missing or out of order. */
static void look(struct rig *g, struct seen *s, int ms)
{
	int64_t n;

	while (s->next <= s->allowed && (n = world_takes(g, 0, ms)) >= 0) {
		assert_int_equal(n, s->next);
		s->next++;
	}
	if (s->next > s->allowed && (n = world_takes(g, 0, 0)) >= 0)
		fail_msg("frame %lld came, only %u may", (long long)n, s->allowed);
}

static void nothing_early_nothing_stranded_under_load(void **state)
{
	struct load l = {.pause = PTHREAD_MUTEX_INITIALIZER};
	struct rig g;
	struct seen s = {.next = 1};
	uint32_t mark = 0;
	pthread_t t;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_HOLD);
	l.g = &g;
	assert_int_equal(pthread_create(&t, NULL, guest_thread, &l), 0);
	for (uint64_t e = 1; e <= CYCLES; e++) {
		int r;

		pthread_mutex_lock(&l.pause);
		r = barrier(&g, 0, e);
		assert_true(r >= 0);
		if (r)
			mark = atomic_load(&l.sent);
		pthread_mutex_unlock(&l.pause);
		look(&g, &s, 0);
		if (e % 3 == 0)
			continue; /* not acked before the next pause */
		s.allowed = mark;
		assert_true(release(&g, 0, e) >= 0);
		look(&g, &s, 0);
	}
	atomic_store(&l.stop, true);
	pthread_join(t, NULL);
	/* Two more epochs and all is out. */
	for (uint64_t e = CYCLES + 1; e <= CYCLES + 2; e++) {
		s.allowed = mark;
		(void)release(&g, 0, e - 1);
		look(&g, &s, 5000);
		assert_int_equal(barrier(&g, 0, e), 1);
		mark = atomic_load(&l.sent);
	}
	s.allowed = mark;
	assert_int_equal(release(&g, 0, CYCLES + 2), 1);
	look(&g, &s, 5000);
	assert_int_equal(s.next, atomic_load(&l.sent) + 1);
	assert_int_equal(metric(&g, MC_M_LEAKS), 0);
	assert_int_equal(metric(&g, MC_M_GATE_DROPS), 0);
	rig_down(&g);
}

const struct CMUnitTest plug_order_tests[] = {
        cmocka_unit_test(all_protocols_are_held_in_order),
        cmocka_unit_test(barriers_coalesce),
        cmocka_unit_test(shut_discards_both_ways),
        cmocka_unit_test(two_nics_are_independent),
        cmocka_unit_test(limit_is_counted_and_changes),
        cmocka_unit_test(nothing_early_nothing_stranded_under_load),
};
const size_t n_plug_order_tests = MC_ARRAY_SIZE(plug_order_tests);
