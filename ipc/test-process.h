/* SPDX-License-Identifier: GPL-2.0-or-later */
/* For tests of a whole process: a worker on an arena of the test's own, which plays the others. */
#ifndef MC_IPC_TEST_PROCESS_H
#define MC_IPC_TEST_PROCESS_H

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "arena.h"
#include "util.h"

#define PROC_LIMIT_NS (20 * MC_NS_PER_S)

struct proc {
	pid_t pid;
	enum mc_role role;
};

/* Where the workers look for the supervisor; nowhere unless a test plays it. */
static const char *proc_control = "/nowhere";

/* Processes of tests that failed. */
static pid_t procs_left[64];

/* Opens another view of @a, as a role that the test plays. */
static inline void arena_as(struct mc_arena *view, const struct mc_arena *a, enum mc_role role)
{
	int bells[MC_ROLE_MAX];

	for (int i = 0; i < MC_ROLE_MAX; i++)
		bells[i] = fcntl(a->bell_fd[i], F_DUPFD_CLOEXEC, 3);
	assert_int_equal(mc_arena_attach(view, fcntl(a->fd, F_DUPFD_CLOEXEC, 3),
	                                 mc_arena_config_reader(a), bells, MC_ROLE_MAX, role),
	                 0);
}

/* mc-NAME lies in the directory above that of the test. */
static inline void proc_path(const char *name, char *path, size_t len)
{
	char self[512];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	assert_true(n > 0);
	self[n] = '\0';
	*strrchr(self, '/') = '\0';
	*strrchr(self, '/') = '\0';
	snprintf(path, len, "%s/mc-%s", self, name);
}

static inline void proc_exec(const struct mc_arena *a, enum mc_role role)
{
	char path[600], index[8], config[8];
	char *argv[] = {path,
	                "--guest",
	                (char *)a->config->guest,
	                "--index",
	                index,
	                "--arena-fd",
	                "3",
	                "--bell-fd",
	                "4",
	                "--config-fd",
	                config,
	                "--control",
	                (char *)proc_control,
	                NULL};
	int high[MC_ROLE_MAX + 2];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	proc_path(mc_role_name(role), path, sizeof(path));
	snprintf(index, sizeof(index), "%u", mc_role_index(role));
	high[0] = fcntl(a->fd, F_DUPFD, 200);
	for (int i = 0; i < MC_ROLE_MAX; i++)
		high[i + 1] = fcntl(a->bell_fd[i], F_DUPFD, 200);
	high[MC_ROLE_MAX + 1] = fcntl(mc_arena_config_reader(a), F_DUPFD, 200);
	snprintf(config, sizeof(config), "%d", 4 + MC_ROLE_MAX);
	for (size_t i = 0; i < MC_ARRAY_SIZE(high); i++)
		dup2(high[i], 3 + (int)i);
	if (!getenv("MC_TEST_VERBOSE"))
		dup2(open("/dev/null", O_WRONLY), 2);
	execv(path, argv);
	_exit(127);
}

static inline void proc_start(struct proc *p, const struct mc_arena *a, enum mc_role role)
{
	size_t i = 0;

	fflush(NULL);
	p->role = role;
	p->pid = fork();
	assert_true(p->pid >= 0);
	if (!p->pid)
		proc_exec(a, role);
	while (procs_left[i])
		assert_true(++i < MC_ARRAY_SIZE(procs_left));
	procs_left[i] = p->pid;
}

/* Waits for its end; the status as of waitpid(). */
static inline int proc_reap(struct proc *p)
{
	int status = -1;

	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	for (size_t i = 0; i < MC_ARRAY_SIZE(procs_left); i++)
		if (procs_left[i] == p->pid)
			procs_left[i] = 0;
	p->pid = 0;
	return status;
}

static inline void proc_kill(struct proc *p)
{
	if (!p->pid)
		return;
	kill(p->pid, SIGKILL);
	(void)proc_reap(p);
}

/* Ends in good order, with exit status 0 (leaks of a sanitizer's build would change it). */
static inline void proc_end(struct proc *p)
{
	int status;

	kill(p->pid, SIGTERM);
	status = proc_reap(p);
	/* It may not have come as far as to handle signals. */
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM)
		return;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail_msg("mc-%s ended with status %#x", mc_role_name(p->role), (unsigned)status);
}

/* Group teardown. */
static inline int procs_sweep(void **state)
{
	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(procs_left); i++) {
		if (!procs_left[i])
			continue;
		kill(procs_left[i], SIGKILL);
		waitpid(procs_left[i], NULL, 0);
		procs_left[i] = 0;
	}
	return 0;
}

/* Sleeps on the bell of the role that @a plays until @ok(ctx); false after the time limit. */
static inline bool wait_until(struct mc_arena *a, bool (*ok)(void *ctx), void *ctx)
{
	struct mc_bell *bell = &a->proc[a->role].bell;
	uint64_t end = mc_now_ns() + PROC_LIMIT_NS;
	int fd = a->bell_fd[a->role];

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};

		mc_bell_sleep(bell);
		if (ok(ctx)) {
			mc_bell_awake(bell, fd);
			return true;
		}
		if (mc_now_ns() > end)
			return false;
		(void)poll(&p, 1, 20); /* not everything rings every role */
		mc_bell_awake(bell, fd);
	}
}

/* Slabs (or descriptor blocks) that somebody owns, by their words. */
static inline uint64_t pool_owned(const struct mc_pool *p)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < p->max; i++)
		n += mc_slab_word_state(atomic_load(&p->word[i])) == MC_SLAB_OWNED;
	return n;
}

#endif
