/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The guard: a small process that holds the same QMP connection and lets the guest go on when
 * capture dies in the middle of a pause.  A QMP socket serves one client, so nobody else could.
 */
#ifndef MC_CAPTURE_GUARD_H
#define MC_CAPTURE_GUARD_H

#include <sys/types.h>

#include "../ipc/confine.h"
#include "../ipc/control.h"

struct guard {
	pid_t pid;
	int sock; /* EOF here: the guard died; a byte from here: the guard may go */
};

/* Forks the guard, confined as @confine says. @qmp_fd is shared. 0 or negative errno. */
int guard_start(struct guard *g, int qmp_fd, struct mc_control *control,
                const struct mc_confine *confine);

/* Ends the guard in good order and reaps it. */
void guard_stop(struct guard *g);

/*
 * For a successor: the guard of a dead capture holds the monitor until it has let the guest go on.
 * Waits for its end, and ends one that doesn't.  At most 400 ms.
 */
void guard_outlive(const struct mc_control *control);

/* Reaps a guard that died by itself; guard_start() may follow. */
void guard_reap(struct guard *g);

#endif
