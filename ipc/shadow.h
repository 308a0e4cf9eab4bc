/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Shadow: the content of recently sent pages as the backup has it, the base of deltas.
 * A set-associative cache in the arena (MC_SHADOW_WAYS ways), bounded by delta_cache,
 * least recently used way of a set replaced.
 *
 * Entry tag: the epoch whose content it holds; 0 while it is written.  An entry may serve
 * as base for epoch E only when 0 < tag < E: a worker that dies in the middle of writing
 * leaves tag 0, a repeated encoding of the same epoch finds tag == E, both mean "send in
 * full".  Pages of aborted epochs are marked MC_PAGE_NOBASE by capture and so sent in full
 * and overwritten.
 *
 * Concurrency: stage workers encode different pages of one epoch at the same time; a page
 * occurs once per epoch and epoch N+1 starts only after N is STAGED.  Two pages that fall
 * into one set may be written by two workers: a way is claimed by CAS on its word
 * (key << 1 | busy); whoever loses takes another way or does without.  A way that is left
 * busy by a dead worker is freed by mc_shadow_unlock() of the successor of that role.
 */
#ifndef MC_IPC_SHADOW_H
#define MC_IPC_SHADOW_H

#include <stdatomic.h>
#include <stdint.h>

#include "role.h"

#define MC_SHADOW_WAYS 8
#define MC_NEAR        384 /* bytes of a page; then the processor has seen where it goes */

struct mc_shadow_entry {
	_Atomic uint64_t word; /* page key + 1 (0: empty) << 8 | busy role (0: none) */
	_Atomic uint64_t tag;  /* epoch of the content; 0: none or being written */
};

struct mc_shadow_shm {
	uint64_t magic;
	uint64_t sets; /* a power of two */
	_Atomic uint64_t hits, misses, evictions;
	uint8_t pad[24];
	/* struct mc_shadow_entry [sets * ways], then page bytes, located by the layout */
};
#define MC_SHADOW_MAGIC 0x776f64616873636dULL

struct mc_shadow {
	struct mc_shadow_shm *shm; /* NULL: no shadow (delta_cache = 0) */
	struct mc_shadow_entry *entry;
	uint8_t *data;
	uint64_t sets;
	enum mc_role role;
};

/* Sets that fit into @bytes of delta cache (page bytes plus entries); 0 when none. */
uint64_t mc_shadow_sets(uint64_t bytes);

int mc_shadow_init(struct mc_shadow_shm *shm, uint64_t sets);

/* Key of a page: unique over all RAM blocks. */
static inline uint64_t mc_shadow_key(uint32_t block, uint64_t offset)
{
	return (uint64_t)block << 44 | offset >> 12;
}

/*
 * Looks for the base of page @key for @epoch and opens its way for writing.
 * Returns the way's bytes (4096) with *has_base telling whether they hold content of an
 * epoch 0 < tag < @epoch, or NULL when no way could be claimed (send in full, don't store).
 * The caller computes its delta from the bytes, overwrites them with the new content and
 * calls mc_shadow_close().  Opening sets the tag to 0 only at mc_shadow_begin_write().
 */
uint8_t *mc_shadow_open(struct mc_shadow *s, uint64_t key, uint64_t epoch, bool *has_base,
                        struct mc_shadow_entry **ret);

/*
 * Hints for what mc_shadow_open() will soon look for: first the set of @key is brought near, a
 * page later, when that is there, the beginning of its base (the rest follows by itself).
 */
void mc_shadow_near_set(const struct mc_shadow *s, uint64_t key);
void mc_shadow_near_base(const struct mc_shadow *s, uint64_t key);

/* Tag 0 before the bytes change (release). */
void mc_shadow_begin_write(struct mc_shadow_entry *e);

/* The bytes now hold @epoch's content; the way is given back (release). */
void mc_shadow_close(struct mc_shadow *s, struct mc_shadow_entry *e, uint64_t epoch);

/* Empties the entry of @key if there is one (a page that became all zero). */
void mc_shadow_drop(struct mc_shadow *s, uint64_t key);

/* Frees the ways that a dead predecessor of this role left busy; their tag becomes 0. */
void mc_shadow_unlock(struct mc_shadow *s);

/* Forgets everything (no process uses it). */
void mc_shadow_clear(struct mc_shadow *s);

#endif
