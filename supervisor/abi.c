/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether an installed program fits the arenas that run: asked before it replaces anything. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "supervisor.h"

#define ANSWER_MS 1000

/* What `mc-ROLE --version` prints; empty when it can't be had. */
static void ask(const char *path, char *text, size_t len)
{
	struct pollfd p = {.events = POLLIN};
	int out[2];
	size_t n = 0;
	ssize_t k = 1;
	pid_t pid;

	text[0] = '\0';
	if (pipe2(out, O_CLOEXEC) < 0)
		return;
	pid = fork();
	if (pid == 0) {
		(void)dup2(out[1], STDOUT_FILENO);
		execl(path, path, "--version", (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	p.fd = out[0];
	while (pid > 0 && k > 0 && n < len - 1 && poll(&p, 1, ANSWER_MS) > 0) {
		k = read(out[0], text + n, len - 1 - n);
		n += k > 0 ? (size_t)k : 0;
	}
	text[n] = '\0';
	close(out[0]);
	if (pid > 0) {
		kill(pid, SIGKILL); /* one that hangs */
		(void)waitpid(pid, NULL, 0);
	}
}

int abi_check(const struct manager *m, enum mc_role role, char *why, size_t why_len)
{
	char path[512], text[160];
	const char *p;
	int abi = -1;

	snprintf(path, sizeof(path), "%s/mc-%s", m->libexec, mc_role_name(role));
	ask(path, text, sizeof(text));
	p = strstr(text, " abi ");
	if (p)
		abi = atoi(p + 5);
	if (abi == MC_ABI_VERSION)
		return 0;
	if (abi < 0) {
		snprintf(why, why_len,
		         "%s doesn't tell its version; is it installed whole? Install the package "
		         "again",
		         path);
		return -EPERM;
	}
	text[strcspn(text, "\n")] = '\0';
	snprintf(why, why_len,
	         "%.160s can't replace a process of ABI %d; end the protection and begin it again "
	         "with programs of one version",
	         text, MC_ABI_VERSION);
	return -EPROTONOSUPPORT;
}
