/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The processes of one guest's pipeline, by number.  A role names a process in slab
 * words, journal permissions, doorbells and metric blocks; it stays the same when a
 * successor takes a dead process' place.
 */
#ifndef MC_IPC_ROLE_H
#define MC_IPC_ROLE_H

#include <stdbool.h>
#include <stdint.h>

#define MC_STAGES_MAX 16

enum mc_role {
	MC_ROLE_NONE = 0,
	MC_ROLE_SUPERVISOR = 1,
	MC_ROLE_CAPTURE = 2,
	MC_ROLE_TRANSPORT = 3,
	MC_ROLE_NETGATE = 4,
	MC_ROLE_RESTORE = 5,
	MC_ROLE_STAGE0 = 8, /* MC_STAGES_MAX stage workers: 8..23 */
	MC_ROLE_MAX = 24,
};

static inline bool mc_role_is_stage(enum mc_role r)
{
	return r >= MC_ROLE_STAGE0 && r < MC_ROLE_STAGE0 + MC_STAGES_MAX;
}

static inline enum mc_role mc_role_stage(unsigned index)
{
	return (enum mc_role)(MC_ROLE_STAGE0 + index);
}

static inline unsigned mc_role_index(enum mc_role r)
{
	return mc_role_is_stage(r) ? (unsigned)r - MC_ROLE_STAGE0 : 0;
}

/* The two ends of a protection; an arena belongs to exactly one. */
enum mc_side {
	MC_SIDE_PRIMARY = 1,
	MC_SIDE_BACKUP = 2,
};

/* "capture", "stage", ...; the same text for all stage workers; "?" when unknown. */
const char *mc_role_name(enum mc_role r);

/* The opposite of mc_role_name(); index is used by "stage" only. Returns -EINVAL. */
int mc_role_parse(const char *name, unsigned index, enum mc_role *ret);

#endif
