/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Kills a process at a chosen instant of an epoch's life and measures how long it is missed.
 *
 *   killer ARENA PID PROC STATE
 *
 * ARENA: path of the guest's arena.  PROC: number of the process' place whose successor is waited
 * for, 0: none.  STATE: what the newest epoch's journal record must say at the kill, or "any".
 *
 * Prints one JSON object: the state that the journal showed both just before and just after the
 * kill ("?" when it moved on between the two), and the milliseconds until a successor signed
 * in and until an epoch begun after the kill was committed.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../ipc/arena.h"
#include "../../ipc/util.h"

#define FIND_NS    (2 * MC_NS_PER_S)  /* to look for the state */
#define RECOVER_NS (10 * MC_NS_PER_S) /* to wait for the successor and its first commit */

static uint64_t begun(const struct mc_arena *a)
{
	return atomic_load(&a->journal.shm->last_begun);
}

static uint64_t committed(const struct mc_arena *a)
{
	return a->params.side == MC_SIDE_PRIMARY
	               ? atomic_load(&a->journal.shm->last_committed)
	               : mc_commit_epoch(atomic_load(&a->control->commit));
}

/* Spins: the states that matter last microseconds. */
static enum mc_epoch_state find(const struct mc_arena *a, const char *want, uint64_t *epoch)
{
	uint64_t end = mc_now_ns() + FIND_NS;
	enum mc_epoch_state s;

	do {
		*epoch = begun(a);
		s = mc_journal_state(&a->journal, *epoch);
	} while (strcmp(want, "any") != 0 && strcmp(mc_epoch_state_name(s), want) != 0 &&
	         mc_now_ns() < end);
	return s;
}

static double ms_since(uint64_t t)
{
	return (double)(mc_now_ns() - t) / 1e6;
}

int main(int argc, char **argv)
{
	struct timespec nap = {.tv_nsec = 200000};
	uint64_t epoch, after, t, starts;
	enum mc_epoch_state s, s2;
	double restarted = -1, recovered = -1;
	struct mc_arena a;
	int fd, place;
	pid_t pid;

	if (argc != 5)
		return 2;
	fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || mc_arena_view(&a, fd) < 0)
		return 1;
	pid = (pid_t)atoi(argv[2]);
	place = atoi(argv[3]);
	if (pid <= 1 || place < 0 || place >= MC_ROLE_MAX)
		return 2;
	starts = atomic_load(&a.proc[place].starts);
	s = find(&a, argv[4], &epoch);
	if (kill(pid, SIGKILL) < 0)
		return 1;
	t = mc_now_ns();
	after = begun(&a);
	s2 = mc_journal_state(&a.journal, epoch);
	while ((restarted < 0 || recovered < 0) && mc_now_ns() - t < RECOVER_NS) {
		if (restarted < 0 && (!place || atomic_load(&a.proc[place].starts) > starts))
			restarted = ms_since(t);
		if (recovered < 0 && committed(&a) > after)
			recovered = ms_since(t);
		nanosleep(&nap, NULL);
	}
	printf("{\"state\": \"%s\", \"epoch\": %llu, \"restarted\": %.2f, \"recovered\": %.2f}\n",
	       s == s2 && epoch == after ? mc_epoch_state_name(s) : "?", (unsigned long long)epoch,
	       restarted, recovered);
	mc_arena_done(&a);
	return 0;
}
