/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-stage: one encoder process.  Takes raw slabs from its ring, gives encoded ones to
 * transport.  Per slab: peek, claim, encode into a slab of its own, push, mark in the
 * journal, advance, free the raw one: whoever dies in between leaves the entry in the ring,
 * and the successor does it again (transport drops the repeat).
 */
#ifndef MC_STAGE_STAGE_H
#define MC_STAGE_STAGE_H

#include "../ipc/worker.h"
#include "encode.h"

struct stage {
	struct mc_worker *w;
	struct mc_arena *a;
	struct encoder *encoder;
	struct mc_ring_end in, out;
};

extern const struct mc_worker_ops stage_ops;

#endif
