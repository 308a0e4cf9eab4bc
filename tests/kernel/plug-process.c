/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mc-netgate as a process, confined, with two taps; the test plays all other processes. */
#include "plug.h"

#include <errno.h>
#include <net/if.h>
#include <stdlib.h>

#include "../../ipc/test-process.h"

struct world {
	struct rig g;
	struct mc_arena sup, cap, sta, tra;
	struct proc gate;
	uint64_t epoch;
	char *before;
};

static bool is_ready(void *ctx)
{
	return atomic_load(&((struct world *)ctx)->sup.control->gate_ready);
}

static void gate_start(struct world *w)
{
	atomic_store(&w->sup.control->gate_ready, 0);
	proc_start(&w->gate, &w->sup, MC_ROLE_NETGATE);
	if (!wait_until(&w->cap, is_ready, w))
		fail_msg("the gate isn't ready: %s", w->sup.control->refusal);
}

static void world_prepare(struct world *w, enum mc_side side)
{
	struct mc_arena_params p = {
	        .slab_size = 1 << 20, .max_memory = 4 << 20, .ram_pages = 4096, .side = side};
	struct mc_config *c;

	memset(w, 0, sizeof(*w));
	rig_up(&w->g, NICS_MAX);
	w->before = network_state();
	assert_int_equal(mc_arena_create(&w->sup, NULL, &p), 0);
	c = w->sup.config;
	c->side = side;
	strcpy(c->guest, "test");
	c->gate = MC_GATE_PLUG;
	c->nnics = NICS_MAX;
	for (int i = 0; i < NICS_MAX; i++) {
		c->nic[i].kind = MC_GATE_PLUG;
		strcpy(c->nic[i].tap, w->g.port[i].tap);
	}
	arena_as(&w->cap, &w->sup, MC_ROLE_CAPTURE);
	arena_as(&w->sta, &w->sup, mc_role_stage(0));
	arena_as(&w->tra, &w->sup, MC_ROLE_TRANSPORT);
	assert_int_equal(
	        mc_state_move(w->sup.control, side, MC_ROLE_SUPERVISOR, MC_STATE_NONE,
	                      side == MC_SIDE_PRIMARY ? MC_STATE_SYNCING : MC_STATE_WAITING,
	                      MC_REASON_STARTED),
	        0);
}

static void world_end(struct world *w)
{
	if (w->gate.pid)
		proc_end(&w->gate);
	mc_arena_done(&w->tra);
	mc_arena_done(&w->sta);
	mc_arena_done(&w->cap);
	mc_arena_done(&w->sup);
	free(w->before);
	rig_down(&w->g);
}

static bool barrier_is_over(void *ctx)
{
	struct world *w = ctx;
	struct mc_control *c = w->sup.control;

	return atomic_load(&c->barrier_done) >= w->epoch ||
	       atomic_load(&c->barrier_failed) >= w->epoch;
}

/* 0, or the epoch can't be used. */
static int epoch_barrier(struct world *w)
{
	struct mc_control *c = w->sup.control;

	if (++w->epoch == 1)
		atomic_store(&c->armed_epoch, 1);
	assert_int_equal(mc_journal_begin(&w->cap.journal, w->epoch), 0);
	atomic_store(&c->barrier_req, w->epoch);
	mc_arena_ring(&w->cap, MC_ROLE_NETGATE);
	assert_true(wait_until(&w->cap, barrier_is_over, w));
	return atomic_load(&c->barrier_done) >= w->epoch ? 0 : -ECANCELED;
}

static void commit(struct world *w, uint64_t n)
{
	atomic_store(&w->sup.control->lease_until, mc_now_ns() + 10 * MC_NS_PER_S);
	assert_int_equal(mc_journal_move(&w->cap.journal, n, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED),
	                 0);
	assert_int_equal(mc_journal_move(&w->sta.journal, n, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED),
	                 0);
	assert_int_equal(mc_journal_move(&w->tra.journal, n, MC_EPOCH_STAGED, MC_EPOCH_SENT), 0);
	assert_int_equal(mc_journal_move(&w->tra.journal, n, MC_EPOCH_SENT, MC_EPOCH_COMMITTED), 0);
	if (n == 1)
		assert_int_equal(mc_state_move(w->tra.control, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT,
		                               MC_STATE_SYNCING, MC_STATE_PROTECTED,
		                               MC_REASON_FIRST_COMMIT),
		                 0);
	mc_arena_ring_all(&w->tra);
}

