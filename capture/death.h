/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Early word of QEMU's death.  A killed process' sockets close only after its memory was given
 * back, which for a large guest takes tens of milliseconds; but its threads end at once, and
 * all but the last one before that.
 */
#ifndef MC_CAPTURE_DEATH_H
#define MC_CAPTURE_DEATH_H

#include <stdbool.h>
#include <sys/types.h>

#define DEATH_THREADS 8

struct death {
	int stat, status;          /* of /proc/PID; -1: not open */
	int any;                   /* epoll of those pidfds: one of them may have ended */
	int thread[DEATH_THREADS]; /* pidfds; readable once that thread has ended */
	unsigned n;
};

/*
 * Watches the first DEATH_THREADS threads that @pid has now; one of them that ends later for
 * reasons of its own does no harm.  0; -EINVAL: the kernel has no pidfd of threads (before Linux
 * 6.9); other negative errno.  Nothing stays open after an error.
 */
int death_open(struct death *d, pid_t pid);
void death_close(struct death *d); /* accepts what death_open() refused */

/*
 * After a thread has ended: true when the whole process is ending: its leader is, or has been
 * sent SIGKILL.  Nothing of it runs after that but in the kernel; what it wrote before can be read.
 */
bool death_has_come(const struct death *d);

/* Threads that have ended, but not with their process: `any` tells of them no more. */
void death_forget_ended(const struct death *d);

#endif
