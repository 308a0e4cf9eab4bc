/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "worker-bus.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>

#include "log.h"
#include "util.h"

#define RETRY_US    100000
#define REGISTER_US 2000000
#define HELD_EVENTS 8

/* An event that waits for a supervisor: of the start, or while there is none. */
struct held_event {
	char id[32], text[512];
	uint64_t epoch;
};

struct mc_worker_bus {
	struct mc_worker *w;
	char path[108];
	sd_bus *bus;
	sd_event_source *retry;
	sd_bus_slot *call;
	bool registered;
	struct held_event held[HELD_EVENTS];
	unsigned nheld;
};

uint64_t mc_pid_start_time(int pid)
{
	char path[40], buf[1024], *p;
	int mc_autoclose fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return 0;
	buf[n] = '\0';
	/* The name, field 2, may hold anything; what follows its last ')' is field 3. */
	p = strrchr(buf, ')');
	/* One that waits to be reaped isn't there any more. */
	if (p && p[1] == ' ' && (p[2] == 'Z' || p[2] == 'X'))
		return 0;
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p ? strtoull(p + 1, NULL, 10) : 0;
}

static int on_quit(sd_bus_message *m, void *userdata, sd_bus_error *e)
{
	struct mc_worker *w = userdata;
	int r = sd_bus_reply_method_return(m, NULL);

	(void)e;
	if (w->ops->quit)
		w->ops->quit(w, w->ctx);
	mc_worker_exit(w, 0);
	return r;
}

static int on_connection(sd_bus_message *m, void *userdata, sd_bus_error *e)
{
	struct mc_worker *w = userdata;
	int mc_autoclose own = -1;
	int fd, r;

	if (!w->ops->connection)
		return sd_bus_error_set(e, SD_BUS_ERROR_NOT_SUPPORTED, "takes no connections");
	r = sd_bus_message_read(m, "h", &fd);
	if (r < 0)
		return r;
	own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return -errno;
	r = w->ops->connection(w, w->ctx, own);
	if (r < 0)
		return sd_bus_error_set_errno(e, r);
	own = -1;
	return sd_bus_reply_method_return(m, NULL);
}

static int on_do(sd_bus_message *m, void *userdata, sd_bus_error *e)
{
	struct mc_worker *w = userdata;
	char mc_autofree *reply = NULL;
	const char *verb, *arg;
	int r;

	r = sd_bus_message_read(m, "ss", &verb, &arg);
	if (r < 0)
		return r;
	if (!w->ops->do_verb)
		return sd_bus_error_set(e, SD_BUS_ERROR_NOT_SUPPORTED, "has no verbs");
	r = w->ops->do_verb(w, w->ctx, verb, arg, &reply);
	if (r < 0)
		return sd_bus_error_setf(e, SD_BUS_ERROR_FAILED, "%s",
		                         reply ? reply : strerror(-r));
	return sd_bus_reply_method_return(m, "s", reply ? reply : "");
}

