/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What others do to the network, bad input, and what is left behind. */
#include "plug.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ipc/util.h"

static int ifb_of(struct rig *g, unsigned i)
{
	return to_plug(g->nic[i])->ifb;
}

/* The counts of the old plug would let as many new packets out. */
static void flap_loses_what_is_held_and_leaks_nothing(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_HOLD);
	guest_sends_run(&g, 0, 1, 4);
	assert_int_equal(barrier(&g, 0, 1), 1);
	guest_sends_run(&g, 0, 5, 6);
	assert_int_equal(nl_link_set_up(&g.other, ifb_of(&g, 0), false), 0);
	guest_sends_run(&g, 0, 7, 8);
	assert_int_equal(nl_link_set_up(&g.other, ifb_of(&g, 0), true), 0);
	guest_sends_run(&g, 0, 9, 12);
	/* The event is there, nobody has looked yet. */
	assert_int_equal(release(&g, 0, 1), 0);
	world_gets(&g, 0, 1, 0);
	assert_true(rig_reported(&g, "gate-mended"));
	assert_int_equal(metric(&g, MC_M_GATE_FLAPS), 1);
	/* The epoch that is being taken fails, the one after is good. */
	assert_int_equal(barrier(&g, 0, 2), -ENETRESET);
	guest_sends_run(&g, 0, 13, 15);
	world_gets(&g, 0, 1, 0);
	assert_int_equal(barrier(&g, 0, 3), 1);
	assert_int_equal(release(&g, 0, 3), 1);
	world_gets(&g, 0, 13, 15);
	assert_int_equal(metric(&g, MC_M_LEAKS), 0);
	rig_down(&g);
}

/* The event loop alone, without barrier or release, puts things in order; down stays not down. */
static void link_that_stays_down_is_brought_up(void **state)
{
	struct nl_link_info l;
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_HOLD);
	rig_turn(&g);
	guest_sends_run(&g, 0, 1, 2);
	assert_int_equal(nl_link_set_up(&g.other, ifb_of(&g, 0), false), 0);
	rig_turn(&g);
	assert_int_equal(nl_link_get(&g.other, NULL, ifb_of(&g, 0), &l), 0);
	assert_true(l.flags & IFF_UP);
	assert_int_equal(barrier(&g, 0, 1), -ENETRESET);
	guest_sends_run(&g, 0, 3, 4);
	assert_int_equal(barrier(&g, 0, 2), 1);
	assert_int_equal(release(&g, 0, 2), 1);
	world_gets(&g, 0, 3, 4);
	rig_down(&g);
}

static void removed_parts_are_made_again(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_HOLD);
	for (uint64_t e = 1; e <= 3; e++) {
		uint32_t n = (uint32_t)e * 10;

		if (e == 1)
			assert_int_equal(nl_clsact_del(&g.other, to_plug(g.nic[0])->tap), 0);
		else if (e == 2)
			assert_int_equal(nl_redirect_del(&g.other, to_plug(g.nic[0])->tap,
			                                 HOOK_FROM_GUEST, 1),
			                 0);
		else
			assert_int_equal(nl_link_del(&g.other, ifb_of(&g, 0)), 0);
		rig_turn(&g);
		assert_int_equal(barrier(&g, 0, e * 10), -ENETRESET);
		guest_sends_run(&g, 0, n, n + 6);
		world_gets(&g, 0, 1, 0);
		assert_int_equal(barrier(&g, 0, e * 10 + 1), 1);
		assert_int_equal(release(&g, 0, e * 10 + 1), 1);
		world_gets(&g, 0, n, n + 6);
	}
	/* Without its redirection frames could have gone past it; without its ifb they couldn't. */
	assert_true(rig_reported(&g, "gate-leak"));
	assert_true(rig_reported(&g, "gate-mended"));
	assert_int_equal(metric(&g, MC_M_LEAKS), 2);
	rig_down(&g);
}

static void leak_raises_an_alarm(void **state)
{
	struct nl_qdisc_info q;
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_HOLD);
	guest_sends_run(&g, 0, 1, 6);
	assert_int_equal(barrier(&g, 0, 1), 1);
	assert_int_equal(plug_stats(to_plug(g.nic[0]), &q), 0);
	assert_int_equal(metric(&g, MC_M_LEAKS), 0);
	assert_int_equal(
	        nl_plug_do(&g.other, ifb_of(&g, 0), q.major, PLUG_RELEASE_INDEFINITE, 125000000),
	        0);
	world_gets(&g, 0, 1, 6);
	assert_int_equal(plug_stats(to_plug(g.nic[0]), &q), 0);
	assert_int_equal(metric(&g, MC_M_LEAKS), 1);
	assert_int_equal(metric(&g, MC_M_LEAKED_BYTES), q.sent);
	assert_true(rig_reported(&g, "gate-leak"));
	rig_down(&g);
}

