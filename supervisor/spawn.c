/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The processes of a guest: starting, watching, ending. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "../ipc/worker-bus.h"
#include "supervisor.h"

#define ARENA_FD  3
#define BELL_FD   4
#define CONFIG_FD (BELL_FD + MC_ROLE_MAX)
#define CREDS_FD  (CONFIG_FD + 1)
#define END_MS    1000
#define HIGH_FD   200 /* where fds wait until their places are free */

void child_forget(struct child *c)
{
	c->source = sd_event_source_disable_unref(c->source);
	mc_closep(&c->pidfd);
	if (c->bus)
		c->bus = control_close(c->g->m, c->bus);
	c->pid = 0;
}

/* In the child: moves the inherited fds to their places and becomes the worker. */
static void become(const struct child *c, int arena, const int *bells, int creds)
{
	struct guest *g = c->g;
	char path[512], process[32], control[512], index[8], a[8], b[8], f[8], uid[16], gid[16],
	        why[256], fd[8];
	const char *argv[] = {process, "--guest",   g->name, "--index",     index, "--arena-fd",
	                      a,       "--bell-fd", b,       "--config-fd", f,     "--control",
	                      control, NULL,        NULL,    NULL,          NULL,  NULL,
	                      NULL,    NULL,        NULL};
	int n = 13, last = CREDS_FD;
	int high[MC_ROLE_MAX + 2];
	sigset_t held;

	high[0] = fcntl(arena, F_DUPFD, HIGH_FD);
	for (int i = 0; i < MC_ROLE_MAX; i++)
		high[i + 1] = fcntl(bells[i], F_DUPFD, HIGH_FD);
	high[MC_ROLE_MAX + 1] = fcntl(mc_arena_config_reader(&g->arena), F_DUPFD, HIGH_FD);
	for (int i = 0; i < (int)MC_ARRAY_SIZE(high); i++)
		if (high[i] < 0 || dup2(high[i], ARENA_FD + i) < 0)
			_exit(126);
	if (creds >= 0) {
		if (dup2(creds, CREDS_FD) < 0)
			_exit(126);
		snprintf(fd, sizeof(fd), "%d", CREDS_FD);
		argv[n++] = "--creds-fd";
		argv[n++] = fd;
		last++;
	}
	(void)syscall(SYS_close_range, last, ~0U, 0);
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
	snprintf(f, sizeof(f), "%d", CONFIG_FD);
	if (g->m->debug)
		argv[n++] = "--debug";
	if (g->m->uid != (uid_t)-1) {
		argv[n++] = "--uid";
		argv[n++] = uid;
		argv[n++] = "--gid";
		argv[n] = gid;
		snprintf(uid, sizeof(uid), "%u", (unsigned)g->m->uid);
		snprintf(gid, sizeof(gid), "%u", (unsigned)g->m->gid);
	}
	if (place_self(g->arena.config, why, sizeof(why)) < 0) {
		fprintf(stderr, "mc-supervisor: guest %s: %s\n", g->name, why);
		_exit(126);
	}
	execv(path, (char **)argv);
	fprintf(stderr,
	        "mc-supervisor: guest %s: can't run %s: %s; is the package installed whole?\n",
	        g->name, path, strerror(errno));
	_exit(127);
}

static int watch_pid(struct child *c)
{
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	if (c->pidfd < 0)
		return -errno;
	(void)fcntl(c->pidfd, F_SETFD, FD_CLOEXEC);
	return sd_event_add_io(c->g->m->event, &c->source, c->pidfd, EPOLLIN, death_noticed, c);
}

/* What only the transport gets; without them it runs, says so, and makes no link. */
static int open_creds(const struct child *c)
{
	const struct mc_config *cfg = c->g->arena.config;
	char why[512];
	int mc_autoclose fd = -1;

	if (c->role != MC_ROLE_TRANSPORT || !cfg->tls)
		return -1;
	fd = creds_open(cfg, c->g->side, why, sizeof(why));
	if (fd < 0)
		mc_err("guest %s: %s", c->g->name, why);
	/* Above the places where the inherited fds go. */
	return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD + MC_ROLE_MAX + 2);
}

