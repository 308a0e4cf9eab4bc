/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A child does what netgate does and is killed at each point between two steps; the test takes
 * over from what it left in the kernel and in the record.
 */
#include "plug.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ipc/fault.h"
#include "../../ipc/util.h"

/* Runs @fn in a child that is to be killed at @point. */
static void dies_at(struct rig *g, const char *point, void (*fn)(struct rig *g))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		setenv("MC_FAULT", point, 1);
		mc_fault_setup(MC_ROLE_NETGATE, MC_SIDE_PRIMARY, true, NULL);
		/* An event loop isn't inherited. */
		(void)sd_event_new(&g->event);
		fn(g);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail_msg("%s: the child ended with status %#x", point, (unsigned)status);
}

static void die(void)
{
	kill(getpid(), SIGKILL);
}

/* An epoch of the successor's: what is held comes out, whatever the predecessor left. */
static void epoch_comes_out(struct rig *g, uint64_t epoch, uint32_t from, uint32_t to)
{
	assert_int_equal(barrier(g, 0, epoch), 1);
	world_gets(g, 0, 1, 0);
	assert_int_equal(release(g, 0, epoch), 1);
	world_gets(g, 0, from, to);
}

/* --- opening ------------------------------------------------------------------------------- */

static void child_opens(struct rig *g)
{
	char why[512];

	(void)rig_try_open(g, 0, GATE_PASS, "", why, sizeof(why));
	set_mode(g, 0, GATE_PASS);
	set_mode(g, 0, GATE_HOLD);
}

static void killed_while_opening(void **state)
{
	static const char *const points[] = {
	        "netgate.plug.ifb",  "netgate.plug.fresh",   "netgate.plug.qdisc",
	        "netgate.plug.up",   "netgate.plug.clsact",  "netgate.plug.filter",
	        "netgate.plug.pass", "netgate.plug.fresh:2", "netgate.plug.hold"};
	char *before;
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	before = network_state();
	for (size_t i = 0; i < MC_ARRAY_SIZE(points); i++) {
		memset(g.record, 0, sizeof(*g.record));
		dies_at(&g, points[i], child_opens);
		rig_open(&g, 0, GATE_PASS);
		guest_sends_run(&g, 0, 1, 6);
		world_gets(&g, 0, 1, 6);
		set_mode(&g, 0, GATE_HOLD);
		guest_sends_run(&g, 0, 7, 12);
		epoch_comes_out(&g, 1, 7, 12);
		set_mode(&g, 0, GATE_PASS);
		rig_close(&g, 0, true);
		network_is_still(before);
	}
	free(before);
	rig_down(&g);
}

/* --- between two epochs -------------------------------------------------------------------- */

/* What was sent before belongs to epoch 1, which is committed only later. */
static void child_buffers(struct rig *g)
{
	rig_open(g, 0, GATE_HOLD);
	guest_sends_run(g, 0, 1, 4);
	(void)barrier(g, 0, 1);
	die();
}

static void killed_around_buffer(void **state)
{
	static const char *const points[] = {"netgate.plug.buffer", "netgate.plug.buffer.sent",
	                                     "none"};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(points); i++) {
		bool seen = strcmp(points[i], "netgate.plug.buffer") != 0; /* by the kernel */
		struct rig g;

		rig_up(&g, 1);
		dies_at(&g, points[i], child_buffers);
		guest_sends_run(&g, 0, 5, 6);
		rig_open(&g, 0, GATE_HOLD);
		world_gets(&g, 0, 1, 0);
		/* It counts as done: the next barrier sets no second mark. */
		assert_int_equal(barrier(&g, 0, 2), 0);
		guest_sends_run(&g, 0, 7, 8);
		assert_int_equal(release(&g, 0, 2), 1);
		world_gets(&g, 0, 1, seen ? 4 : 0);
		epoch_comes_out(&g, 3, seen ? 5 : 1, 8);
		guest_sends_run(&g, 0, 9, 12);
		epoch_comes_out(&g, 4, 9, 12);
		assert_int_equal(metric(&g, MC_M_LEAKS), 0);
		assert_int_equal(metric(&g, MC_M_GATE_FLAPS), 0);
		rig_down(&g);
	}
}

static void child_releases(struct rig *g)
{
	rig_open(g, 0, GATE_HOLD);
	guest_sends_run(g, 0, 1, 4);
	(void)barrier(g, 0, 1);
	guest_sends_run(g, 0, 5, 6);
	(void)release(g, 0, 1);
	die();
}