/* The tap's own link is not the gate's: what is held stays held. */
static void tap_down_and_gone(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 2);
	rig_open(&g, 0, GATE_HOLD);
	rig_open(&g, 1, GATE_HOLD);
	guest_sends_run(&g, 0, 1, 2);
	guest_sends_run(&g, 1, 1, 2);
	assert_int_equal(nl_link_set_up(&g.other, to_plug(g.nic[0])->tap, false), 0);
	assert_int_equal(nl_link_set_up(&g.other, to_plug(g.nic[0])->tap, true), 0);
	world_gets(&g, 0, 1, 0);
	assert_int_equal(barrier(&g, 0, 1), 1);
	assert_int_equal(release(&g, 0, 1), 1);
	world_gets(&g, 0, 1, 2);
	/* QEMU dies: its tap goes, and what it held never comes out. */
	close(g.port[1].guest);
	assert_int_equal(barrier(&g, 1, 1), -ENODEV);
	assert_int_equal(release(&g, 1, 1), 0);
	world_gets(&g, 1, 1, 0);
	rig_down(&g);
}

static void unprotect_leaves_nothing_behind(void **state)
{
	static const enum gate_mode last[] = {GATE_PASS, GATE_HOLD, GATE_SHUT};
	struct rig g;
	char *before;

	(void)state;
	rig_up(&g, 2);
	before = network_state();
	assert_non_null(strstr(before, "tap0"));
	for (size_t i = 0; i < MC_ARRAY_SIZE(last); i++) {
		rig_open(&g, 0, GATE_PASS);
		rig_open(&g, 1, GATE_SHUT);
		set_mode(&g, 0, GATE_HOLD);
		guest_sends_run(&g, 0, 1, 3);
		set_mode(&g, 0, last[i]);
		to_plug(g.nic[0])->env.fenced = to_plug(g.nic[1])->env.fenced = false;
		rig_close(&g, 0, true);
		rig_close(&g, 1, true);
		/* Released, or dropped for good. */
		world_gets(&g, 0, 1, last[i] == GATE_PASS ? 3 : 0);
		network_is_still(before);
		guest_sends_run(&g, 0, 4, 5);
		world_gets(&g, 0, 4, 5);
		assert_true(guest_hears(&g, 1));
	}
	free(before);
	rig_down(&g);
}

/* A guest that must not speak (the peer took over) stays shut for as long as its QEMU lives. */
static void fence_outlives_the_gate(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	rig_open(&g, 0, GATE_HOLD);
	set_mode(&g, 0, GATE_SHUT);
	rig_close(&g, 0, true);
	assert_true(rig_reported(&g, "gate-kept"));
	guest_sends_run(&g, 0, 1, 6);
	world_gets(&g, 0, 1, 0);
	/* The tap becomes a standby's: its gate takes it over. */
	memset(g.record, 0, sizeof(*g.record));
	rig_open(&g, 0, GATE_SHUT);
	guest_sends_run(&g, 0, 7, 12);
	world_gets(&g, 0, 1, 0);
	set_mode(&g, 0, GATE_PASS);
	guest_sends_run(&g, 0, 13, 14);
	world_gets(&g, 0, 13, 14);
	rig_down(&g);
}

static void other_network_namespace(void **state)
{
	char why[512] = "", path[64];
	struct rig g;
	int fd, r;

	(void)state;
	rig_up(&g, 1);
	fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), fd);
	assert_int_equal(unshare(CLONE_NEWNET), 0);
	r = rig_try_open(&g, 0, GATE_HOLD, path, why, sizeof(why));
	if (r < 0)
		fail_msg("%s", why);
	set_mode(&g, 0, GATE_HOLD);
	guest_sends_run(&g, 0, 1, 6);
	assert_int_equal(barrier(&g, 0, 1), 1);
	world_gets(&g, 0, 1, 0);
	/* A flap there is heard of here. */
	assert_int_equal(release(&g, 0, 1), 1);
	world_gets(&g, 0, 1, 6);
	assert_int_equal(nl_link_set_up(&g.other, ifb_of(&g, 0), false), 0);
	assert_int_equal(barrier(&g, 0, 2), -ENETRESET);
	rig_close(&g, 0, true);
	assert_int_equal(rig_try_open(&g, 0, GATE_HOLD, "no-such-netns", why, sizeof(why)),
	                 -ENOENT);
	assert_non_null(strstr(why, "no-such-netns"));
	close(fd);
	rig_down(&g);
}

/* --- bad input ----------------------------------------------------------------------------- */

