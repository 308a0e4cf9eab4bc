/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "arbiter.h"
#include "fault.h"
#include "log.h"
#include "urgent.h"
#include "util.h"
#include "worker-bus.h"

struct args {
	const char *guest, *control;
	unsigned index;
	int arena_fd, config_fd, bell_fd, creds_fd;
	int uid, gid; /* -1: not given */
	bool debug;
};

static int usage(const struct mc_worker_ops *ops)
{
	fprintf(stderr,
	        "usage: %s --guest NAME [--index N] --arena-fd FD --config-fd FD --bell-fd FD "
	        "--control PATH"
	        " [--creds-fd FD] [--uid N --gid N] [--debug] | --version\n%s is started by "
	        "mc-supervisor, not by "
	        "hand.\n",
	        ops->process, ops->process);
	return -EINVAL;
}

static int parse_number(const char *text, int max, int *ret)
{
	char *end;
	long v = strtol(text, &end, 10);

	if (!*text || *end || v < 0 || v > max)
		return -EINVAL;
	*ret = (int)v;
	return 0;
}

static int parse_args(int argc, char **argv, const struct mc_worker_ops *ops, struct args *a)
{
	static const struct option options[] = {
	        {"guest", required_argument, NULL, 'g'},
	        {"index", required_argument, NULL, 'i'},
	        {"arena-fd", required_argument, NULL, 'a'},
	        {"config-fd", required_argument, NULL, 'f'},
	        {"bell-fd", required_argument, NULL, 'b'},
	        {"control", required_argument, NULL, 'c'},
	        {"creds-fd", required_argument, NULL, 't'},
	        {"debug", no_argument, NULL, 'd'},
	        {"uid", required_argument, NULL, 'u'},
	        {"gid", required_argument, NULL, 'G'},
	        {NULL, 0, NULL, 0},
	};
	int c, n = 0, r = 0;

	*a = (struct args){.arena_fd = -1,
	                   .config_fd = -1,
	                   .bell_fd = -1,
	                   .creds_fd = -1,
	                   .uid = -1,
	                   .gid = -1};
	while (r == 0 && (c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'g':
			a->guest = optarg;
			break;
		case 'i':
			r = parse_number(optarg, MC_STAGES_MAX - 1, &n);
			a->index = (unsigned)n;
			break;
		case 'a':
			r = parse_number(optarg, 1 << 20, &a->arena_fd);
			break;
		case 'f':
			r = parse_number(optarg, 1 << 20, &a->config_fd);
			break;
		case 'b':
			r = parse_number(optarg, 1 << 20, &a->bell_fd);
			break;
		case 't':
			r = parse_number(optarg, 1 << 20, &a->creds_fd);
			break;
		case 'c':
			a->control = optarg;
			break;
		case 'd':
			a->debug = true;
			break;
		case 'u':
			r = parse_number(optarg, INT_MAX, &a->uid);
			break;
		case 'G':
			r = parse_number(optarg, INT_MAX, &a->gid);
			break;
		default:
			r = -EINVAL;
		}
	}
	if (r < 0 || optind != argc || !a->guest || !a->control || a->arena_fd < 0 ||
	    a->config_fd < 0 || a->bell_fd < 0 || (a->uid < 0) != (a->gid < 0) ||
	    mc_guest_name_check(a->guest) < 0)
		return usage(ops);
	return 0;
}