static void killed_around_release(void **state)
{
	static const char *const points[] = {"netgate.plug.release", "netgate.plug.release.sent",
	                                     "none"};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(points); i++) {
		struct rig g;

		rig_up(&g, 1);
		dies_at(&g, points[i], child_releases);
		/* Epoch 1 was committed: it is let out, by the dead or by the successor. */
		rig_open(&g, 0, GATE_HOLD);
		world_gets(&g, 0, 1, 4);
		guest_sends_run(&g, 0, 7, 8);
		epoch_comes_out(&g, 2, 5, 8);
		guest_sends_run(&g, 0, 9, 12);
		epoch_comes_out(&g, 3, 9, 12);
		assert_int_equal(metric(&g, MC_M_LEAKS), 0);
		rig_down(&g);
	}
}

/* Two predecessors in a row die around the same BUFFER and its RELEASE. */
static void child_releases_what_is_left(struct rig *g)
{
	rig_open(g, 0, GATE_HOLD);
	(void)release(g, 0, 1);
	die();
}

static void killed_twice(void **state)
{
	static const char *const first[] = {"netgate.plug.buffer", "netgate.plug.buffer.sent"};
	static const char *const second[] = {"netgate.plug.release", "netgate.plug.release.sent",
	                                     "none"};

	(void)state;
	for (size_t i = 0; i < 2 * MC_ARRAY_SIZE(second); i++) {
		bool seen = i % 2;
		struct rig g;

		rig_up(&g, 1);
		dies_at(&g, first[i % 2], child_buffers);
		dies_at(&g, second[i / 2], child_releases_what_is_left);
		rig_open(&g, 0, GATE_HOLD);
		world_gets(&g, 0, 1, seen ? 4 : 0);
		guest_sends_run(&g, 0, 5, 8);
		epoch_comes_out(&g, 2, seen ? 5 : 1, 8);
		guest_sends_run(&g, 0, 9, 12);
		epoch_comes_out(&g, 3, 9, 12);
		assert_int_equal(metric(&g, MC_M_LEAKS), 0);
		rig_down(&g);
	}
}

/* The link goes down and up while nobody is there to hear of it. */
static void flap_without_a_gate(void **state)
{
	struct rig g;
	int ifb;

	(void)state;
	rig_up(&g, 1);
	dies_at(&g, "none", child_buffers);
	ifb = (int)atomic_load(&g.record->ifb);
	assert_int_equal(nl_link_set_up(&g.other, ifb, false), 0);
	assert_int_equal(nl_link_set_up(&g.other, ifb, true), 0);
	guest_sends_run(&g, 0, 5, 6);
	rig_open(&g, 0, GATE_HOLD);
	assert_int_equal(release(&g, 0, 1), 0);
	world_gets(&g, 0, 1, 0);
	guest_sends_run(&g, 0, 7, 8);
	epoch_comes_out(&g, 2, 7, 8);
	rig_down(&g);
}

/* A plug that another protection left lets out nothing of it. */
static void plug_of_another_arena(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	dies_at(&g, "none", child_buffers);
	memset(g.record, 0, sizeof(*g.record));
	rig_open(&g, 0, GATE_PASS);
	world_gets(&g, 0, 1, 0);
	guest_sends_run(&g, 0, 7, 8);
	world_gets(&g, 0, 7, 8);
	rig_down(&g);
}

/* --- changes of mode, the end -------------------------------------------------------------- */

static void child_closes(struct rig *g)
{
	rig_open(g, 0, GATE_HOLD);
	guest_sends_run(g, 0, 1, 4);
	(void)barrier(g, 0, 1);
	set_mode(g, 0, GATE_PASS);
	rig_close(g, 0, true);
}

static void killed_while_ending(void **state)
{
	static const char *const points[] = {"netgate.plug.pass", "netgate.plug.undo"};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(points); i++) {
		char *before;
		struct rig g;

		rig_up(&g, 1);
		before = network_state();
		dies_at(&g, points[i], child_closes);
		rig_open(&g, 0, GATE_PASS);
		/* All that was held may leave, once. */
		world_gets(&g, 0, 1, 4);
		guest_sends_run(&g, 0, 5, 6);
		world_gets(&g, 0, 5, 6);
		rig_close(&g, 0, true);
		network_is_still(before);
		free(before);
		rig_down(&g);
	}
}

const struct CMUnitTest plug_death_tests[] = {
        cmocka_unit_test(killed_while_opening),  cmocka_unit_test(killed_around_buffer),
        cmocka_unit_test(killed_around_release), cmocka_unit_test(killed_twice),
        cmocka_unit_test(flap_without_a_gate),   cmocka_unit_test(plug_of_another_arena),
        cmocka_unit_test(killed_while_ending),
};
const size_t n_plug_death_tests = MC_ARRAY_SIZE(plug_death_tests);
