/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Slab pool: blocks of shared memory of one size, owned by one process at a time.
 *
 * All that says who owns a slab is one 64-bit word, changed by compare-and-swap:
 *
 *   63      60 59      52 51            32 31                                 0
 *   | state   | owner    | generation     | epoch (low 32 bits)                |
 *
 * There is no free list: allocating scans the words.  The generation grows at each
 * allocation; a handle (index + generation) that outlived its slab is refused.
 *
 *   ABSENT --grow--> FREE --alloc--> OWNED(role) --claim--> OWNED(next role) --free--> FREE
 *     ^                |
 *     +----shrink------+          (GROWING and SHRINKING hold a slab while the kernel works)
 *
 * Passing on: the producer fills the slab, pushes its handle and leaves the word alone;
 * the consumer, when it peeks, claims it (CAS owner producer -> consumer).  So a slab that
 * a dead producer owned and that is not in its outgoing ring had not been pushed: its
 * successor frees it (mc_pool_reclaim).  If the consumer takes the slab while the
 * successor looks, the claim changes the word first and the successor's CAS fails.
 *
 * Memory ordering: every CAS is acq_rel; the bytes and the meta of a slab are plain
 * memory, handed over by the ring's B/C pair or by the release in mc_pool_free().
 *
 * Memory is really there before it is touched (fallocate: a full /dev/shm is -ENOSPC,
 * never SIGBUS) and really returned (FALLOC_FL_PUNCH_HOLE).
 *
 * The same code holds slabs and descriptor blocks (two pools of one arena).
 */
#ifndef MC_IPC_POOL_H
#define MC_IPC_POOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "role.h"

typedef uint64_t mc_handle; /* index | generation << 32; 0 names no slab */
#define MC_HANDLE_NONE 0ULL

enum mc_slab_state {
	MC_SLAB_ABSENT = 0,
	MC_SLAB_GROWING = 1,
	MC_SLAB_FREE = 2,
	MC_SLAB_OWNED = 3,
	MC_SLAB_SHRINKING = 4,
};

/* What a slab holds. */
enum mc_slab_kind {
	MC_KIND_NONE = 0,
	MC_KIND_STATE = 1,   /* device state of QEMU, raw */
	MC_KIND_PAGES = 2,   /* raw pages; descriptors in meta.desc */
	MC_KIND_ENCODED = 3, /* a copyset as it travels (copyset.h) */
	MC_KIND_DESC = 4,    /* a block of descriptors (descriptor pool) */
};

/* Written by the owner, read by the next one; everything is checked where it is read. */
struct mc_slab_meta {
	uint64_t epoch;
	uint32_t seq;  /* position within the epoch, from 0 */
	uint32_t kind; /* enum mc_slab_kind */
	uint64_t used; /* bytes of the slab that count */
	uint64_t desc; /* PAGES: handle of its block in the descriptor pool */
	uint32_t pages;
	uint32_t of_kind; /* ENCODED: kind of what was encoded */
	uint64_t raw;     /* ENCODED: bytes before encoding */
	uint64_t hash;    /* ENCODED on the backup: checksum as received */
	uint64_t stamp;   /* mc_now_ns() at the hand-over: queue times; decoded: its own handle */
};
_Static_assert(sizeof(struct mc_slab_meta) == 64, "ABI");

/* Shared part of a pool. */
struct mc_pool_shm {
	uint64_t magic;
	uint64_t unit;         /* bytes of a slab, a multiple of 4096 */
	uint64_t max;          /* slabs at most, < 2^20 */
	_Atomic uint64_t held; /* slabs whose memory exists */
	_Atomic uint64_t peak; /* most in use at once since mc_pool_epoch_done() */
	_Atomic uint64_t in_use;
	_Atomic uint64_t strikes;
	_Atomic uint64_t strikes_max; /* of shrink_delay_s * 1000 / interval_ms; 0: never shrink */
	_Atomic uint64_t grown;       /* counters since creation */
	_Atomic uint64_t shrunk;
	_Atomic uint64_t grown_in_pause;
	_Atomic uint64_t failed; /* allocations refused: limit or ENOSPC */
	_Atomic uint64_t hint;   /* where the next scan begins */
	uint8_t pad[24];
};
#define MC_POOL_MAGIC 0x6c6f6f707363636dULL
_Static_assert(sizeof(struct mc_pool_shm) == 128, "ABI");

