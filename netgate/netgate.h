/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-netgate: holds what the guest sends until the epoch behind it is committed.  What it does
 * is derived from the arena alone (docs/architecture.md, "Gate by state"), so that a
 * successor does the same.
 */
#ifndef MC_NETGATE_NETGATE_H
#define MC_NETGATE_NETGATE_H

#include "../ipc/worker.h"
#include "backend.h"

struct netgate {
	struct mc_worker *w;
	struct mc_arena *a;
	struct gate_nic *nic[MC_NICS_MAX];
	unsigned nnics;
	enum gate_mode mode;
	bool shut_after_start; /* first mode not yet set */
	uint64_t limit;
	uint64_t barrier;  /* newest one set */
	uint64_t marked;   /* bit epoch % 64: that epoch has a mark in every NIC */
	uint64_t released; /* newest epoch released */
	uint64_t noted;    /* records up to here were moved to RELEASED, by this process */
	bool crippled;     /* not all NICs could be opened: no epoch may be used */
};

/* The mode that side, state and commit word ask for. */
enum gate_mode netgate_wanted_mode(const struct mc_control *c, enum mc_side side);

extern const struct mc_worker_ops netgate_ops;

/* `mc-netgate --inspect` and `--clear` (inspect.c).  JSON; the exit status. */
int netgate_inspect(int argc, char **argv);

#endif
