/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The launcher of rehearsals: forked before mc-restore gives up its privileges, since the helper of
 * a rehearsal needs them (it runs a QEMU).  All that it does is to run that helper, or to kill it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ipc/pass-fd.h"
#include "../ipc/util.h"
#include "restore.h"

#define START 's' /* with the helper's socket */
#define KILL  'k'

/* In the child: mc-restore once more, with @fd as REHEARSE_FD. */
static void become(const struct restore *r, int fd, pid_t restore)
{
	char pid[16], ram[REHEARSE_RAM][192];
	char *argv[REHEARSE_RAM + 4] = {"mc-restore", "--rehearse", pid};
	sigset_t none;

	snprintf(pid, sizeof(pid), "%d", (int)r->vm.pid);
	for (unsigned i = 0; i < r->vm.nblocks && i < REHEARSE_RAM; i++) {
		snprintf(ram[i], sizeof(ram[i]), "%.63s=%llu=/proc/%d/fd/%d", r->vm.block[i].name,
		         (unsigned long long)r->vm.block[i].size, (int)restore, r->ram_fd[i]);
		argv[3 + i] = ram[i];
	}
	(void)signal(SIGTERM, SIG_DFL);
	(void)signal(SIGINT, SIG_DFL);
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	if (fd == REHEARSE_FD ? fcntl(fd, F_SETFD, 0) < 0 : dup2(fd, REHEARSE_FD) < 0)
		_exit(126);
	(void)syscall(SYS_close_range, REHEARSE_FD + 1, ~0U, 0);
	execv("/proc/self/exe", argv);
	_exit(127);
}

static void kill_helper(pid_t *helper)
{
	if (*helper > 0) {
		(void)kill(*helper, SIGKILL); /* QEMU dies with it */
		(void)waitpid(*helper, NULL, 0);
	}
	*helper = 0;
}

/* One byte, and an fd or -1. 0: mc-restore is gone. */
static char receive(int sock, int *fd)
{
	char byte = 0;

	return mc_fd_receive(sock, &byte, 1, fd) > 0 ? byte : 0;
}

static void launcher_main(const struct restore *r, int sock, pid_t restore)
{
	pid_t helper = 0;
	char what;
	int fd;

	prctl(PR_SET_NAME, "mc-launcher");
	(void)signal(SIGTERM, SIG_IGN);
	(void)signal(SIGINT, SIG_IGN);
	while ((what = receive(sock, &fd))) {
		kill_helper(&helper);
		if (what == START && fd >= 0) {
			helper = fork();
			if (helper == 0)
				become(r, fd, restore);
		}
		mc_closep(&fd);
	}
	kill_helper(&helper);
	_exit(0);
}

int launcher_start(struct restore *r)
{
	pid_t restore = getpid(), pid;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	pid = fork();
	if (pid == 0) {
		/* Nothing but the socket stays open: the RAM files are named by mc-restore's fds.
		 */
		if (pair[1] > 3)
			(void)syscall(SYS_close_range, 3U, (unsigned)pair[1] - 1, 0);
		(void)syscall(SYS_close_range, (unsigned)pair[1] + 1, ~0U, 0);
		launcher_main(r, pair[1], restore);
	}
	close(pair[1]);
	if (pid < 0) {
		close(pair[0]);
		return -ECHILD;
	}
	r->launcher = pair[0];
	return 0;
}

int launcher_run(struct restore *r, int fd)
{
	char byte = START;
	ssize_t n = mc_fd_send(r->launcher, &byte, 1, fd);

	return n < 0 ? (int)n : 0;
}

void launcher_kill(struct restore *r)
{
	(void)send(r->launcher, &(char){KILL}, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}