static uint64_t gate_metric(struct world *w, enum mc_metric m)
{
	return mc_metric_get(&w->sup.metrics[MC_ROLE_NETGATE], m);
}

/* A whole protection: passes, holds from its first epoch on, killed, ended, nothing left. */
static void protection_from_begin_to_end(void **state)
{
	struct world w;

	(void)state;
	world_prepare(&w, MC_SIDE_PRIMARY);
	gate_start(&w);
	guest_sends_run(&w.g, 0, 1, 6);
	world_gets(&w.g, 0, 1, 6);
	assert_int_equal(epoch_barrier(&w), 0);
	guest_sends_run(&w.g, 0, 7, 8);
	guest_sends_run(&w.g, 1, 1, 2);
	world_gets(&w.g, 0, 1, 0);
	commit(&w, 1);
	world_gets(&w.g, 0, 1, 0);
	assert_int_equal(epoch_barrier(&w), 0);
	guest_sends_run(&w.g, 0, 9, 9);
	/* Killed with an epoch outstanding: the kernel goes on holding, the successor releases. */
	proc_kill(&w.gate);
	guest_sends_run(&w.g, 0, 10, 12);
	world_gets(&w.g, 0, 1, 0);
	gate_start(&w);
	world_gets(&w.g, 0, 1, 0);
	commit(&w, 2);
	world_gets(&w.g, 0, 7, 8);
	world_gets(&w.g, 1, 1, 2);
	assert_int_equal(epoch_barrier(&w), 0);
	commit(&w, 3);
	world_gets(&w.g, 0, 9, 12);
	assert_int_equal(gate_metric(&w, MC_M_LEAKS), 0);
	assert_true(gate_metric(&w, MC_M_RELEASES) > 0);
	assert_true(atomic_load(&w.sup.metrics[MC_ROLE_NETGATE].hist[MC_H_NETLINK].count) > 0);
	/* A restart in good order leaves the gate shut as well. */
	guest_sends_run(&w.g, 0, 13, 14);
	proc_end(&w.gate);
	world_gets(&w.g, 0, 1, 0);
	gate_start(&w);
	/* The backup has acknowledged the end: what is held leaves, and the gate goes. */
	atomic_store(&w.sup.control->end_acked, 1);
	assert_int_equal(mc_state_move(w.tra.control, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT,
	                               MC_STATE_PROTECTED, MC_STATE_ENDED, MC_REASON_UNPROTECT),
	                 0);
	mc_arena_ring_all(&w.tra);
	world_gets(&w.g, 0, 13, 14);
	proc_end(&w.gate);
	network_is_still(w.before);
	guest_sends_run(&w.g, 0, 15, 20);
	world_gets(&w.g, 0, 15, 20);
	world_end(&w);
}

/* A NIC that flaps fails the epoch of both; the next one is good. */
static void one_nic_fails_the_epoch(void **state)
{
	struct world w;

	(void)state;
	world_prepare(&w, MC_SIDE_PRIMARY);
	gate_start(&w);
	assert_int_equal(epoch_barrier(&w), 0);
	commit(&w, 1);
	guest_sends_run(&w.g, 0, 1, 2);
	guest_sends_run(&w.g, 1, 1, 2);
	assert_int_equal(
	        nl_link_set_up(&w.g.other, (int)atomic_load(&w.sup.control->gate[1].ifb), false),
	        0);
	assert_int_equal(epoch_barrier(&w), -ECANCELED);
	assert_int_equal(
	        mc_journal_move(&w.cap.journal, w.epoch, MC_EPOCH_CAPTURING, MC_EPOCH_ABORTED), 0);
	world_gets(&w.g, 0, 1, 0);
	guest_sends_run(&w.g, 1, 3, 4);
	assert_int_equal(epoch_barrier(&w), 0);
	commit(&w, w.epoch);
	world_gets(&w.g, 0, 1, 2);
	world_gets(&w.g, 1, 3, 4);
	assert_int_equal(gate_metric(&w, MC_M_GATE_FLAPS), 1);
	assert_int_equal(gate_metric(&w, MC_M_LEAKS), 0);
	world_end(&w);
}