#define MC_POOL_MAPPED 4096

/* A process' view of a pool. */
struct mc_pool {
	struct mc_pool_shm *shm;
	_Atomic uint64_t *word;    /* max words */
	struct mc_slab_meta *meta; /* max entries */
	uint8_t *data;             /* max * unit bytes of address space */
	int fd;                    /* the arena's; not owned */
	uint64_t data_off;         /* of data in the file */
	uint64_t unit;             /* private copies of what was validated at attach */
	uint64_t max;
	enum mc_role role; /* who we are */
	/* Slabs that this process has mapped for writing already (the first MC_POOL_MAPPED). */
	uint64_t mapped[MC_POOL_MAPPED / 64];
	uint64_t mapped_shrunk; /* shm->shrunk when `mapped` was begun: a shrink unmaps */
};

static inline uint64_t mc_slab_word(enum mc_slab_state s, enum mc_role owner, uint32_t gen,
                                    uint64_t epoch)
{
	return (uint64_t)s << 60 | (uint64_t)owner << 52 | (uint64_t)(gen & 0xfffff) << 32 |
	       (epoch & 0xffffffff);
}
static inline enum mc_slab_state mc_slab_word_state(uint64_t w)
{
	return (enum mc_slab_state)(w >> 60);
}
static inline enum mc_role mc_slab_word_owner(uint64_t w)
{
	return (enum mc_role)(w >> 52 & 0xff);
}
static inline uint32_t mc_slab_word_gen(uint64_t w)
{
	return (uint32_t)(w >> 32 & 0xfffff);
}

/* Initialises the shared part; memory not shared yet. */
int mc_pool_init(struct mc_pool_shm *shm, uint64_t unit, uint64_t max);

/*
 * Allocates one slab for the caller's role and @epoch: a FREE one, or grows.
 * @in_pause: the guest stands still (a growth is counted apart).
 * Returns 0 and sets *ret; -ENOSPC at max_memory or when /dev/shm is full (nothing changed).
 * Non-blocking but for the kernel's zeroing of a new slab (about 1 ms for 5 MiB).
 */
int mc_pool_alloc(struct mc_pool *p, uint64_t epoch, bool in_pause, mc_handle *ret);

/*
 * Makes sure that @n slabs are free, growing outside the pause, and maps the first @n free
 * ones for writing in this process (MADV_POPULATE_WRITE).  Returns how many are free (may
 * be fewer at the limit).
 */
int mc_pool_reserve(struct mc_pool *p, uint64_t n);

/* Takes a slab over from @from (consumer, at peek); idempotent. -ESTALE: not @from's nor ours. */
int mc_pool_claim(struct mc_pool *p, mc_handle h, enum mc_role from);

/* Gives a slab back. Only its owner's handle is accepted: -ESTALE otherwise. */
int mc_pool_free(struct mc_pool *p, mc_handle h);

/*
 * Bytes and meta of a slab.  NULL when @h names nothing that this role owns (bad index,
 * other generation, other owner).
 */
void *mc_pool_data(const struct mc_pool *p, mc_handle h);
struct mc_slab_meta *mc_pool_meta(const struct mc_pool *p, mc_handle h);

/* The same for a slab of any owner that has this generation: readers of another's slab. */
void *mc_pool_data_any(const struct mc_pool *p, mc_handle h);

/*
 * Calls @fn for every slab owned by this role.  @fn returns true to have it freed.  A
 * successor uses this with mc_ring_contains() on its outgoing ring. Returns slabs freed.
 */
int mc_pool_reclaim(struct mc_pool *p, bool (*fn)(void *ctx, mc_handle h), void *ctx);

/*
 * The policy, called once per epoch by one process (capture, or restore on the backup),
 * outside the pause: peak usage below what is held is a strike; strikes_max in a row give
 * half of the held slabs back (never below one, never below what is in use).
 * Returns the number of slabs whose memory was returned.
 */
int mc_pool_epoch_done(struct mc_pool *p);

/* strikes_max = shrink_delay_s * 1000 / interval_ms, at least 1; resets the count. */
void mc_pool_set_strikes(struct mc_pool *p, uint64_t shrink_delay_s, uint64_t interval_ms);

#endif
