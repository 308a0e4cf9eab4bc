/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "../ipc/worker-bus.h"

#define ANSWER_LIMIT (100 * MC_NS_PER_MS)
#define OUTLIVE_MS   200 /* above the time that a guard may take */

/* Closes everything but the two fds. */
static void close_others(int a, int b)
{
	unsigned lo = (unsigned)(a < b ? a : b), hi = (unsigned)(a < b ? b : a);

	if (lo > 3)
		(void)syscall(SYS_close_range, 3U, lo - 1, 0);
	if (hi > lo + 1)
		(void)syscall(SYS_close_range, lo + 1, hi - 1, 0);
	(void)syscall(SYS_close_range, hi + 1, ~0U, 0);
}

/* Reads answers until the guest's RESUME shows, so that QEMU has surely taken the command. */
static void await_resume(int qmp_fd)
{
	uint64_t end = mc_now_ns() + ANSWER_LIMIT;
	char buf[65536 + 1];
	size_t keep = 0;

	while (mc_now_ns() < end) {
		struct pollfd p = {.fd = qmp_fd, .events = POLLIN};
		ssize_t n;

		if (poll(&p, 1, 10) <= 0)
			continue;
		n = recv(qmp_fd, buf + keep, sizeof(buf) - 1 - keep, MSG_DONTWAIT);
		if (n <= 0)
			return;
		if (memmem(buf, keep + (size_t)n, "RESUME", 6))
			return;
		/* The word may be cut by the end of what was read. */
		n += (ssize_t)keep;
		keep = n < 5 ? (size_t)n : 5;
		memmove(buf, buf + n - keep, keep);
	}
}

static void let_go(int qmp_fd, struct mc_control *c)
{
	/* The bracket ends what capture may have begun (qmp_begin); alone it is an error answer. */
	static const char cont[] = "]\n{\"execute\":\"cont\"}\n";
	enum mc_state s = mc_state_of(atomic_load(&c->state));
	/* Held by policy it stays stopped, unless that ended before capture could say so. */
	bool over = s == MC_STATE_DEGRADED || s == MC_STATE_ENDED;

	if (!atomic_load(&c->paused) || (atomic_load(&c->paused) == 2 && !over))
		return;
	if (send(qmp_fd, cont, sizeof(cont) - 1, MSG_NOSIGNAL) == (ssize_t)sizeof(cont) - 1)
		await_resume(qmp_fd);
	atomic_store(&c->paused, 0);
}

static void guard_main(int sock, int qmp_fd, struct mc_control *c, const struct mc_confine *confine)
{
	char byte;
	ssize_t n;

	prctl(PR_SET_NAME, "mc-guard");
	close_others(sock, qmp_fd);
	if (mc_confine(confine) < 0)
		_exit(1);
	do
		n = read(sock, &byte, 1);
	while (n < 0 && errno == EINTR);
	if (n == 0) /* EOF without a good-bye: capture died */
		let_go(qmp_fd, c);
	_exit(0);
}

int guard_start(struct guard *g, int qmp_fd, struct mc_control *control,
                const struct mc_confine *confine)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	pid = fork();
	if (pid < 0) {
		int r = -errno;

		close(pair[0]);
		close(pair[1]);
		return r;
	}
	if (pid == 0) {
		close(pair[0]);
		/* A terminal's ^C or the supervisor's TERM is for capture, who says good-bye. */
		signal(SIGINT, SIG_IGN);
		signal(SIGTERM, SIG_IGN);
		guard_main(pair[1], qmp_fd, control, confine);
	}
	close(pair[1]);
	atomic_store(&control->guard_pid, (uint64_t)pid);
	atomic_store(&control->guard_start, mc_pid_start_time(pid));
	*g = (struct guard){.pid = pid, .sock = pair[0]};
	return 0;
}

void guard_outlive(const struct mc_control *c)
{
	pid_t pid = (pid_t)atomic_load(&c->guard_pid);
	int mc_autoclose fd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (fd < 0 || mc_pid_start_time(pid) != atomic_load(&c->guard_start))
		return;
	if (poll(&p, 1, OUTLIVE_MS) != 0)
		return;
	(void)syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
	(void)poll(&p, 1, OUTLIVE_MS);
}

void guard_reap(struct guard *g)
{
	if (g->pid <= 0)
		return;
	mc_closep(&g->sock);
	while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
		;
	g->pid = 0;
}

void guard_stop(struct guard *g)
{
	if (g->pid <= 0)
		return;
	(void)send(g->sock, "q", 1, MSG_NOSIGNAL);
	guard_reap(g);
}
