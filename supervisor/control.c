/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where workers register: one D-Bus connection each, peer to peer (ipc/worker.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "../ipc/worker-bus.h"
#include "supervisor.h"

#define EVENT_BURST 100         /* of one process at once, */
#define EVENT_NS    MC_NS_PER_S /* and then one a second */

/* Connections that haven't registered: what a process that was taken over can take of those of
 * others. A worker has one, and registers at once. */
#define NEW_OF_ONE 4        /* of one process */
#define NEW_US     10000000 /* for so long */

struct newcomer {
	struct manager *m;
	struct newcomer *next; /* an older one */
	sd_bus *bus;
	pid_t pid; /* as the kernel says */
	sd_event_source *limit;
};

static void forget_newcomer(struct manager *m, const sd_bus *bus)
{
	struct newcomer **p = &m->newcomers, *n;

	while (*p && (*p)->bus != bus)
		p = &(*p)->next;
	n = *p;
	if (!n)
		return;
	*p = n->next;
	sd_event_source_disable_unref(n->limit);
	free(n);
}

static struct child *child_of_bus(struct manager *m, sd_bus *bus)
{
	for (struct guest *g = m->guests; g; g = g->next)
		for (int i = 0; i < MC_ROLE_MAX; i++)
			if (g->child[i].bus == bus)
				return &g->child[i];
	return NULL;
}

sd_bus *control_close(struct manager *m, sd_bus *bus)
{
	m->nworkers--;
	forget_newcomer(m, bus);
	sd_bus_detach_event(bus);
	return sd_bus_close_unref(bus);
}

static int on_gone(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	sd_bus *bus = sd_bus_message_get_bus(msg);
	struct child *c = child_of_bus(userdata, bus);

	(void)e;
	if (c)
		c->bus = NULL;
	(void)control_close(userdata, bus);
	return 0;
}

/* A process that went mad, or was taken over, doesn't fill the history and the journal. */
static bool may_write(struct child *c)
{
	if (!rate_take(&c->events, EVENT_BURST, EVENT_NS, mc_now_ns())) {
		c->events_lost++;
		return false;
	}
	if (c->events_lost)
		event_write(c->g, "events-lost", 0, "mc-%s %u sent %llu more than are written",
		            mc_role_name(c->role), mc_role_index(c->role),
		            (unsigned long long)c->events_lost);
	c->events_lost = 0;
	return true;
}

static int on_event(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct child *c = child_of_bus(userdata, sd_bus_message_get_bus(msg));
	const char *id, *text;
	uint64_t epoch;

	(void)e;
	if (c && sd_bus_message_read(msg, "sst", &id, &text, &epoch) >= 0) {
		char by[32];

		if (!may_write(c))
			return 0;

		snprintf(by, sizeof(by), "mc-%s", mc_role_name(c->role));
		event_write_by(c->g, id, by, epoch, "%s", text);
		if (strcmp(id, "switchover") == 0)
			switchover_called_off(c->g, text);
	}
	return 0;
}

/* The caller's word against the kernel's. */
static int check_identity(sd_bus *bus, uid_t uid, pid_t pid, uint64_t start_time)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(sd_bus_get_fd(bus), SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	if (cred.pid != pid || (cred.uid != 0 && cred.uid != geteuid() && cred.uid != uid) ||
	    mc_pid_start_time(pid) != start_time)
		return -EPERM;
	return 0;
}

/* A guest that a predecessor of ours started: known by what its worker brings. */
static struct guest *adopt(struct manager *m, const char *name, int arena, const int *bells)
{
	int fds[MC_ROLE_MAX + 1];
	struct guest *g;

	if (mc_guest_name_check(name) < 0 || m->nguests >= GUESTS_MAX)
		return NULL;
	for (int i = 0; i <= MC_ROLE_MAX; i++)
		fds[i] = fcntl(i ? bells[i - 1] : arena, F_DUPFD_CLOEXEC, 3);
	g = fds[MC_ROLE_MAX] < 0 ? NULL : guest_adopt(m, name, fds[0], fds + 1);
	if (!g)
		for (int i = 0; i <= MC_ROLE_MAX; i++)
			mc_closep(&fds[i]);
	return g;
}

static int read_bells(sd_bus_message *msg, int *bells)
{
	int n = 0, r = sd_bus_message_enter_container(msg, 'a', "h");

	while (r >= 0 && n < MC_ROLE_MAX) {
		r = sd_bus_message_read(msg, "h", &bells[n]);
		if (r <= 0)
			break;
		n++;
	}
	return n == MC_ROLE_MAX ? sd_bus_message_exit_container(msg) : -EINVAL;
}

static int on_register(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct manager *m = userdata;
	sd_bus *bus = sd_bus_message_get_bus(msg);
	const char *name, *role_name, *build;
	int arena, bells[MC_ROLE_MAX], r;
	uint32_t index, pid;
	uint64_t start;
	enum mc_role role;
	struct guest *g;

	r = sd_bus_message_read(msg, "ssuutsh", &name, &role_name, &index, &pid, &start, &build,
	                        &arena);
	if (r >= 0)
		r = read_bells(msg, bells);
	if (r < 0)
		return bus_error(e, -EINVAL,
		                 "bad registration: the process is of another version; mcctl "
		                 "restart replaces it");
	if (mc_role_parse(role_name, index, &role) < 0 || role == MC_ROLE_SUPERVISOR ||
	    check_identity(bus, m->uid, (pid_t)pid, start) < 0)
		return bus_error(e, -EPERM,
		                 "not a process of this supervisor's guests; only mc-supervisor "
		                 "starts those");
	g = manager_find(m, name);
	if (!g)
		g = adopt(m, name, arena, bells);
	if (!g || child_adopt(&g->child[role], (pid_t)pid, bus) < 0)
		return bus_error(e, -EBUSY,
		                 "its place is taken by another process, or its guest isn't here");
	forget_newcomer(m, bus);
	(void)mc_fault(MC_FAULT_SUPERVISOR_REGISTERED);
	r = sd_bus_reply_method_return(msg, NULL);
	watch_look(g);
	return r;
}

static const sd_bus_vtable control_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD("Register", "ssuutshah", NULL, on_register, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_VTABLE_END,
};

static int on_new_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct newcomer *n = userdata;

	(void)s;
	(void)usec;
	(void)control_close(n->m, n->bus);
	return 0;
}

