/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * For tests of the plug gate with a real sch_plug.  A tap stands for each of the guest's NICs:
 * what is written to its fd is what the guest sends.  A bridge joins it with another tap, whose
 * fd is the world:
 *
 *   guest fd --> tap0 --(gate)--> br0 --> out0 --> world fd
 */
#ifndef MC_TESTS_KERNEL_PLUG_H
#define MC_TESTS_KERNEL_PLUG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../../netgate/netgate.h"
#include "../../netgate/nl.h"
#include "../../netgate/plug.h"

#define NICS_MAX 2

/* Kinds of frames, all with the number in the source address. */
enum kind { IPV4, IPV6, ARP, VLAN, UNKNOWN, BARE, KINDS };

struct port {
	char tap[16], bridge[16], out[16];
	int guest, world; /* fds */
};

struct rig {
	int netns; /* where the taps are */
	struct port port[NICS_MAX];
	unsigned nports;
	sd_event *event;
	struct mc_metrics_block *m;    /* shared with children */
	struct mc_gate_record *record; /* [NICS_MAX], shared with children */
	struct gate_nic *nic[NICS_MAX];
	struct nl other;       /* what somebody else does to the network */
	char reported[16][64]; /* ids of events */
	unsigned nreported;
};

/* A network namespace of its own with @ports taps; the calling thread is in it. */
void rig_up(struct rig *g, unsigned ports);
void rig_down(struct rig *g);
/* Opens the gate of port @i in @mode. */
int rig_try_open(struct rig *g, unsigned i, enum gate_mode mode, const char *netns, char *why,
                 size_t len);
void rig_open(struct rig *g, unsigned i, enum gate_mode mode);
void rig_close(struct rig *g, unsigned i, bool undo);
/* Lets events be handled. */
void rig_turn(struct rig *g);
bool rig_reported(const struct rig *g, const char *id);
uint64_t metric(const struct rig *g, enum mc_metric m);

/* The guest sends frame @n. */
void guest_sends(struct rig *g, unsigned i, uint32_t n, enum kind kind);
void guest_sends_sized(struct rig *g, unsigned i, uint32_t n, size_t payload);
/* Numbers @from..@to, of all kinds in turn. */
void guest_sends_run(struct rig *g, unsigned i, uint32_t from, uint32_t to);
/* Exactly @from..@to come out of the world's side, in that order; @to < @from: nothing does. */
void world_gets(struct rig *g, unsigned i, uint32_t from, uint32_t to);
/* Takes one frame of the guest's within @ms; its number, or -1. */
int64_t world_takes(struct rig *g, unsigned i, int ms);
/* The world sends a frame; true when the guest gets it. */
bool guest_hears(struct rig *g, unsigned i);

#define barrier(g, i, e)  ((g)->nic[i]->ops->barrier((g)->nic[i], e))
#define release(g, i, e)  ((g)->nic[i]->ops->release((g)->nic[i], e))
#define set_mode(g, i, m) assert_int_equal((g)->nic[i]->ops->set_mode((g)->nic[i], m), 0)

/* All that ip and tc show of the namespace; malloc'ed. */
char *network_state(void);
void network_is_still(const char *before);

extern const struct CMUnitTest plug_order_tests[], plug_harm_tests[], plug_death_tests[],
        plug_process_tests[];
extern const size_t n_plug_order_tests, n_plug_harm_tests, n_plug_death_tests, n_plug_process_tests;

#endif
