/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel's gate outlives a netgate that was given up, or that had to be killed at the end (in
 * the middle of setting it up, say): it goes on holding.  Once the guest is free to speak, or its
 * entry is removed, mc-netgate --clear removes it; that needs no arena, so it works where a netgate
 * can't.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

#define LIMIT_MS 2000 /* it waits for held packets to leave */

struct words {
	const char *v[2 * MC_NICS_MAX + 8];
	char nic[MC_NICS_MAX][MC_PATH_MAX_ + 32];
	char path[512];
	size_t n;
};

/* False: there is no NIC of that kind. */
static bool make_words(struct words *w, const struct guest *g)
{
	const struct mc_config *c = g->arena.config;
	bool passes = mc_control_passes(g->arena.control, g->side), any = false;

	snprintf(w->path, sizeof(w->path), "%s/mc-netgate", g->m->libexec);
	w->v[w->n++] = w->path;
	w->v[w->n++] = "--clear";
	w->v[w->n++] = "--guest";
	w->v[w->n++] = g->name;
	if (passes)
		w->v[w->n++] = "--passes";
	if (g->side == MC_SIDE_PRIMARY)
		w->v[w->n++] = "--fenced";
	for (uint32_t i = 0; i < c->nnics; i++) {
		if (c->nic[i].kind != MC_GATE_PLUG)
			continue;
		snprintf(w->nic[i], sizeof(w->nic[i]), "%s%s%s", c->nic[i].tap,
		         c->nic[i].netns[0] ? ",netns=" : "", c->nic[i].netns);
		w->v[w->n++] = "--nic";
		w->v[w->n++] = w->nic[i];
		any = true;
	}
	w->v[w->n] = NULL;
	return any;
}

static void become(const struct words *w, int out)
{
	sigset_t none;

	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	if (dup2(out, 1) < 0)
		_exit(126);
	execv(w->path, (char **)w->v);
	_exit(127);
}

/* What it prints, which is short, within the limit. */
static size_t read_answer(int fd, char *buf, size_t len)
{
	uint64_t end = mc_now_ns() + LIMIT_MS * MC_NS_PER_MS, now;
	struct pollfd p = {.fd = fd, .events = POLLIN};
	size_t have = 0;
	ssize_t n = 1;

	while (n > 0 && have < len && (now = mc_now_ns()) < end) {
		if (poll(&p, 1, (int)((end - now) / MC_NS_PER_MS) + 1) != 1)
			break;
		n = read(fd, buf + have, len - have);
		have += n > 0 ? (size_t)n : 0;
	}
	return have;
}

static void tell(struct guest *g, const char *text, size_t len)
{
	json_t *bad = json_loadb(text, len, 0, NULL), *v;
	size_t i;

	if (!json_is_array(bad))
		event_write(g, "gate-kept", 0,
		            "its gate in the kernel can't be removed: mc-netgate --clear failed "
		            "(journalctl says why); by hand: tc qdisc del dev TAP clsact, ip link "
		            "del IFB");
	else if (!json_array_size(bad))
		event_write(
		        g, "gate-cleared", 0,
		        "its gate in the kernel, left by a netgate that didn't do so, is removed");
	json_array_foreach (bad, i, v)
		event_write(g, "gate-kept", 0, "%s", json_string_value(v) ?: "?");
	json_decref(bad);
}

void gate_clear(struct guest *g)
{
	struct words w = {.n = 0};
	char text[4096];
	int fd[2];
	size_t len;
	pid_t pid;

	/* One that never came to run has left nothing. */
	if (g->gate_cleared || !atomic_load(&g->arena.proc[MC_ROLE_NETGATE].starts) ||
	    !make_words(&w, g) || pipe2(fd, O_CLOEXEC) < 0)
		return;
	g->gate_cleared = true;
	pid = fork();
	if (pid == 0)
		become(&w, fd[1]);
	close(fd[1]);
	len = pid < 0 ? 0 : read_answer(fd[0], text, sizeof(text));
	close(fd[0]);
	if (pid > 0) {
		(void)kill(pid, SIGKILL); /* it has answered, or its time is over */
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	tell(g, text, len);
}

void gate_look(struct guest *g)
{
	struct child *c = &g->child[MC_ROLE_NETGATE];

	if (c->given_up && mc_control_passes(g->arena.control, g->side))
		gate_clear(g);
}
