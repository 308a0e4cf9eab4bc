/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Between tracker.c and the ways to track. */
#ifndef MC_CAPTURE_TRACKER_PRIVATE_H
#define MC_CAPTURE_TRACKER_PRIVATE_H

#include "tracker.h"

struct tracker_ops {
	enum mc_tracker kind;
	const char *needs; /* of the kernel, for messages */
	bool quiet;        /* tracker_needs_quiet() */
	/* This kernel has what it takes. */
	bool (*supported)(void);
	/* No page of this guest would be lost. 0 or negative errno with @why. May be NULL. */
	int (*check)(const struct vm_info *vm, char *why, size_t why_len);
	/* The rest as in tracker.h; pagemap is open. */
	int (*attach)(struct tracker *t, char *why, size_t why_len);
	int (*detach)(struct tracker *t); /* NULL: nothing is left in QEMU */
	int (*start)(struct tracker *t);  /* NULL: there is nothing to start */
	int64_t (*scan)(struct tracker *t, _Atomic uint64_t *bitmap, _Atomic uint64_t *also);
	int64_t (*recover)(struct tracker *t, _Atomic uint64_t *bitmap); /* NULL: no vector */
	void (*done)(struct tracker *t);                                 /* may be NULL */
};

extern const struct tracker_ops tracker_uffd, tracker_softdirty;

/* Sets the bits of pages [first, first + n). */
void tracker_set_bits(_Atomic uint64_t *bitmap, uint64_t first, uint64_t n);

/* softdirty-check.c */

/* 0, or -EPERM with @why: the RAM isn't locked, or may be mapped by huge pages. */
int softdirty_check(const struct vm_info *vm, char *why, size_t why_len);
/* The part of it that may change while QEMU runs; needs CAP_SYS_PTRACE only. */
int softdirty_check_mapping(const struct vm_info *vm, char *why, size_t why_len);

/* The system's policy on huge pages in shared memory. */
#define SOFTDIRTY_THP "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

#endif