static const sd_bus_vtable worker_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD("Quit", NULL, NULL, on_quit, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD("Connection", "h", NULL, on_connection, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD("Do", "ss", "s", on_do, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_SIGNAL("Event", "sst", 0),
        SD_BUS_VTABLE_END,
};

static void disconnect(struct mc_worker_bus *b)
{
	b->call = sd_bus_slot_unref(b->call);
	if (b->bus) {
		sd_bus_detach_event(b->bus);
		b->bus = sd_bus_close_unref(b->bus);
	}
	b->registered = false;
}

static void retry_later(struct mc_worker_bus *b)
{
	(void)sd_event_source_set_time_relative(b->retry, RETRY_US);
	(void)sd_event_source_set_enabled(b->retry, SD_EVENT_ONESHOT);
}

static int on_disconnected(sd_bus_message *m, void *userdata, sd_bus_error *e)
{
	(void)m;
	(void)e;
	/* The bus can't be freed inside its own callback: the timer does it. */
	retry_later(userdata);
	return 0;
}

static void emit(struct mc_worker_bus *b, const struct held_event *e)
{
	(void)sd_bus_emit_signal(b->bus, MC_WORKER_PATH, MC_WORKER_IFACE, "Event", "sst", e->id,
	                         e->text, e->epoch);
}

static int on_registered(sd_bus_message *m, void *userdata, sd_bus_error *e)
{
	struct mc_worker_bus *b = userdata;

	(void)e;
	if (sd_bus_message_is_method_error(m, NULL)) {
		mc_debug("supervisor refused: %s", sd_bus_message_get_error(m)->message);
		retry_later(b);
		return 0;
	}
	b->registered = true;
	for (unsigned i = 0; i < b->nheld; i++)
		emit(b, &b->held[i]);
	b->nheld = 0;
	return 0;
}

static int send_register(struct mc_worker_bus *b)
{
	sd_bus_message *m = NULL;
	struct mc_worker *w = b->w;
	int pid = (int)getpid();
	int r;

	r = sd_bus_message_new_method_call(b->bus, &m, NULL, MC_CONTROL_PATH, MC_CONTROL_IFACE,
	                                   "Register");
	if (r >= 0)
		r = sd_bus_message_append(m, "ssuutsh", w->guest, mc_role_name(w->role),
		                          mc_role_index(w->role), (uint32_t)pid, w->start_time,
		                          mc_build_id(), w->arena.fd);
	if (r >= 0)
		r = sd_bus_message_open_container(m, 'a', "h");
	for (int i = 0; r >= 0 && i < MC_ROLE_MAX; i++)
		r = sd_bus_message_append(m, "h", w->arena.bell_fd[i]);
	if (r >= 0)
		r = sd_bus_message_close_container(m);
	if (r >= 0)
		r = sd_bus_call_async(b->bus, &b->call, m, on_registered, b, REGISTER_US);
	sd_bus_message_unref(m);
	return r;
}

static int open_socket(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r;

	if (fd < 0)
		return -errno;
	memcpy(a.sun_path, path, strlen(path));
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

static int connect_bus(struct mc_worker_bus *b)
{
	int fd = open_socket(b->path);
	int r;

	if (fd < 0)
		return fd;
	r = sd_bus_new(&b->bus);
	if (r < 0) {
		close(fd);
		return r;
	}
	r = sd_bus_set_fd(b->bus, fd, fd);
	if (r < 0) {
		close(fd);
		return r;
	}
	r = sd_bus_set_anonymous(b->bus, 1);
	if (r >= 0)
		r = sd_bus_set_trusted(b->bus, 1);
	if (r >= 0)
		r = sd_bus_negotiate_fds(b->bus, 1);
	if (r >= 0)
		r = sd_bus_add_object_vtable(b->bus, NULL, MC_WORKER_PATH, MC_WORKER_IFACE,
		                             worker_vtable, b->w);
	if (r >= 0)
		r = sd_bus_match_signal(b->bus, NULL, NULL, "/org/freedesktop/DBus/Local",
		                        "org.freedesktop.DBus.Local", "Disconnected",
		                        on_disconnected, b);
	if (r >= 0)
		r = sd_bus_start(b->bus);
	if (r >= 0)
		r = sd_bus_attach_event(b->bus, b->w->event, SD_EVENT_PRIORITY_NORMAL);
	return r < 0 ? r : send_register(b);
}

static int on_retry(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct mc_worker_bus *b = userdata;

	(void)s;
	(void)usec;
	disconnect(b);
	if (connect_bus(b) < 0) {
		disconnect(b);
		retry_later(b);
	}
	return 0;
}

int mc_worker_bus_new(struct mc_worker *w, const char *path)
{
	struct mc_worker_bus *b;
	int r;

	if (strlen(path) >= sizeof(b->path))
		return -ENAMETOOLONG;
	b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->w = w;
	strcpy(b->path, path);
	/* Accuracy 1 us: the default of 250 ms would eat a whole restart_grace. */
	r = sd_event_add_time_relative(w->event, &b->retry, CLOCK_MONOTONIC, 0, 1, on_retry, b);
	if (r < 0) {
		free(b);
		return r;
	}
	w->bus = b;
	return 0;
}

struct mc_worker_bus *mc_worker_bus_free(struct mc_worker_bus *b)
{
	if (!b)
		return NULL;
	if (b->bus)
		(void)sd_bus_flush(b->bus);
	disconnect(b);
	sd_event_source_unref(b->retry);
	free(b);
	return NULL;
}

void mc_worker_event(struct mc_worker *w, const char *id, uint64_t epoch, const char *fmt, ...)
{
	struct mc_worker_bus *b = w->bus;
	struct held_event e = {.epoch = epoch};
	va_list ap;

	snprintf(e.id, sizeof(e.id), "%s", id);
	va_start(ap, fmt);
	vsnprintf(e.text, sizeof(e.text), fmt, ap);
	va_end(ap);
	if (b && b->bus && b->registered)
		emit(b, &e);
	else if (b && b->nheld < HELD_EVENTS)
		b->held[b->nheld++] = e;
}
