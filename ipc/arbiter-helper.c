/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mc-arbiter: runs the arbiter's command for a process that can't any more. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter-private.h"
#include "arbiter.h"
#include "util.h"

#define LIMIT_MAX_MS 600000U

/* What the command is and is told, as it was when the helper began. */
struct helper {
	int sock;
	char command[sizeof(((struct mc_config *)0)->arbiter)];
	char guest[96], side[32], path[1024];
	pid_t pid; /* of the command; 0: none runs */
	int pidfd;
	uint32_t number;
	uint64_t until; /* ns */
	bool late;
};

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
	(void)signal(SIGTERM, SIG_DFL);
	(void)signal(SIGINT, SIG_DFL);
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	execve("/bin/sh", argv, env);
	_exit(127);
}

static void answer(struct helper *h, int status)
{
	struct mc_arbiter_answer a = {.number = h->number, .status = status, .late = h->late};

	/* Who doesn't read it has forgotten the question. */
	(void)send(h->sock, &a, sizeof(a), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int reap(struct helper *h)
{
	int status = 0;

	while (waitpid(h->pid, &status, 0) < 0 && errno == EINTR)
		;
	h->pid = 0;
	mc_closep(&h->pidfd);
	return status;
}

/* Its process group: what it started has no say either. */
static void kill_group(const struct helper *h)
{
	if (kill(-h->pid, SIGKILL) < 0)
		(void)kill(h->pid, SIGKILL); /* not in its group yet */
}

static void forget(struct helper *h)
{
	if (!h->pid)
		return;
	kill_group(h);
	(void)reap(h);
}

static int start(struct helper *h, const struct mc_arbiter_question *q)
{
	char reason[64], term[48], epoch[48];
	char *argv[] = {"sh", "-c", h->command, NULL};
	char *env[] = {h->guest, h->side, reason, term, epoch, h->path, NULL};
	pid_t parent = getpid();

	snprintf(reason, sizeof(reason), "MC_REASON=%s", mc_reason_name((enum mc_reason)q->reason));
	snprintf(term, sizeof(term), "MC_TERM=%" PRIu64, q->term);
	snprintf(epoch, sizeof(epoch), "MC_EPOCH=%" PRIu64, q->epoch);
	h->number = q->number;
	h->late = false;
	h->until = mc_now_ns() + mc_min_u64(q->limit_ms, LIMIT_MAX_MS) * MC_NS_PER_MS;
	h->pid = fork();
	if (h->pid < 0) {
		h->pid = 0;
		return -errno;
	}
	if (h->pid == 0)
		become(argv, env, parent);
	(void)setpgid(h->pid, h->pid);
	h->pidfd = (int)syscall(SYS_pidfd_open, h->pid, 0);
	if (h->pidfd >= 0)
		return fcntl(h->pidfd, F_SETFD, FD_CLOEXEC) < 0 ? -errno : 0;
	forget(h);
	return -EMFILE;
}

/* False: nobody is there any more who might ask. */
static bool listen_to(struct helper *h)
{
	struct mc_arbiter_question q;
	ssize_t n = recv(h->sock, &q, sizeof(q), MSG_DONTWAIT);
	int r;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n != sizeof(q) || q.reason >= MC_REASONS)
		return n > 0;
	forget(h);
	if (!q.number)
		return true;
	r = start(h, &q);
	if (r < 0)
		answer(h, r);
	return true;
}

static int left_ms(const struct helper *h)
{
	uint64_t now = mc_now_ns();

	if (!h->pid || h->late)
		return -1;
	return now < h->until ? (int)((h->until - now) / MC_NS_PER_MS) + 1 : 0;
}

static void turn(struct helper *h)
{
	struct pollfd p[2] = {{.fd = h->sock, .events = POLLIN},
	                      {.fd = h->pidfd, .events = POLLIN}};

	if (poll(p, 2, left_ms(h)) < 0)
		return;
	if (p[1].revents)
		answer(h, reap(h));
	if (h->pid && left_ms(h) == 0) {
		h->late = true;
		kill_group(h); /* its end follows */
	}
	if (p[0].revents && !listen_to(h)) {
		forget(h);
		_exit(0);
	}
}

static void helper_main(struct helper *h)
{
	prctl(PR_SET_NAME, "mc-arbiter");
	/* They are for the process that asks. */
	(void)signal(SIGTERM, SIG_IGN);
	(void)signal(SIGINT, SIG_IGN);
	if (h->sock > 3)
		(void)syscall(SYS_close_range, 3U, (unsigned)h->sock - 1, 0);
	(void)syscall(SYS_close_range, (unsigned)h->sock + 1, ~0U, 0);
	for (;;)
		turn(h);
}

int mc_arbiter_start(const struct mc_config *cfg)
{
	const char *path = getenv("PATH");
	struct helper h = {.pidfd = -1};
	int pair[2];
	pid_t pid;

	snprintf(h.command, sizeof(h.command), "%s", cfg->arbiter + strlen(MC_ARBITER_PREFIX));
	snprintf(h.guest, sizeof(h.guest), "MC_GUEST=%s", cfg->guest);
	snprintf(h.side, sizeof(h.side), "MC_SIDE=%s",
	         cfg->side == MC_SIDE_PRIMARY ? "primary" : "backup");
	snprintf(h.path, sizeof(h.path), "PATH=%s", path ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	pid = fork();
	if (pid == 0) {
		h.sock = pair[1];
		helper_main(&h);
	}
	close(pair[1]);
	if (pid < 0) {
		close(pair[0]);
		return -ECHILD;
	}
	return pair[0];
}