static bool is_open(void *ctx)
{
	struct world *w = ctx;

	guest_sends(&w->g, 0, 99, UNKNOWN);
	return world_takes(&w->g, 0, 10) == 99;
}

/* A standby's tap is silent in both directions until its takeover. */
static void standby_is_shut_until_takeover(void **state)
{
	struct world w;
	struct mc_control *c;
	struct mc_arena res;

	(void)state;
	world_prepare(&w, MC_SIDE_BACKUP);
	c = w.sup.control;
	gate_start(&w);
	guest_sends_run(&w.g, 0, 1, 6);
	world_gets(&w.g, 0, 1, 0);
	assert_false(guest_hears(&w.g, 0));
	proc_kill(&w.gate);
	guest_sends_run(&w.g, 0, 1, 6);
	world_gets(&w.g, 0, 1, 0);
	assert_false(guest_hears(&w.g, 0));
	gate_start(&w);
	arena_as(&res, &w.sup, MC_ROLE_RESTORE);
	assert_int_equal(mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_TRANSPORT, MC_STATE_WAITING,
	                               MC_STATE_SYNCING, MC_REASON_PEER_BACK),
	                 0);
	assert_int_equal(mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_SYNCING,
	                               MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT),
	                 0);
	assert_int_equal(mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_PROTECTED,
	                               MC_STATE_TAKING_OVER, MC_REASON_SILENCE),
	                 0);
	assert_false(guest_hears(&w.g, 0));
	atomic_store(&c->commit, mc_commit_word(1, 5) | MC_COMMIT_TAKEN);
	assert_int_equal(mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_TAKING_OVER,
	                               MC_STATE_ACTIVE, MC_REASON_SILENCE),
	                 0);
	mc_arena_ring_all(&res);
	assert_true(wait_until(&w.cap, is_open, &w));
	while (world_takes(&w.g, 0, 50) >= 0)
		;
	assert_true(guest_hears(&w.g, 0));
	/* Its entry goes, the guest stays. */
	atomic_store(&c->want_undo, 1);
	proc_end(&w.gate);
	network_is_still(w.before);
	mc_arena_done(&res);
	world_end(&w);
}

static bool is_refused(void *ctx)
{
	struct world *w = ctx;

	return mc_state_of(atomic_load(&w->sup.control->state)) == MC_STATE_STOPPED;
}

/* The second of two NICs can't be had: the first is as it was. */
static void nothing_is_half_set_up(void **state)
{
	struct world w;

	(void)state;
	world_prepare(&w, MC_SIDE_PRIMARY);
	assert_int_equal(nl_clsact_add(&w.g.other, (int)if_nametoindex("tap1")), 0);
	free(w.before);
	w.before = network_state();
	proc_start(&w.gate, &w.sup, MC_ROLE_NETGATE);
	assert_true(wait_until(&w.cap, is_refused, &w));
	assert_non_null(strstr(w.sup.control->refusal, "tap1"));
	proc_end(&w.gate);
	network_is_still(w.before);
	world_end(&w);
}

const struct CMUnitTest plug_process_tests[] = {
        cmocka_unit_test(protection_from_begin_to_end),
        cmocka_unit_test(one_nic_fails_the_epoch),
        cmocka_unit_test(standby_is_shut_until_takeover),
        cmocka_unit_test(nothing_is_half_set_up),
};
const size_t n_plug_process_tests = MC_ARRAY_SIZE(plug_process_tests);
