/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The processes of a guest: starting, watching, ending. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

#define ARENA_FD 3
#define BELL_FD  4
#define HIGH_FD  200 /* where fds wait until their places are free */

static void forget(struct child *c)
{
	c->source = sd_event_source_disable_unref(c->source);
	mc_closep(&c->pidfd);
	if (c->bus) {
		sd_bus_detach_event(c->bus);
		c->bus = sd_bus_close_unref(c->bus);
	}
	c->pid = 0;
}

/* How it ended, and what it said last. */
static void obituary(struct child *c, const siginfo_t *si)
{
	const char *words = c->g->arena.proc[c->role].last_words;
	char last[128], how[64];
	uint64_t epoch = atomic_load(&c->g->arena.journal.shm->last_begun);

	snprintf(last, sizeof(last), "%.*s", (int)sizeof(c->g->arena.proc[0].last_words) - 1,
	         words);
	if (!si)
		snprintf(how, sizeof(how), "ended (not our child)");
	else if (si->si_code == CLD_EXITED)
		snprintf(how, sizeof(how), "exited with status %d", si->si_status);
	else
		snprintf(how, sizeof(how), "was killed by signal %d", si->si_status);
	event_write(c->g, "process-died", epoch, "mc-%s (pid %d) %s%s%s", mc_role_name(c->role),
	            (int)c->pid, how, last[0] ? "; its last words: " : "", last);
}

static bool dies_too_often(struct child *c)
{
	memmove(c->death, c->death + 1, sizeof(c->death) - sizeof(c->death[0]));
	c->death[DEATHS_KEPT - 1] = mc_now_ns();
	return c->death[0] && c->death[DEATHS_KEPT - 1] - c->death[0] < DEATH_WINDOW;
}

/*
 * A guest whose pipeline can't run must not look protected: the protection is ended in good
 * order, as far as the rest of the pipeline can.
 */
static void end_protection(struct child *c)
{
	struct mc_control *ctl = c->g->arena.control;

	if (c->g->side != MC_SIDE_PRIMARY)
		return;
	mc_control_refuse(ctl, "mc-%s dies again and again", mc_role_name(c->role));
	if (c->role == MC_ROLE_CAPTURE)
		atomic_store(&ctl->capture_ready, 1); /* in the dead one's place */
	atomic_store_explicit(&ctl->want_end, MC_REASON_ERROR, memory_order_release);
	mc_arena_ring_all(&c->g->arena);
}

static int on_death(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct child *c = userdata;
	siginfo_t si = {0};
	bool ours = c->ours;

	(void)s;
	(void)revents;
	/* Reaped before a successor is started: two of a role never run at once. */
	if (ours && waitid(P_PIDFD, (id_t)fd, &si, WEXITED) < 0)
		mc_warn("waitid: %s", strerror(errno));
	if (c->wanted)
		obituary(c, ours ? &si : NULL);
	forget(c);
	if (!c->wanted || c->g->dying) {
		bus_stage_remove(c);
		return 0;
	}
	if (dies_too_often(c)) {
		c->given_up = true;
		c->wanted = false;
		event_write(c->g, "given-up", 0,
		            "mc-%s died %d times within 10 s and isn't started again; see its "
		            "messages, then use mcctl restart %s %s",
		            mc_role_name(c->role), DEATHS_KEPT, c->g->name, mc_role_name(c->role));
		end_protection(c);
		return 0;
	}
	c->restarts++;
	if (child_spawn(c) < 0)
		event_write(c->g, "given-up", 0, "mc-%s can't be started again",
		            mc_role_name(c->role));
	return 0;
}

