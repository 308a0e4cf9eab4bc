/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

struct guest *manager_find(const struct manager *m, const char *name)
{
	for (struct guest *g = m->guests; g; g = g->next)
		if (strcmp(g->name, name) == 0)
			return g;
	return NULL;
}

/* Whom the workers become. Nobody to become is said once, and they run as this process does. */
static void find_user(struct manager *m)
{
	struct passwd *p = geteuid() == 0 ? getpwnam(m->user) : NULL;

	m->uid = (uid_t)-1;
	m->gid = (gid_t)-1;
	if (p) {
		m->uid = p->pw_uid;
		m->gid = p->pw_gid;
	} else if (geteuid() != 0) {
		mc_info("not started as root: the guests' processes run as user %u, too",
		        (unsigned)geteuid());
	} else {
		mc_warn("there is no user %s: the guests' processes run as root, without its "
		        "capabilities; systemd-sysusers makes that user, or name another by "
		        "--user",
		        m->user);
	}
}

static int make_dir(const char *path, mode_t mode)
{
	if (mkdir(path, mode) < 0 && errno != EEXIST)
		return mc_log_errno(
		        -errno, "can't make directory %s; make it by hand, or name another", path);
	return 0;
}

/* One supervisor a runtime directory; the kernel lets go of the lock when it dies. */
static int lock_dir(struct manager *m)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/lock", m->runtime_dir);
	m->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (m->lock_fd < 0)
		return mc_log_errno(-errno, "can't open %s", path);
	if (flock(m->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		mc_err("another mc-supervisor uses runtime directory %s; give this one its own "
		       "--runtime-dir",
		       m->runtime_dir);
		return -EBUSY;
	}
	return 0;
}

static uint32_t hash_of(const char *s)
{
	uint32_t h = 2166136261U; /* FNV-1a */

	for (; *s; s++)
		h = (h ^ (uint8_t)*s) * 16777619U;
	return h;
}

static int on_hangup(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
	char text[4096];

	(void)s;
	(void)si;
	(void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu",
	                 (unsigned long long)(mc_now_ns() / MC_NS_PER_US));
	/* Mistakes are in the log. */
	(void)boot_reload(userdata, text, sizeof(text));
	(void)sd_notify(0, "READY=1");
	return 0;
}

static int add_signals(struct manager *m)
{
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	signal(SIGPIPE, SIG_IGN);
	r = sd_event_add_signal(m->event, NULL, SIGTERM, NULL, NULL);
	if (r >= 0)
		r = sd_event_add_signal(m->event, NULL, SIGHUP, on_hangup, m);
	return r < 0 ? r : sd_event_add_signal(m->event, NULL, SIGINT, NULL, NULL);
}

static int start(struct manager *m)
{
	/* Workers find the control socket in it, and can't list it. */
	int r = make_dir(m->runtime_dir, 0711);

	find_user(m);
	if (r == 0)
		r = make_dir(m->state_dir, 0700);
	if (r == 0)
		r = lock_dir(m);
	if (r < 0)
		return r;
	m->hash = hash_of(m->runtime_dir);
	r = sd_event_new(&m->event);
	if (r >= 0)
		r = add_signals(m);
	if (r < 0)
		return mc_log_errno(r, "can't set up the event loop");
	(void)sd_event_set_watchdog(m->event, true);
#ifdef MC_FAULTS
	mc_fault_setup(MC_ROLE_SUPERVISOR, MC_SIDE_PRIMARY, true, NULL);
#endif
	r = hung_start(m);
	if (r == 0)
		r = control_start(m);
	if (r == 0)
		r = listen_start(m);
	if (r == 0)
		r = bus_start(m);
	if (r >= 0)
		r = adopt_start(m);
	return r;
}

int manager_run(struct manager *m)
{
	int r;

	m->lock_fd = m->control_fd = m->listen_fd = -1;
	r = start(m);
	if (r >= 0) {
		r = sd_event_loop(m->event);
		(void)sd_notify(0, "STOPPING=1");
	}
	/* The guests' processes go on: the next supervisor adopts them. */
	adopt_stop(m);
	boot_stop(m);
	listen_stop(m);
	m->control_source = sd_event_source_disable_unref(m->control_source);
	mc_closep(&m->control_fd);
	m->bus = sd_bus_flush_close_unref(m->bus);
	mc_closep(&m->lock_fd);
	return r < 0 ? 1 : 0;
}
