/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Giving up privileges for good, once a process holds what it needs: no_new_privs, an
 * unprivileged user, no capabilities but those named, an allow list of system calls.
 *
 * docs/security.md has the table of what each process keeps; tests/test_confine.py reads it
 * from /proc.
 */
#ifndef MC_IPC_CONFINE_H
#define MC_IPC_CONFINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* System calls beyond those that every worker needs (memory, clocks, polling, its sockets). */
enum mc_allow {
	MC_ALLOW_FILES = 1 << 0,  /* opening files: certificates, host names, /proc, devices */
	MC_ALLOW_NET = 1 << 1,    /* sockets other than AF_UNIX */
	MC_ALLOW_DEVICE = 1 << 2, /* ioctl on what it has open: taps, verbs, userfaultfd */
	MC_ALLOW_TRACE = 1 << 3,  /* ptrace and what goes with it */
	MC_ALLOW_CHILD = 1 << 4,  /* forking and reaping a helper that gives up the rest */
	MC_ALLOW_NETNS = 1 << 5,  /* entering network namespaces */
};

struct mc_confine {
	uid_t uid; /* (uid_t)-1: no switch */
	gid_t gid;
	uint64_t capabilities; /* bits 1 << CAP_X that stay; lost when they weren't there */
	unsigned allow;        /* enum mc_allow */
};

/*
 * Confines the calling process, irrevocably.  Single-threaded callers only (threads may be started
 * after).  0, or negative errno; the process must end then: it may be confined in part.  Memory may
 * be locked without limit afterwards if that could be set before.
 */
int mc_confine(const struct mc_confine *c);

#endif
