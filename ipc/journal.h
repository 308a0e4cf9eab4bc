/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Journal: where every epoch stands.  One record an epoch, MC_JOURNAL_SLOTS in a circle
 * (slot = epoch % MC_JOURNAL_SLOTS).  The state word (epoch << 8 | state) changes only by
 * compare-and-swap along the table in journal.c, which names the one role that may make
 * each transition; every other attempt is refused with -EPERM, a record that moved on
 * meanwhile with -ESTALE.
 *
 * Primary:  FREE -> CAPTURING -> CAPTURED -> STAGED -> SENT -> COMMITTED -> RELEASED
 *           capture   capture    stage       transport transport  netgate
 * Backup:   FREE -> CAPTURING -> CAPTURED -> STAGED -> COMMITTED -> RELEASED (= applied)
 *           transport transport  restore     restore   restore
 *           (receiving)(received)(decoded)
 * ABORTED:  primary: capture up to STAGED, stage from CAPTURED, transport from CAPTURED on;
 *           after SENT only transport.  backup: transport up to CAPTURED, restore up to STAGED.
 *
 * Memory ordering: each transition is a CAS with release order after the fields that it
 * announces were written; readers load the word with acquire before they read the fields.
 * A reader of a record checks the epoch in the word before and after.
 *
 * Stage workers share the transition CAPTURED -> STAGED: each sets its bit in `done` with
 * an atomic or (idempotent: a repeated slab sets it again); whoever completes the set and
 * finds the state CAPTURED, or capture's CAS to CAPTURED that finds the set complete
 * (then the last worker retries on its bell), makes the transition.
 */
#ifndef MC_IPC_JOURNAL_H
#define MC_IPC_JOURNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "role.h"

#define MC_JOURNAL_SLOTS 64
#define MC_EPOCH_MAX                                                                               \
	((1ULL << 42) - 1)      /* as many as the commit word holds: 1394 years at 100 a second */
#define MC_EPOCH_SLABS_MAX 4096 /* slabs of one epoch at most */

enum mc_epoch_state {
	MC_EPOCH_FREE = 0,
	MC_EPOCH_CAPTURING = 1,
	MC_EPOCH_CAPTURED = 2,
	MC_EPOCH_STAGED = 3,
	MC_EPOCH_SENT = 4,
	MC_EPOCH_COMMITTED = 5,
	MC_EPOCH_RELEASED = 6,
	MC_EPOCH_ABORTED = 7,
	MC_EPOCH_STATES = 8,
};

struct mc_journal_record {
	_Atomic uint64_t word;   /* epoch << 8 | state */
	_Atomic uint32_t slabs;  /* slabs of the epoch; valid from CAPTURED on */
	_Atomic uint32_t reason; /* errno value of ABORTED */
	_Atomic uint64_t pages;
	_Atomic uint64_t raw_bytes;
	_Atomic uint64_t wire_bytes;
	_Atomic uint64_t state_bytes;            /* device state, raw */
	_Atomic uint64_t base;                   /* the epoch that deltas of this one build on */
	_Atomic uint64_t digest;                 /* XOR of the slabs' checksums (wire.h) */
	_Atomic uint64_t pause_ns;               /* sum of stops */
	_Atomic uint64_t longest_ns;             /* longest single stop */
	_Atomic uint64_t stamp[MC_EPOCH_STATES]; /* CLOCK_MONOTONIC ns of each transition */
	uint8_t pad[48];
	_Atomic uint64_t done[MC_EPOCH_SLABS_MAX / 64]; /* bit = seq encoded or decoded */
};
_Static_assert(sizeof(struct mc_journal_record) == 192 + MC_EPOCH_SLABS_MAX / 8, "ABI");

struct mc_journal_shm {
	uint64_t magic;
	uint32_t side; /* enum mc_side: which column of the table holds */
	uint32_t reserved;
	_Atomic uint64_t
	        last_begun; /* newest epoch ever begun: a successor's numbers start after */
	_Atomic uint64_t last_committed;
	_Atomic uint64_t last_released;
	uint8_t pad[24];
	struct mc_journal_record rec[MC_JOURNAL_SLOTS];
};
#define MC_JOURNAL_MAGIC 0x6c6e72756f6a636dULL

struct mc_journal {
	struct mc_journal_shm *shm;
	enum mc_side side;
	enum mc_role role;
};

int mc_journal_init(struct mc_journal_shm *shm, enum mc_side side);

/*
 * Begins @epoch (FREE -> CAPTURING): clears the slot's fields.  @epoch must be above
 * last_begun and at most MC_EPOCH_MAX (-EINVAL otherwise).  -EBUSY when the slot's old epoch is
 * still on its way (neither RELEASED nor ABORTED), -EPERM for another role than capture (primary)
 * or transport (backup).
 */
int mc_journal_begin(struct mc_journal *j, uint64_t epoch);

/*
 * Backup, transport: begins an epoch that the primary sends again after its reception broke
 * off (its record is ABORTED, or the slot holds an older epoch).  Like mc_journal_begin(),
 * but @epoch need only be above last_committed.
 */
int mc_journal_rebegin(struct mc_journal *j, uint64_t epoch);

/* The record of @epoch, or NULL when the slot holds another one. */
struct mc_journal_record *mc_journal_get(const struct mc_journal *j, uint64_t epoch);

/* State of @epoch; FREE when the slot holds another one. */
enum mc_epoch_state mc_journal_state(const struct mc_journal *j, uint64_t epoch);

/*
 * Moves @epoch from @from to @to and stamps it.  0; -EPERM (not this role's transition);
 * -ESTALE (the record isn't at @from: somebody else moved it, or the slot was reused).
 * COMMITTED and RELEASED also advance last_committed / last_released.
 */
int mc_journal_move(struct mc_journal *j, uint64_t epoch, enum mc_epoch_state from,
                    enum mc_epoch_state to);

/*
 * Aborts @epoch and every later one that is still on its way, as far as this role may;
 * records @error (negative errno). Returns the number aborted; an epoch that this role may
 * not abort any more stops the walk with -EPERM if nothing was aborted.
 */
int mc_journal_abort_from(struct mc_journal *j, uint64_t epoch, int error);

/*
 * The oldest epoch above @after that has a record; 0: none.  The way to walk over epochs whose
 * numbers a peer chose: they may leap.
 */
uint64_t mc_journal_next(const struct mc_journal *j, uint64_t after);

/* Marks slab @seq of @epoch as done (encoded / decoded); true when all of `slabs` are. */
bool mc_journal_mark(struct mc_journal_record *r, uint32_t seq);

/* True when all slabs are marked; false while `slabs` is not known yet (0). */
bool mc_journal_complete(const struct mc_journal_record *r);

/* Number of epochs begun and neither RELEASED/COMMITTED nor ABORTED. */
unsigned mc_journal_in_flight(const struct mc_journal *j);

/* Name of a state; "?" when unknown. */
const char *mc_epoch_state_name(enum mc_epoch_state s);

#endif
