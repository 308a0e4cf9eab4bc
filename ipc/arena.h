/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Arena: the shared memory of one guest's pipeline at one end.  A POSIX shm object, mode
 * 0600, created and opened by name by the supervisor only; the others inherit the fd.
 * The configuration (config.h) is an object of its own, NAME:config, of which the others
 * inherit an fd that can only be read: none of them can change what a successor of another,
 * which starts with more privileges, is going to do.
 *
 *   header | control | procs | journal | metrics | vector | bitmaps | hashes |
 *   rings | shadow entries | desc pool words, metas | slab pool words, metas |
 *   shadow bytes | desc blocks | slabs
 *
 * Everything up to and including the shadow bytes is allocated (fallocate) at creation;
 * descriptor blocks and slabs come and go with their pools.  The layout is computed from
 * the five numbers in mc_arena_params; a process that attaches computes it again and
 * refuses an arena whose header says anything else.
 */
#ifndef MC_IPC_ARENA_H
#define MC_IPC_ARENA_H

#include <stdbool.h>
#include <stdint.h>

#include "bell.h"
#include "config.h"
#include "control.h"
#include "copyset.h"
#include "fault.h"
#include "hashes.h"
#include "journal.h"
#include "metrics.h"
#include "pool.h"
#include "ring.h"
#include "role.h"
#include "shadow.h"

#define MC_ARENA_MAGIC 0x616e657261636d31ULL
#ifdef MC_FAULTS
#define MC_ABI_VERSION 1000005
#else
#define MC_ABI_VERSION 5
#endif
#define MC_SLAB_DEFAULT   (5ULL << 20)
#define MC_BITMAPS        10 /* one per epoch in flight (8) + carry + nobase */
#define MC_VECTOR_REGIONS 4096

/* What an arena is made from; all that its layout depends on. */
struct mc_arena_params {
	uint64_t slab_size;   /* multiple of 4096, 64 KiB .. 1 GiB */
	uint64_t max_memory;  /* bytes of slabs at most; at least 4 slabs */
	uint64_t delta_cache; /* bytes of shadow; 0: none */
	uint64_t ram_pages;   /* pages of guest RAM at most: size of a bitmap */
	uint64_t side;        /* enum mc_side */
};

/* A process' slot: identity and the last words of a dead one. */
struct mc_proc {
	struct mc_bell bell;
	_Atomic uint64_t pid;
	_Atomic uint64_t start_time; /* field 22 of /proc/PID/stat */
	_Atomic uint64_t starts;     /* times a process of this role attached */
	_Atomic uint64_t heartbeat;  /* ns, raised whenever its loop turns */
	_Atomic uint64_t busy_until; /* ns: it said that it won't turn before (mc_arena_busy()) */
	char last_words[120];        /* last error it logged; NUL terminated */
	char build[32];
#ifdef MC_FAULTS
	struct mc_fault_slot fault; /* test builds have an ABI of their own */
#endif
};

struct mc_arena_header {
	uint64_t magic;
	uint32_t abi;
	uint32_t header_size;
	char build[32]; /* build id of the creator; another build of the same ABI may attach */
	struct mc_arena_params params;
	uint64_t total;         /* file size */
	_Atomic uint64_t ready; /* 1: initialisation complete (release) */
};

/* Written by PAGEMAP_SCAN: an array of struct page_region {start, end, categories}. */
struct mc_region {
	uint64_t start, end, categories;
};

/* One process' view of an attached arena; all pointers are into the mapping. */
struct mc_arena {
	int fd;        /* owned */
	int config_fd; /* owned; -1: none */
	void *map;
	uint64_t size;
	struct mc_arena_params params;
	enum mc_role role;
	struct mc_arena_header *header;
	struct mc_control *control;
	struct mc_config *config; /* mapped for reading only, but in the supervisor */
	struct mc_proc *proc;     /* [MC_ROLE_MAX] */
	struct mc_journal journal;
	struct mc_metrics_block *metrics;     /* [MC_ROLE_MAX] */
	struct mc_region *vector;             /* [MC_VECTOR_REGIONS] scan results */
	_Atomic uint64_t *bitmap[MC_BITMAPS]; /* ram_pages bits each */
	uint64_t bitmap_words;
	struct mc_hash_box *hashes;                    /* page hashes, asked for and answered */
	struct mc_ring *ring_stage[MC_STAGES_MAX];     /* primary: capture -> stage i */
	struct mc_ring *ring_transport[MC_STAGES_MAX]; /* primary: stage i -> transport */
	struct mc_ring *ring_restore;                  /* backup: transport -> restore */
	uint64_t ring_slots;
	struct mc_shadow shadow;
	struct mc_pool slabs;
	struct mc_pool descs;
	int bell_fd[MC_ROLE_MAX]; /* eventfds, owned; -1: none */
};

