/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Kills a process at a chosen instant of an epoch's life and measures how long it is missed.
 *
 *   killer ARENA PID PROC STATE MOVER
 *
 * ARENA: path of the guest's arena.  PROC: number of the process' place whose successor is waited
 * for, 0: none.  STATE: what the newest epoch's journal record must say at the kill, or "any".
 * MOVER: pid of the process that ends that state; it is stopped in it, until the kill is done, as
 * often as it takes.
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

#define FIND_NS    (3 * MC_NS_PER_S)  /* to look for the state */
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

static enum mc_epoch_state newest(const struct mc_arena *a, uint64_t *epoch)
{
	*epoch = begun(a);
	return mc_journal_state(&a->journal, *epoch);
}

static bool is_stopped(pid_t pid)
{
	char path[40], buf[512], *p;
	int mc_autoclose fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return true; /* gone */
	buf[n] = '\0';
	p = strrchr(buf, ')');
	return p && p[1] == ' ' && p[2] != 'R' && p[2] != 'S' && p[2] != 'D';
}

/*
 * Finds the state and holds it.  It may last microseconds only: spins, stops the process that ends
 * it, and lets that go on when it was too late.
 */
static enum mc_epoch_state find(const struct mc_arena *a, const char *want, pid_t mover,
                                uint64_t *epoch)
{
	uint64_t end = mc_now_ns() + FIND_NS;
	enum mc_epoch_state s = newest(a, epoch);

	while (strcmp(want, "any") != 0 && mc_now_ns() < end) {
		s = newest(a, epoch);
		if (strcmp(mc_epoch_state_name(s), want) != 0)
			continue;
		kill(mover, SIGSTOP);
		while (!is_stopped(mover))
			;
		s = newest(a, epoch);
		if (strcmp(mc_epoch_state_name(s), want) == 0)
			break;
		kill(mover, SIGCONT);
	}
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
	int fd, place, r;
	pid_t pid, mover;

	if (argc != 6)
		return 2;
	fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || mc_arena_view(&a, fd, -1) < 0)
		return 1;
	pid = (pid_t)atoi(argv[2]);
	place = atoi(argv[3]);
	mover = (pid_t)atoi(argv[5]);
	if (pid <= 1 || mover <= 1 || place < 0 || place >= MC_ROLE_MAX)
		return 2;
	starts = atomic_load(&a.proc[place].starts);
	s = find(&a, argv[4], mover, &epoch);
	r = kill(pid, SIGKILL);
	t = mc_now_ns();
	s2 = newest(&a, &after);
	kill(mover, SIGCONT);
	if (r < 0)
		return 1;
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
