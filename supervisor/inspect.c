/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Runs a worker's --inspect and hands over what it prints. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

#define LIMIT_US   10000000
#define OUTPUT_MAX (256 * 1024)

struct job {
	struct manager *m;
	struct request *rq;
	inspect_done_fn done;
	pid_t pid;
	int fd;
	sd_event_source *io, *limit;
	char *out;
	size_t len;
};

static void finish(struct job *j)
{
	int status = 0;

	/* Its output has ended, or its time: it can't take longer than a kill. */
	(void)kill(j->pid, SIGKILL);
	while (waitpid(j->pid, &status, 0) < 0 && errno == EINTR)
		;
	sd_event_source_disable_unref(j->io);
	sd_event_source_disable_unref(j->limit);
	mc_closep(&j->fd);
	j->out[j->len] = '\0';
	j->m->njobs--;
	j->done(j->m, j->rq, WIFEXITED(status) ? WEXITSTATUS(status) : -1, j->out);
	free(j->out);
	free(j);
}

static int on_output(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct job *j = userdata;
	ssize_t n = read(fd, j->out + j->len, OUTPUT_MAX - j->len);

	(void)s;
	(void)revents;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n > 0)
		j->len += (size_t)n;
	if (n <= 0 || j->len == OUTPUT_MAX) {
		/* EOF comes with the exit: let it end by itself to see its status. */
		siginfo_t si;

		(void)waitid(P_PID, (id_t)j->pid, &si, WEXITED | WNOWAIT);
		finish(j);
	}
	return 0;
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct job *j = userdata;

	(void)s;
	(void)usec;
	j->len = 0;
	finish(j);
	return 0;
}

/* An argument list that is never too long: those of 8 NICs are its longest part. */
struct words {
	const char *v[2 * MC_NICS_MAX + 16];
	size_t n;
};

static void add(struct words *w, const char *word)
{
	w->v[w->n++] = word;
}

static void primary_words(struct words *w, const struct request *rq, char *gated, size_t len)
{
	if (rq->cfg.accept[0]) {
		add(w, "--accept");
		add(w, rq->cfg.accept);
	}
	if (!rq->args_only) {
		add(w, "--tracker");
		add(w, mc_tracker_name((enum mc_tracker)rq->cfg.tracker));
	}
	if (rq->gate == REQUEST_GATE_NONE || (rq->args_only && !rq->cfg.nnics)) {
		add(w, "--no-gate");
		return;
	}
	if (rq->cfg.nnics) {
		request_gated(rq, gated, len);
		add(w, "--gated");
		add(w, gated);
	}
	if (request_takes_taps(rq))
		add(w, "--gate-taps");
}

struct nic_text {
	char s[16 + 8 + MC_PATH_MAX_];
};

static void gate_words(struct words *w, const struct request *rq, struct nic_text *text)
{
	add(w, "--guest");
	add(w, rq->cfg.guest);
	for (uint32_t i = 0; i < rq->cfg.nnics; i++) {
		const struct mc_nic *n = &rq->cfg.nic[i];

		if (n->kind != MC_GATE_PLUG)
			continue;
		snprintf(text[i].s, sizeof(text[i].s), "%s%s%s", n->tap,
		         n->netns[0] ? ",netns=" : "", n->netns);
		add(w, "--nic");
		add(w, text[i].s);
	}
}

static void run(const struct manager *m, const struct request *rq, enum inspection what, int out)
{
	static const char *const names[] = {[INSPECT_PRIMARY] = "mc-capture",
	                                    [INSPECT_STANDBY] = "mc-restore",
	                                    [INSPECT_GATE] = "mc-netgate"};
	char path[512], gated[MC_NICS_MAX * MC_NAME_MAX];
	struct nic_text text[MC_NICS_MAX];
	struct words w = {{path, "--inspect"}, 2};
	sigset_t none;

	snprintf(path, sizeof(path), "%s/%s", m->libexec, names[what]);
	if (what == INSPECT_GATE) {
		gate_words(&w, rq, text);
	} else {
		add(&w, "--qmp");
		add(&w, rq->cfg.qmp);
	}
	if (what == INSPECT_PRIMARY)
		primary_words(&w, rq, gated, sizeof(gated));
	add(&w, NULL);
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	if (dup2(out, 1) < 0)
		_exit(126);
	execv(path, (char **)w.v);
	_exit(127);
}

int inspect_run(struct manager *m, struct request *rq, enum inspection what, inspect_done_fn done)
{
	struct job *j = calloc(1, sizeof(*j));
	int pipe_fd[2], r;

	if (!j)
		return -ENOMEM;
	j->out = malloc(OUTPUT_MAX + 1);
	if (!j->out || pipe2(pipe_fd, O_CLOEXEC) < 0) {
		free(j->out);
		free(j);
		return -ENOMEM;
	}
	*j = (struct job){.m = m, .rq = rq, .done = done, .fd = pipe_fd[0], .out = j->out};
	(void)fcntl(j->fd, F_SETFL, O_NONBLOCK);
	j->pid = fork();
	if (j->pid == 0)
		run(m, rq, what, pipe_fd[1]);
	close(pipe_fd[1]);
	r = j->pid < 0 ? -errno : 0;
	if (r == 0)
		r = sd_event_add_io(m->event, &j->io, j->fd, EPOLLIN, on_output, j);
	if (r >= 0)
		r = sd_event_add_time_relative(m->event, &j->limit, CLOCK_MONOTONIC, LIMIT_US, 0,
		                               on_limit, j);
	if (r < 0) {
		mc_log_errno(r, "guest %s: can't start a process that examines it", rq->cfg.guest);
		close(j->fd);
		free(j->out);
		free(j);
		return r;
	}
	m->njobs++;
	return 0;
}