int child_spawn(struct child *c)
{
	int mc_autoclose creds = open_creds(c);
	pid_t pid = fork();
	int r;

	if (pid < 0)
		return mc_log_errno(-errno, "guest %s: can't start mc-%s", c->g->name,
		                    mc_role_name(c->role));
	if (pid == 0)
		become(c, c->g->arena.fd, c->g->arena.bell_fd, creds);
	c->pid = pid;
	c->ours = true;
	c->wanted = true;
	c->started = mc_now_ns();
	(void)mc_fault(MC_FAULT_SUPERVISOR_SPAWNED);
	(void)bus_stage_add(c);
	r = watch_pid(c);
	if (r < 0)
		mc_log_errno(r, "guest %s: can't watch mc-%s, which runs all the same", c->g->name,
		             mc_role_name(c->role));
	return r;
}

/*
 * The arena says who holds a place, and all processes of the guest write to the arena: what we are
 * going to watch, and kill one day, must at least be such a program.  One that can't be looked at
 * isn't ours to kill either, unless it is of our own user.
 */
static bool is_worker(enum mc_role role, pid_t pid)
{
	char link[40], exe[PATH_MAX], want[32], *name;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/%d/exe", (int)pid);
	n = readlink(link, exe, sizeof(exe) - 1);
	if (n < 0)
		return errno == EACCES;
	exe[n] = '\0';
	snprintf(want, sizeof(want), "mc-%s", mc_role_name(role));
	name = strrchr(exe, '/');
	n = (ssize_t)strlen(want);
	/* " (deleted)": another version was installed meanwhile. */
	return name && strncmp(name + 1, want, (size_t)n) == 0 &&
	       (!name[1 + n] || name[1 + n] == ' ');
}

int child_found(struct child *c, pid_t pid, uint64_t start_time)
{
	int r;

	if (pid <= 1 || !is_worker(c->role, pid))
		return -ESRCH;
	c->pid = pid;
	c->ours = false;
	c->wanted = true;
	c->started = mc_now_ns();
	r = watch_pid(c);
	/* The number may have been given to another process before we held it. */
	if (r >= 0 && mc_pid_start_time(pid) != start_time)
		r = -ESRCH;
	if (r < 0)
		child_forget(c);
	else
		(void)bus_stage_add(c);
	return r;
}

int child_adopt(struct child *c, pid_t pid, sd_bus *bus)
{
	int r = 0;

	if (c->pid && c->pid != pid)
		return -EBUSY;
	if (!c->pid)
		r = child_found(c, pid, mc_pid_start_time(pid));
	if (r < 0)
		return r;
	if (c->bus && c->bus != bus)
		c->bus = control_close(c->g->m, c->bus);
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

bool child_kill_wait(struct child *c)
{
	siginfo_t si = {.si_code = CLD_EXITED};
	bool gone;

	c->again = sd_event_source_disable_unref(c->again);
	if (!c->pid || c->pidfd < 0)
		return false;
	child_quit(c);
	gone = gone_within(c, END_MS);
	if (!gone) {
		mc_warn("guest %s: mc-%s didn't end within %d ms and is killed", c->g->name,
		        mc_role_name(c->role), END_MS);
		(void)syscall(SYS_pidfd_send_signal, c->pidfd, SIGKILL, NULL, 0);
		(void)gone_within(c, END_MS);
	}
	if (c->ours)
		(void)waitid(P_PIDFD, (id_t)c->pidfd, &si, WEXITED | WNOHANG);
	child_forget(c);
	bus_stage_remove(c);
	return gone && si.si_code == CLD_EXITED && !si.si_status;
}
