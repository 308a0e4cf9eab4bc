/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fault points for tests (`make FAULTS=1`; a constant 0 otherwise).  A point that is armed makes
 * the process that passes it die (SIGKILL to itself), stop (SIGSTOP) or follow an error.
 *
 *   name[:nth][:crash|stall|error][,...]
 *
 * is a point of fault-points.h, its nth passage (1), and how (crash); after a comma follows what is
 * armed once that was an error.
 *
 * Armed by MC_FAULT in the supervisor's environment: the first incarnation of the process
 * named has it, its successors run without.  Or, while a protection runs, through the
 * process' place in the arena (struct mc_fault_slot, tests/soak/arm.c): the process takes it
 * when it next passes any point.
 *
 * Every process lists its points with --fault-points.
 */
#ifndef MC_IPC_FAULT_H
#define MC_IPC_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fault-points.h"
#include "role.h"

#ifdef MC_FAULTS

/* In a process' place in the arena. */
struct mc_fault_slot {
	_Atomic uint32_t set; /* 1: text is to be taken; whoever takes it stores 0 */
	char text[124];
};

/*
 * Who we are; before that no point is armed.  @first: no predecessor has run for this guest, the
 * environment counts.  @slot: where we are armed later; NULL: nowhere.
 */
void mc_fault_setup(enum mc_role role, enum mc_side side, bool first, struct mc_fault_slot *slot);

/* Passes a point. 0, or -EIO when it is armed with "error". */
int mc_fault(enum mc_fault_point p);

/* Just before (@done false) or after a journal transition of this process. */
void mc_fault_journal(enum mc_role role, enum mc_side side, int to, bool done);

/* Prints the points of a role, a line each: name, side, when, "error" where it may be one. */
void mc_fault_list(enum mc_role role);

#else

static inline int mc_fault(enum mc_fault_point p)
{
	(void)p;
	return 0;
}

static inline void mc_fault_journal(enum mc_role role, enum mc_side side, int to, bool done)
{
	(void)role, (void)side, (void)to, (void)done;
}

#endif

#endif
