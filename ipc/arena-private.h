/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What arena.c (attaching) and arena-create.c (making, by name) share. */
#ifndef MC_IPC_ARENA_PRIVATE_H
#define MC_IPC_ARENA_PRIVATE_H

#include "arena.h"

#define PAGE            4096ULL
#define MC_CONFIG_BYTES ((sizeof(struct mc_config) + PAGE - 1) / PAGE * PAGE)

/* Offsets of the parts, computed from the params alone. */
struct mc_arena_layout {
	uint64_t control, procs, journal, metrics, vector, bitmaps, hashes;
	uint64_t ring_stage, ring_transport, ring_restore;
	uint64_t shadow_shm, shadow_entries, desc_shm, desc_words, desc_metas;
	uint64_t slab_shm, slab_words, slab_metas, shadow_data;
	uint64_t fixed; /* end of what is allocated at creation */
	uint64_t descs, slabs, total;
	uint64_t nslabs, desc_unit, ring_slots, ring_bytes, bitmap_words, shadow_sets;
};

/* @p was checked. */
void mc_arena_layout(const struct mc_arena_params *p, struct mc_arena_layout *l);

/* Everything -1 or NULL. */
void mc_arena_empty(struct mc_arena *a);

/* Maps a->fd and points the view at its parts; reads nothing from shared memory. */
int mc_arena_map(struct mc_arena *a, const struct mc_arena_layout *l, int prot);

/* Maps the configuration, a file of its own; @fd < 0: an empty one. -EBADMSG: it can't be one. */
int mc_arena_map_config(struct mc_arena *a, int fd, int prot);

#endif
