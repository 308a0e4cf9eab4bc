/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty tracking of the guest's RAM from outside QEMU: userfaultfd write protection in
 * asynchronous mode, read and re-armed by PAGEMAP_SCAN (Linux 6.7, Documentation/
 * admin-guide/mm/pagemap.rst and userfaultfd.rst).
 */
#ifndef MC_CAPTURE_TRACKER_H
#define MC_CAPTURE_TRACKER_H

#include <stdatomic.h>
#include <stdint.h>

#include "../ipc/arena.h"
#include "../qmp/vm.h"

struct tracker {
	const struct vm_info *vm;
	struct mc_arena *arena;
	int uffd;      /* our copy, owned */
	int remote_fd; /* its number in QEMU */
	int pagemap;   /* /proc/PID/pagemap, owned */
};

/*
 * Starts tracking all blocks of @vm; takes over what a dead predecessor left in QEMU.  0, or
 * negative errno with a sentence in @why.
 */
int tracker_attach(struct tracker *t, const struct vm_info *vm, struct mc_arena *arena, char *why,
                   size_t why_len);

/* Ends tracking and closes the userfaultfd inside QEMU. */
int tracker_detach(struct tracker *t);

/* Closes our side only. */
void tracker_done(struct tracker *t);

/*
 * Adds every page written since the last scan to @bitmap (and to @also unless NULL) and
 * re-protects it.  The guest must be stopped and drained.  Safe against death at any
 * instant: the result of each ioctl stands in the arena's vector before it is in the bitmap
 * (tracker_recover()).  Returns the number of pages or negative errno.
 */
int64_t tracker_scan(struct tracker *t, _Atomic uint64_t *bitmap, _Atomic uint64_t *also);

/* Unites the vector that a dead predecessor left with @bitmap; number of pages. */
int64_t tracker_recover(struct tracker *t, _Atomic uint64_t *bitmap);

#endif