/* The newest of a process is the one that it means. */
static void close_oldest_of(struct manager *m, pid_t pid)
{
	struct newcomer *oldest = NULL;
	unsigned count = 0;

	for (struct newcomer *n = m->newcomers; n; n = n->next)
		if (n->pid == pid) {
			oldest = n;
			count++;
		}
	if (count > NEW_OF_ONE)
		(void)control_close(m, oldest->bus);
}

static int add_newcomer(struct manager *m, sd_bus *bus)
{
	struct newcomer *n = calloc(1, sizeof(*n));
	struct ucred cred = {0};
	socklen_t len = sizeof(cred);
	int r;

	if (!n)
		return -ENOMEM;
	(void)getsockopt(sd_bus_get_fd(bus), SOL_SOCKET, SO_PEERCRED, &cred, &len);
	*n = (struct newcomer){.m = m, .bus = bus, .pid = cred.pid, .next = m->newcomers};
	r = sd_event_add_time_relative(m->event, &n->limit, CLOCK_MONOTONIC, NEW_US, 0,
	                               on_new_limit, n);
	if (r < 0) {
		free(n);
		return r;
	}
	m->newcomers = n;
	return 0;
}

static int serve(struct manager *m, int fd)
{
	sd_bus *bus = NULL;
	sd_id128_t id;
	int r = sd_bus_new(&bus);

	if (r < 0) {
		close(fd);
		return r;
	}
	r = sd_bus_set_fd(bus, fd, fd);
	if (r < 0)
		close(fd);
	if (r >= 0)
		r = sd_id128_randomize(&id);
	if (r >= 0)
		r = sd_bus_set_server(bus, 1, id);
	if (r >= 0)
		r = sd_bus_set_anonymous(bus, 1);
	if (r >= 0)
		r = sd_bus_set_trusted(bus, 1);
	if (r >= 0)
		r = sd_bus_negotiate_fds(bus, 1);
	if (r >= 0)
		r = sd_bus_add_object_vtable(bus, NULL, MC_CONTROL_PATH, MC_CONTROL_IFACE,
		                             control_vtable, m);
	if (r >= 0)
		r = sd_bus_add_match(bus, NULL,
		                     "type='signal',interface='org.freedesktop.DBus.Local',member='"
		                     "Disconnected'",
		                     on_gone, m);
	if (r >= 0)
		r = sd_bus_add_match(bus, NULL,
		                     "type='signal',interface='" MC_WORKER_IFACE "',member='Event'",
		                     on_event, m);
	if (r >= 0)
		r = sd_bus_start(bus);
	if (r >= 0)
		r = sd_bus_attach_event(bus, m->event, SD_EVENT_PRIORITY_NORMAL);
	if (r >= 0)
		r = add_newcomer(m, bus);
	if (r >= 0) {
		m->nworkers++;
		close_oldest_of(m, m->newcomers->pid);
	} else {
		sd_bus_unref(bus);
	}
	return r; /* the reference belongs to the connection: on_gone() drops it */
}

static int on_accept(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct manager *m = userdata;
	int c = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK), r;

	(void)s;
	(void)revents;
	if (c < 0)
		return 0;
	if (m->nworkers >= WORKERS_MAX) {
		close(c); /* a worker tries again */
		return 0;
	}
	r = serve(m, c);
	if (r < 0)
		mc_log_errno(r, "a process of a guest can't be talked to; it tries again");
	return 0;
}

int control_start(struct manager *m)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int r;

	if (snprintf(a.sun_path, sizeof(a.sun_path), "%s/control", m->runtime_dir) >=
	    (int)sizeof(a.sun_path))
		return mc_log_errno(
		        -ENAMETOOLONG,
		        "--runtime-dir %s is too long for a socket in it; name a shorter one",
		        m->runtime_dir);
	m->control_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (m->control_fd < 0)
		return mc_log_errno(-errno, "can't make a socket for the guests' processes");
	(void)unlink(a.sun_path); /* we hold the directory's lock */
	if (bind(m->control_fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
	    (m->uid != (uid_t)-1 && chown(a.sun_path, 0, m->gid) < 0) ||
	    chmod(a.sun_path, m->uid != (uid_t)-1 ? 0660 : 0600) < 0 ||
	    listen(m->control_fd, 64) < 0)
		return mc_log_errno(-errno, "can't listen on %s for the guests' processes",
		                    a.sun_path);
	r = sd_event_add_io(m->event, &m->control_source, m->control_fd, EPOLLIN, on_accept, m);
	if (r >= 0)
		r = sd_event_source_set_ratelimit(m->control_source, ACCEPT_US, ACCEPT_BURST);
	return r < 0 ? mc_log_errno(r, "can't wait for the guests' processes") : 0;
}
