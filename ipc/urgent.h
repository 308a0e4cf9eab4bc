/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How soon the scheduler runs a process that was woken.  An epoch, and a takeover, go through
 * several processes that each work for a few microseconds; behind whatever else uses the CPU each
 * of them would wait for the end of its slice (3 ms and more).
 */
#ifndef MC_IPC_URGENT_H
#define MC_IPC_URGENT_H

#include <sys/types.h>

/*
 * Asks for short slices for thread @tid (0: the caller): it runs sooner after it was woken, and
 * gets no more CPU time than before.  Keeps its nice value; does nothing where the policy isn't the
 * normal one.  Linux 6.12 and newer honour it, older kernels ignore it.  0 or negative errno
 * (-EPERM: another user's thread, without CAP_SYS_NICE).
 */
int mc_urgent(pid_t tid);

/* mc_urgent() for every thread that process @pid has now; those that they make inherit it. */
int mc_urgent_process(pid_t pid);

/* The caller only has to give things back: everything else goes first from now on. */
void mc_not_urgent(void);

#endif