/* Checks params. 0 or -EINVAL with a sentence in @why (128 bytes). */
int mc_arena_params_check(const struct mc_arena_params *p, char *why, size_t why_len);

/*
 * Creates and initialises an arena (supervisor).  @name: "/..." for shm_open(O_EXCL), or NULL for
 * a memfd (tests).  bell fds are created.  -EEXIST, -ENOSPC (/dev/shm full: nothing left
 * behind), -EINVAL.
 */
int mc_arena_create(struct mc_arena *a, const char *name, const struct mc_arena_params *p);

/* Removes both names (supervisor). Who has the fds keeps what is behind them. */
void mc_arena_unlink(const char *name);

/*
 * Supervisor, of an arena that a predecessor made and a worker has handed in: the fd of its
 * configuration, for writing, opened by name; the caller's.  -ESTALE: @arena_fd isn't what has that
 * name; other errors of shm_open(3).
 */
int mc_arena_reopen_config(const char *name, int arena_fd);

/* A new fd of the configuration that can't be written by, for a process to inherit. */
int mc_arena_config_reader(const struct mc_arena *a);

/*
 * Attaches to an arena by its fd, its configuration's fd and @nbells eventfds in role order (all
 * consumed on success only).  @config_fd is only read, but by the supervisor.  Validates
 * everything: -EBADMSG (not an arena, or damaged), -EPROTONOSUPPORT (another ABI; nothing was
 * touched).
 */
int mc_arena_attach(struct mc_arena *a, int fd, int config_fd, const int *bells, unsigned nbells,
                    enum mc_role role);

/*
 * Maps an arena, live or dead, for looking at only: nothing is written, no bell is there, and of
 * the contents only the header is trusted; whoever looks checks each part (mc_arena_part_ok()).
 * @fd, @config_fd: read-only is enough; consumed on success only.  @config_fd -1: the configuration
 * is missing, and seen as zeros.  -EBADMSG, -EPROTONOSUPPORT (another ABI).
 */
int mc_arena_view(struct mc_arena *a, int fd, int config_fd);

/* Parts of a viewed arena whose own magic and sizes can be wrong. */
enum mc_arena_part {
	MC_PART_JOURNAL,
	MC_PART_SLABS,
	MC_PART_DESCS,
	MC_PART_SHADOW,
	MC_PART_RINGS,
	MC_PART_CONFIG,
	MC_PARTS
};
bool mc_arena_part_ok(const struct mc_arena *a, enum mc_arena_part part);

/*
 * One process a role: takes the role's place, an OFD lock (fcntl(2)) that goes with the process,
 * on a file description of our own (*fd, to be kept open).  -EBUSY: somebody has it.
 */
int mc_arena_take_place(struct mc_arena *a, int *fd);
/* True when a process has the role's place. */
bool mc_arena_place_taken(const struct mc_arena *a, enum mc_role role);

/* Unmaps and closes. Accepts a zeroed or half-built struct. Does not unlink. */
void mc_arena_done(struct mc_arena *a);

/* Raises a role's heartbeat, as every turn of a worker's loop does. */
void mc_arena_alive(struct mc_arena *a, enum mc_role role);
/*
 * Announces that the loop of a role won't turn for up to @ns nanoseconds from now; beyond that the
 * process counts as hung and is killed.  0: done.  The heartbeat is raised first, and whoever reads
 * busy_until before the heartbeat (acquire, release) never sees an announcement that ended together
 * with the heartbeat of before it.
 */
void mc_arena_busy(struct mc_arena *a, enum mc_role role, uint64_t ns);

/* Rings the bell of a role / of all roles but our own. Never blocks. */
void mc_arena_ring(struct mc_arena *a, enum mc_role role);
void mc_arena_ring_all(struct mc_arena *a);
/*
 * Primary, after slabs were given back: rings who may wait for one, capture and the stage workers
 * with something in their ring.  A worker looks at its ring and fails to allocate before it sleeps
 * (bell.h), so that either it sees the slab or we see what is in its ring.
 */
void mc_arena_ring_freed(struct mc_arena *a);

/* Total bytes of a file with these params, and what is allocated at creation. */
uint64_t mc_arena_total(const struct mc_arena_params *p);
uint64_t mc_arena_fixed(const struct mc_arena_params *p);

/* "1.0+<hash of the sources>" of this binary. */
const char *mc_build_id(void);

#endif