/* In the child: moves the inherited fds to their places and becomes the worker. */
static void become(const struct child *c, int arena, const int *bells)
{
	struct guest *g = c->g;
	char path[512], process[32], control[512], index[8], a[8], b[8];
	const char *argv[] = {process, "--guest",    g->name, "--index",
	                      index,   "--arena-fd", a,       "--bell-fd",
	                      b,       "--control",  control, g->m->debug ? "--debug" : NULL,
	                      NULL};
	int high[MC_ROLE_MAX + 1];
	sigset_t held;

	high[0] = fcntl(arena, F_DUPFD, HIGH_FD);
	for (int i = 0; i < MC_ROLE_MAX; i++)
		high[i + 1] = fcntl(bells[i], F_DUPFD, HIGH_FD);
	for (int i = 0; i <= MC_ROLE_MAX; i++)
		if (high[i] < 0 || dup2(high[i], ARENA_FD + i) < 0)
			_exit(126);
	(void)syscall(SYS_close_range, BELL_FD + MC_ROLE_MAX, ~0U, 0);
	/* A request to end waits until the worker can follow it (ipc/worker.c). */
	sigemptyset(&held);
	sigaddset(&held, SIGTERM);
	sigaddset(&held, SIGINT);
	(void)sigprocmask(SIG_SETMASK, &held, NULL);
	snprintf(process, sizeof(process), "mc-%s", mc_role_name(c->role));
	snprintf(path, sizeof(path), "%s/%s", g->m->libexec, process);
	snprintf(control, sizeof(control), "%s/control", g->m->runtime_dir);
	snprintf(index, sizeof(index), "%u", mc_role_index(c->role));
	snprintf(a, sizeof(a), "%d", ARENA_FD);
	snprintf(b, sizeof(b), "%d", BELL_FD);
	execv(path, (char **)argv);
	fprintf(stderr, "mc-supervisor: can't run %s: %s\n", path, strerror(errno));
	_exit(127);
}

static int watch_pid(struct child *c)
{
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	if (c->pidfd < 0)
		return -errno;
	(void)fcntl(c->pidfd, F_SETFD, FD_CLOEXEC);
	return sd_event_add_io(c->g->m->event, &c->source, c->pidfd, EPOLLIN, on_death, c);
}

int child_spawn(struct child *c)
{
	pid_t pid = fork();
	int r;

	if (pid < 0)
		return mc_log_errno(-errno, "fork");
	if (pid == 0)
		become(c, c->g->arena.fd, c->g->arena.bell_fd);
	c->pid = pid;
	c->ours = true;
	c->wanted = true;
	(void)bus_stage_add(c);
	r = watch_pid(c);
	if (r < 0)
		mc_log_errno(r, "guest %s: can't watch mc-%s", c->g->name, mc_role_name(c->role));
	return r;
}

int child_adopt(struct child *c, pid_t pid, sd_bus *bus)
{
	if (c->pid && c->pid != pid)
		return -EBUSY;
	if (!c->pid) {
		int r;

		c->pid = pid;
		c->ours = false;
		c->wanted = true;
		(void)bus_stage_add(c);
		r = watch_pid(c);
		if (r < 0) {
			c->pid = 0;
			return r;
		}
	}
	if (c->bus && c->bus != bus) {
		sd_bus_detach_event(c->bus);
		c->bus = sd_bus_close_unref(c->bus);
	}
	c->bus = bus;
	return 0;
}

void child_quit(struct child *c)
{
	c->wanted = false;
	if (c->pidfd >= 0 && c->pid)
		(void)syscall(SYS_pidfd_send_signal, c->pidfd, SIGTERM, NULL, 0);
}

static bool gone_within(const struct child *c, int ms)
{
	struct pollfd p = {.fd = c->pidfd, .events = POLLIN};
	int r;

	do
		r = poll(&p, 1, ms);
	while (r < 0 && errno == EINTR);
	return r > 0;
}

void child_kill_wait(struct child *c)
{
	if (!c->pid || c->pidfd < 0)
		return;
	child_quit(c);
	if (!gone_within(c, 1000)) {
		(void)syscall(SYS_pidfd_send_signal, c->pidfd, SIGKILL, NULL, 0);
		(void)gone_within(c, 1000);
	}
	if (c->ours)
		(void)waitid(P_PIDFD, (id_t)c->pidfd, &(siginfo_t){0}, WEXITED | WNOHANG);
	forget(c);
	bus_stage_remove(c);
}