static void refuses(struct rig *g, const char *name, int error, const char *word)
{
	struct mc_nic spec = {.kind = MC_GATE_PLUG};
	char saved[16], why[512] = "", probed[512] = "";

	strcpy(saved, g->port[0].tap);
	snprintf(g->port[0].tap, sizeof(g->port[0].tap), "%s", name);
	snprintf(spec.tap, sizeof(spec.tap), "%s", name);
	assert_int_equal(rig_try_open(g, 0, GATE_PASS, "", why, sizeof(why)), error);
	assert_int_equal(plug_probe(&spec, "vm", probed, sizeof(probed)), error);
	if (!strstr(why, word) || !strstr(probed, word))
		fail_msg("'%s' and '%s' don't tell of '%s'", why, probed, word);
	strcpy(g->port[0].tap, saved);
}

static void bad_interfaces_are_refused(void **state)
{
	char name[16], cmd[256], *before;
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	assert_int_equal(system("ip link add ve0 type veth peer name ve1; ip tuntap add tun5 mode "
	                        "tun; ip link add du0 type dummy"),
	                 0);
	before = network_state();
	refuses(&g, "nosuch0", -ENODEV, "no interface nosuch0");
	refuses(&g, "ve0", -EINVAL, "not a tap but of kind veth");
	refuses(&g, "du0", -EINVAL, "dummy");
	refuses(&g, "tun5", -EINVAL, "tun");
	refuses(&g, "lo", -EINVAL, "not a tap");
	network_is_still(before);
	free(before);
	assert_int_equal(system("tc qdisc add dev tap0 ingress"), 0);
	refuses(&g, "tap0", -EBUSY, "tc qdisc del dev tap0 ingress");
	assert_int_equal(system("tc qdisc del dev tap0 ingress; tc qdisc add dev tap0 clsact"), 0);
	before = network_state();
	refuses(&g, "tap0", -EBUSY, "clsact");
	network_is_still(before);
	free(before);
	assert_int_equal(system("tc qdisc del dev tap0 clsact"), 0);
	/* Somebody else's interface of the name that we need. */
	snprintf(name, sizeof(name), "mcg%u", if_nametoindex("tap0"));
	snprintf(cmd, sizeof(cmd), "ip link add %s type dummy", name);
	assert_int_equal(system(cmd), 0);
	refuses(&g, "tap0", -EEXIST, name);
	snprintf(cmd, sizeof(cmd),
	         "ip link del %s; ip link add %s type ifb; ip link set %s alias theirs", name, name,
	         name);
	assert_int_equal(system(cmd), 0);
	refuses(&g, "tap0", -EEXIST, name);
	/* Another guest's gate on the same tap. */
	snprintf(cmd, sizeof(cmd), "ip link set %s alias '" PLUG_ALIAS "other'", name);
	assert_int_equal(system(cmd), 0);
	before = network_state();
	refuses(&g, "tap0", -EEXIST, "guest other");
	network_is_still(before);
	free(before);
	/* A root qdisc of the tap is not in the way. */
	snprintf(cmd, sizeof(cmd), "ip link del %s; tc qdisc add dev tap0 root pfifo", name);
	assert_int_equal(system(cmd), 0);
	rig_open(&g, 0, GATE_PASS);
	guest_sends_run(&g, 0, 1, 2);
	world_gets(&g, 0, 1, 2);
	rig_down(&g);
}

/* Runs in a child: permissions don't come back. */
static void no_permission_is_refused(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	pid = fork();
	if (!pid) {
		struct mc_nic spec = {.kind = MC_GATE_PLUG, .tap = "tap0"};
		struct rig g;
		char why[512] = "", *before;

		rig_up(&g, 1);
		before = network_state();
		if (setgid(65534) < 0 || setuid(65534) < 0)
			_exit(1);
		if (rig_try_open(&g, 0, GATE_PASS, "", why, sizeof(why)) != -EPERM ||
		    !strstr(why, "CAP_NET_ADMIN"))
			_exit(2);
		if (plug_probe(&spec, "vm", why, sizeof(why)) != -EPERM)
			_exit(3);
		_exit(strcmp(before, network_state()) ? 4 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

const struct CMUnitTest plug_harm_tests[] = {
        cmocka_unit_test(flap_loses_what_is_held_and_leaks_nothing),
        cmocka_unit_test(link_that_stays_down_is_brought_up),
        cmocka_unit_test(removed_parts_are_made_again),
        cmocka_unit_test(leak_raises_an_alarm),
        cmocka_unit_test(tap_down_and_gone),
        cmocka_unit_test(unprotect_leaves_nothing_behind),
        cmocka_unit_test(fence_outlives_the_gate),
        cmocka_unit_test(other_network_namespace),
        cmocka_unit_test(bad_interfaces_are_refused),
        cmocka_unit_test(no_permission_is_refused),
};
const size_t n_plug_harm_tests = MC_ARRAY_SIZE(plug_harm_tests);