static int attach(struct mc_worker *w, const struct args *a)
{
	int bells[MC_ROLE_MAX];
	int r;

	for (int i = 0; i < MC_ROLE_MAX; i++) {
		bells[i] = a->bell_fd + i;
		if (fcntl(bells[i], F_SETFD, FD_CLOEXEC) < 0)
			return mc_log_errno(-errno, "doorbell fd %d is not open", bells[i]);
	}
	if (fcntl(a->arena_fd, F_SETFD, FD_CLOEXEC) < 0)
		return mc_log_errno(-errno, "arena fd %d is not open", a->arena_fd);
	if (fcntl(a->config_fd, F_SETFD, FD_CLOEXEC) < 0)
		return mc_log_errno(-errno, "configuration fd %d is not open", a->config_fd);
	r = mc_arena_attach(&w->arena, a->arena_fd, a->config_fd, bells, MC_ROLE_MAX, w->role);
	if (r == -EPROTONOSUPPORT)
		mc_err("the arena has another ABI than %s (%s); protect the guest anew (mcctl "
		       "unprotect, then mcctl protect)",
		       w->ops->process, mc_build_id());
	else if (r < 0)
		mc_log_errno(r, "can't use the arena (damaged?); protect the guest anew");
	if (r == 0 && strcmp(w->arena.config->guest, w->guest) != 0) {
		mc_err("the arena belongs to guest '%s'; mcctl unprotect, then protect it anew",
		       w->arena.config->guest);
		r = -EINVAL;
	}
	if (r == 0)
		r = mc_arena_take_place(&w->arena, &w->place_fd);
	if (r == -EBUSY)
		mc_info("another %s runs for this guest already", w->ops->process);
	return r;
}

/* Our slot says who we are; a successor overwrites its predecessor's. */
static void sign_in(struct mc_worker *w)
{
	struct mc_proc *p = &w->arena.proc[w->role];
	uint64_t before;

	atomic_store(&p->pid, (uint64_t)getpid());
	w->start_time = mc_pid_start_time((int)getpid());
	atomic_store(&p->start_time, w->start_time);
	before = atomic_fetch_add(&p->starts, 1);
	atomic_store(&p->busy_until, 0);
	atomic_store(&p->heartbeat, mc_now_ns());
#ifdef MC_FAULTS
	mc_fault_setup(w->role, w->arena.journal.side, !before, &p->fault);
#else
	(void)before;
#endif
	snprintf(p->build, sizeof(p->build), "%s", mc_build_id());
	p->last_words[0] = '\0';
	mc_log_set_words(p->last_words, sizeof(p->last_words));
}

static int work_until_idle(struct mc_worker *w)
{
	int r;

	do {
		mc_worker_alive(w);
		r = w->ops->work(w, w->ctx);
	} while (r > 0);
	return r;
}

static int fail(struct mc_worker *w, int r)
{
	mc_log_errno(r, "this process ends, a new one is started; if that goes on, report it");
	sd_event_exit(w->event, 1);
	return 0;
}

static int on_bell(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct mc_worker *w = userdata;

	(void)s;
	(void)revents;
	mc_bell_awake(&w->arena.proc[w->role].bell, fd);
	return 0;
}

/*
 * Runs before every wait: all work is done, the sleep word set, and everything looked at once
 * more (bell.h), so that whoever changes something after that look rings.
 */
static int on_prepare(sd_event_source *s, void *userdata)
{
	struct mc_worker *w = userdata;
	struct mc_proc *p = &w->arena.proc[w->role];
	int r;

	(void)s;
	atomic_store_explicit(&p->bell.sleeping, 0, memory_order_relaxed);
	r = work_until_idle(w);
	if (r == 0) {
		mc_bell_sleep(&p->bell);
		r = work_until_idle(w);
	}
	return r < 0 ? fail(w, r) : 0;
}

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
	struct mc_worker *w = userdata;

	(void)s;
	(void)si;
	if (w->ops->quit)
		w->ops->quit(w, w->ctx);
	mc_worker_exit(w, 0);
	return 0;
}

static int add_signals(struct mc_worker *w)
{
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	signal(SIGPIPE, SIG_IGN);
	r = sd_event_add_signal(w->event, NULL, SIGTERM, on_signal, w);
	return r < 0 ? r : sd_event_add_signal(w->event, NULL, SIGINT, on_signal, w);
}

