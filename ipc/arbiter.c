/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "arbiter.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util.h"

#define PREFIX   "exec:"
#define LOST_MAX 125 /* beyond it the shell speaks, not the command */

struct mc_arbiter {
	pid_t pid; /* 0: reaped */
	int pidfd;
	bool late;
	enum mc_verdict verdict;
	sd_event_source *io, *limit;
	char text[64];
};

bool mc_arbiter_configured(const struct mc_config *cfg)
{
	return strncmp(cfg->arbiter, PREFIX, strlen(PREFIX)) == 0;
}

/* The verdict of a command that has ended. */
static void judge(struct mc_arbiter *a, int status)
{
	a->verdict = MC_VERDICT_FAILED;
	if (a->late) {
		snprintf(a->text, sizeof(a->text), "gave no answer in time");
	} else if (WIFSIGNALED(status)) {
		snprintf(a->text, sizeof(a->text), "was killed by signal %d", WTERMSIG(status));
	} else {
		snprintf(a->text, sizeof(a->text), "exited with status %d", WEXITSTATUS(status));
		if (!WEXITSTATUS(status))
			a->verdict = MC_VERDICT_WON;
		else if (WEXITSTATUS(status) <= LOST_MAX)
			a->verdict = MC_VERDICT_LOST;
	}
}

static void reap(struct mc_arbiter *a)
{
	int status = 0;

	while (waitpid(a->pid, &status, 0) < 0 && errno == EINTR)
		;
	a->pid = 0;
	judge(a, status);
	a->io = sd_event_source_disable_unref(a->io);
	a->limit = sd_event_source_disable_unref(a->limit);
}

static int on_end(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	(void)s;
	(void)fd;
	(void)revents;
	reap(userdata);
	return 0;
}

/* Its process group: what it started has no say either. */
static void kill_group(const struct mc_arbiter *a)
{
	if (kill(-a->pid, SIGKILL) < 0)
		(void)kill(a->pid, SIGKILL); /* not in its group yet */
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct mc_arbiter *a = userdata;

	(void)s;
	(void)usec;
	a->late = true;
	kill_group(a); /* on_end() follows */
	return 0;
}

/* In the child.  Only what may be called after a fork is. */
static void become(char *const argv[], char *const env[], pid_t parent)
{
	sigset_t none;
	int null = open("/dev/null", O_RDWR);

	(void)setpgid(0, 0);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
		_exit(126);
	(void)syscall(SYS_close_range, 3, ~0U, 0);
	(void)signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	execve("/bin/sh", argv, env);
	_exit(127);
}

static int start(struct mc_arbiter *a, const struct mc_config *cfg, enum mc_reason why,
                 uint64_t term, uint64_t epoch)
{
	char command[sizeof(cfg->arbiter)], guest[96], side[32], reason[64], t[48], n[48];
	const char *path = getenv("PATH");
	char paths[1024];
	char *argv[] = {"sh", "-c", command, NULL};
	char *env[] = {guest, side, reason, t, n, paths, NULL};
	pid_t parent = getpid();

	snprintf(command, sizeof(command), "%s", cfg->arbiter + strlen(PREFIX));
	snprintf(guest, sizeof(guest), "MC_GUEST=%s", cfg->guest);
	snprintf(side, sizeof(side), "MC_SIDE=%s",
	         cfg->side == MC_SIDE_PRIMARY ? "primary" : "backup");
	snprintf(reason, sizeof(reason), "MC_REASON=%s", mc_reason_name(why));
	snprintf(t, sizeof(t), "MC_TERM=%" PRIu64, term);
	snprintf(n, sizeof(n), "MC_EPOCH=%" PRIu64, epoch);
	snprintf(paths, sizeof(paths), "PATH=%s", path ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
	a->pid = fork();
	if (a->pid < 0)
		return -errno;
	if (a->pid == 0)
		become(argv, env, parent);
	(void)setpgid(a->pid, a->pid);
	a->pidfd = (int)syscall(SYS_pidfd_open, a->pid, 0);
	return a->pidfd < 0 ? -errno : fcntl(a->pidfd, F_SETFD, FD_CLOEXEC);
}

int mc_arbiter_ask(struct mc_arbiter **ret, sd_event *e, const struct mc_config *cfg,
                   enum mc_reason why, uint64_t term, uint64_t epoch)
{
	struct mc_arbiter *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return -ENOMEM;
	a->pidfd = -1;
	r = start(a, cfg, why, term, epoch);
	if (r >= 0)
		r = sd_event_add_io(e, &a->io, a->pidfd, EPOLLIN, on_end, a);
	if (r >= 0)
		r = sd_event_add_time_relative(e, &a->limit, CLOCK_MONOTONIC,
		                               atomic_load(&cfg->arbiter_timeout_ms) *
		                                       MC_NS_PER_MS / MC_NS_PER_US,
		                               1000, on_limit, a);
	if (r < 0) {
		mc_arbiter_free(a);
		return r;
	}
	*ret = a;
	return 0;
}

enum mc_verdict mc_arbiter_verdict(const struct mc_arbiter *a)
{
	return a->verdict;
}

const char *mc_arbiter_text(const struct mc_arbiter *a)
{
	return a->text;
}

struct mc_arbiter *mc_arbiter_free(struct mc_arbiter *a)
{
	if (!a)
		return NULL;
	if (a->pid > 0) {
		kill_group(a);
		reap(a);
	}
	sd_event_source_disable_unref(a->io);
	sd_event_source_disable_unref(a->limit);
	mc_closep(&a->pidfd);
	free(a);
	return NULL;
}
