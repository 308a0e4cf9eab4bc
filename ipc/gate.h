/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the plug gate of one NIC has done, in the arena, so that a successor of a dead netgate
 * takes the plug over as it is.  netgate is the only writer.
 *
 * The plug knows one closed epoch at a time.  Each operation is announced in `intent` before
 * it is sent to the kernel, and copied to `done` once the kernel has answered:
 *
 *   intent BUFFER N, done equal    N is closed and not released
 *   intent BUFFER N, done differs  counts as done: a RELEASE_ONE for it releases nothing if
 *                                  the kernel never saw it (then `uncertain` is set)
 *   intent RELEASE N, done differs sent again before any BUFFER: a second one releases nothing
 *   intent RELEASE N, done equal   nothing is closed
 *
 * A fresh plug has another handle than `handle` until the record describes it.
 */
#ifndef MC_IPC_GATE_H
#define MC_IPC_GATE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum mc_gate_op {
	MC_GATE_OP_NONE = 0,
	MC_GATE_OP_BUFFER = 1,
	MC_GATE_OP_RELEASE = 2,
};

struct mc_gate_record {
	_Atomic uint64_t tap, ifb;     /* interface indexes that the rest is about; 0: none */
	_Atomic uint64_t handle;       /* major number of the plug's handle: 1 or 2; 0: none */
	_Atomic uint64_t mode;         /* enum gate_mode: the most open one that may be in force */
	_Atomic uint64_t intent, done; /* epoch << 8 | enum mc_gate_op */
	_Atomic uint64_t cap;          /* bytes that were sent or held at the BUFFER */
	_Atomic uint64_t allowed;   /* bytes that may have been sent: `cap` of the last release */
	_Atomic uint64_t from;      /* bytes that had been sent before the last release */
	_Atomic uint64_t uncertain; /* 1: the last BUFFER may never have reached the kernel */
	_Atomic uint64_t drops;     /* of this plug, as counted so far */
	uint8_t pad[40];
};
_Static_assert(sizeof(struct mc_gate_record) == 128, "ABI");
_Static_assert(offsetof(struct mc_gate_record, intent) == 32, "ABI");

static inline uint64_t mc_gate_word(enum mc_gate_op op, uint64_t epoch)
{
	return epoch << 8 | op;
}
static inline enum mc_gate_op mc_gate_op_of(uint64_t word)
{
	return (enum mc_gate_op)(word & 0xff);
}
static inline uint64_t mc_gate_epoch_of(uint64_t word)
{
	return word >> 8;
}

#endif
