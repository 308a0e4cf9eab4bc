/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty tracking of the guest's RAM from outside QEMU.  Two ways, behind one interface:
 *
 *   uffd        userfaultfd write protection in asynchronous mode, read and re-armed by
 *               PAGEMAP_SCAN (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst)
 *   soft-dirty  the bit that the kernel keeps in each page table entry; /proc/PID/pagemap
 *               shows it, /proc/PID/clear_refs clears it for the whole process
 *               (CONFIG_MEM_SOFT_DIRTY; Documentation/admin-guide/mm/soft-dirty.rst)
 */
#ifndef MC_CAPTURE_TRACKER_H
#define MC_CAPTURE_TRACKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "../ipc/arena.h"
#include "../qmp/vm.h"

struct tracker_ops;
struct uffd_scan;

struct tracker {
	const struct tracker_ops *ops; /* NULL: not attached */
	const struct vm_info *vm;
	struct mc_arena *arena;
	int pagemap; /* /proc/PID/pagemap, owned */
	/* uffd */
	int uffd;               /* our copy, owned */
	int remote_fd;          /* its number in QEMU */
	struct uffd_scan *scan; /* owned */
	/* soft-dirty */
	int clear_refs;            /* /proc/PID/clear_refs, owned */
	int policy_fd;             /* the system's policy on huge pages, owned; -1: it has none */
	char policy[64];           /* what it said when the guest was checked */
	int ram_fd[VM_BLOCKS_MAX]; /* owned */
	uint64_t *entries;         /* buffer for pagemap, owned */
};

/* Not attached: every function but tracker_scan() may be called on it. */
void tracker_init(struct tracker *t);

/*
 * Whether writes to the RAM of @vm can be tracked in the way @kind (MC_TRACKER_AUTO: the first
 * one that this kernel has), without changing anything.  The way, or negative errno with a
 * sentence in @why that names what is in the way and the remedy: -EOPNOTSUPP (the kernel),
 * -EPERM (it would lose pages of this guest).
 */
int tracker_check(const struct vm_info *vm, enum mc_tracker kind, char *why, size_t why_len);

/*
 * Starts tracking all blocks of @vm; takes over what a dead predecessor left in QEMU.  Checks
 * first.  0, or negative errno with a sentence in @why.
 */
int tracker_attach(struct tracker *t, enum mc_tracker kind, const struct vm_info *vm,
                   struct mc_arena *arena, char *why, size_t why_len);

/*
 * Starts what helps with large guests; after the process was confined, so that it is confined as
 * well.  0 or negative errno: the scans are slower.
 */
int tracker_start(struct tracker *t);

/* Which way it tracks; MC_TRACKER_AUTO: not attached. */
enum mc_tracker tracker_kind(const struct tracker *t);

/*
 * True when nothing at all may write to the guest's RAM during a scan, QEMU itself not either:
 * such a write would be lost.  The uffd tracker reports it in the next scan.
 */
bool tracker_needs_quiet(const struct tracker *t);

/* Ends tracking, inside QEMU too. */
int tracker_detach(struct tracker *t);

/* Closes our side only. */
void tracker_done(struct tracker *t);

/*
 * Adds every page written since the last scan to @bitmap (and to @also unless NULL) and
 * begins to track it anew.  The guest must be stopped and drained.  Safe against death at any
 * instant as @bitmap is in the arena: what isn't in there, or in the arena's vector
 * (tracker_recover()), is reported again.  Returns the number of pages, or negative errno;
 * -EUCLEAN: pages may have been lost: the copy on the backup can't be brought up to date.
 */
int64_t tracker_scan(struct tracker *t, _Atomic uint64_t *bitmap, _Atomic uint64_t *also);

/* Unites the vector that a dead predecessor left with @bitmap; number of pages. */
int64_t tracker_recover(struct tracker *t, _Atomic uint64_t *bitmap);

#endif