static int set_up(struct mc_worker *w, const struct args *a)
{
	sd_event_source *bell = NULL;
	int r;

	r = sd_event_new(&w->event);
	if (r >= 0)
		r = add_signals(w);
	if (r >= 0)
		r = sd_event_add_io(w->event, &bell, w->arena.bell_fd[w->role], EPOLLIN, on_bell,
		                    w);
	if (r >= 0)
		r = sd_event_source_set_prepare(bell, on_prepare);
	if (r >= 0)
		r = sd_event_source_set_floating(bell, 1);
	sd_event_source_unref(bell);
	if (r < 0)
		return mc_log_errno(r, "can't set up the event loop");
	r = mc_worker_bus_new(w, a->control);
	if (r < 0)
		return mc_log_errno(r, "can't use control socket %s", a->control);
	r = w->ops->start(w, w->ctx);
	if (r >= 0 && !w->ops->confines_itself)
		r = mc_worker_confine(w, w->ops->capabilities, 0);
	return r;
}

int mc_worker_confine(struct mc_worker *w, uint64_t capabilities, unsigned more)
{
	struct mc_confine c = {.uid = w->uid,
	                       .gid = w->gid,
	                       .capabilities = capabilities,
	                       .allow = w->ops->allow | more};
	int r;

	if (w->confined)
		return 0;
	/* What an operator lets it run would inherit all of this. */
	if (w->ops->asks_arbiter && mc_arbiter_configured(w->arena.config)) {
		w->arbiter_fd = mc_arbiter_start(w->arena.config);
		if (w->arbiter_fd < 0)
			return mc_log_errno(w->arbiter_fd, "can't start the arbiter's helper");
	}
	r = mc_confine(&c);
	if (r < 0)
		return mc_log_errno(r, "can't give up its privileges; it doesn't run with them");
	w->confined = true;
	return 0;
}

static void worker_done(struct mc_worker *w)
{
	mc_not_urgent(); /* unmapping an arena takes a millisecond, of which nobody waits for any */
	w->bus = mc_worker_bus_free(w->bus);
	w->event = sd_event_unref(w->event);
	mc_closep(&w->creds_fd);
	mc_closep(&w->arbiter_fd);
	mc_log_set_words(NULL, 0);
	mc_arena_done(&w->arena);
}

/* What a process tells about itself without an arena. */
static bool answer(int argc, char **argv, const struct mc_worker_ops *ops)
{
	if (argc != 2)
		return false;
	if (strcmp(argv[1], "--version") == 0) {
		printf("%s %s abi %d\n", ops->process, mc_build_id(), MC_ABI_VERSION);
		return true;
	}
#ifdef MC_FAULTS
	if (strcmp(argv[1], "--fault-points") == 0) {
		mc_fault_list(ops->role);
		return true;
	}
#endif
	return false;
}

int mc_worker_run(int argc, char **argv, const struct mc_worker_ops *ops, void *ctx)
{
	struct mc_worker w = {.ops = ops, .ctx = ctx, .creds_fd = -1, .arbiter_fd = -1};
	struct args a;
	int r;

	if (answer(argc, argv, ops))
		return 0;
	mc_log_setup(ops->process, NULL, LOG_INFO);
	if (parse_args(argc, argv, ops, &a) < 0)
		return 2;
	snprintf(w.guest, sizeof(w.guest), "%s", a.guest);
	w.debug = a.debug;
	w.uid = (uid_t)a.uid;
	w.gid = (gid_t)a.gid;
	w.creds_fd = a.creds_fd;
	if (w.creds_fd >= 0)
		(void)fcntl(w.creds_fd, F_SETFD, FD_CLOEXEC);
	w.role = ops->role == MC_ROLE_STAGE0 ? mc_role_stage(a.index) : ops->role;
	mc_log_setup(ops->process, w.guest, a.debug ? LOG_DEBUG : LOG_INFO);
	r = attach(&w, &a);
	if (r < 0)
		return r == -EPROTONOSUPPORT ? MC_EXIT_ABI : r == -EBUSY ? MC_EXIT_BUSY : 1;
	sign_in(&w);
	(void)mc_urgent(0);
	r = set_up(&w, &a);
	if (r >= 0)
		r = sd_event_loop(w.event);
	else
		r = 1;
	worker_done(&w);
	return r;
}

void mc_worker_exit(struct mc_worker *w, int status)
{
	sd_event_exit(w->event, status);
}
