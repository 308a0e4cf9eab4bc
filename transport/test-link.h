/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-transport as a process, the test at the other end of its link.  The test plays the
 * supervisor as well: it answers the registration and passes connections on.
 */
#ifndef MC_TRANSPORT_TEST_LINK_H
#define MC_TRANSPORT_TEST_LINK_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#include "../ipc/test-process.h"
#include "../ipc/wire.h"
#include "../ipc/worker-bus.h"

#ifndef UNIT
#define UNIT  (256ULL << 10)
#define SLABS 128
#endif
#define RAM_BYTES (16ULL << 20)
#define LIMIT_MS  10000

static const struct mc_term TERM = {.number = 5, .id = 0x1234567890abcdef};

struct world {
	struct mc_arena sup, cap, res, sta; /* the arena as the roles that the test plays */
	struct proc transport;
	enum mc_side side;
	char dir[64];
	int control, port, listener; /* port: of the listener that a primary connects to */
	sd_bus *bus;
	bool registered;
};

/* --- supervisor ------------------------------------------------------------------------ */

static inline int on_register(sd_bus_message *m, void *userdata, sd_bus_error *e)
{
	struct world *w = userdata;

	(void)e;
	w->registered = true;
	return sd_bus_reply_method_return(m, NULL);
}

static const sd_bus_vtable supervisor_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD("Register", "ssuutshah", NULL, on_register, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_VTABLE_END,
};

static inline void control_open(struct world *w)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	strcpy(w->dir, "/tmp/mc-test-XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	snprintf(a.sun_path, sizeof(a.sun_path), "%s/control", w->dir);
	w->control = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(w->control, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(w->control, 4), 0);
}

static inline void wait_readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	assert_int_equal(poll(&p, 1, LIMIT_MS), 1);
}

/* The worker connects and registers. */
static inline void control_accept(struct world *w)
{
	sd_id128_t id;
	int fd;

	wait_readable(w->control);
	fd = accept4(w->control, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(sd_bus_new(&w->bus), 0);
	assert_int_equal(sd_bus_set_fd(w->bus, fd, fd), 0);
	assert_int_equal(sd_id128_randomize(&id), 0);
	assert_int_equal(sd_bus_set_server(w->bus, 1, id), 0);
	assert_int_equal(sd_bus_set_anonymous(w->bus, 1), 0);
	assert_int_equal(sd_bus_set_trusted(w->bus, 1), 0);
	assert_int_equal(sd_bus_negotiate_fds(w->bus, 1), 0);
	assert_true(sd_bus_add_object_vtable(w->bus, NULL, MC_CONTROL_PATH, MC_CONTROL_IFACE,
	                                     supervisor_vtable, w) >= 0);
	assert_true(sd_bus_start(w->bus) >= 0);
	while (!w->registered) {
		int r = sd_bus_process(w->bus, NULL);

		assert_true(r >= 0);
		if (r == 0)
			assert_int_equal(sd_bus_wait(w->bus, LIMIT_MS * 1000ULL), 1);
	}
}

/* --- world ----------------------------------------------------------------------------- */

static inline int listen_loopback(int *port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	*port = ntohs(a.sin_port);
	return fd;
}

static inline void fill_control(struct world *w)
{
	struct mc_control *c = w->sup.control;

	strcpy(c->block[0].name, "ram");
	c->block[0].size = RAM_BYTES;
	atomic_store(&c->blocks, 1);
	strcpy(c->description, "machine q35\nqemu 7.2\n");
	atomic_store(&c->attached, w->side == MC_SIDE_PRIMARY);
	atomic_store(&c->standby_ready, w->side == MC_SIDE_BACKUP);
}

static inline struct world *world_new(enum mc_side side)
{
	struct mc_arena_params p = {.slab_size = UNIT,
	                            .max_memory = SLABS * UNIT,
	                            .ram_pages = RAM_BYTES / MC_PAGE_SIZE,
	                            .side = side};
	struct world *w = calloc(1, sizeof(*w));
	struct mc_config *c;

	w->side = side;
	w->listener = listen_loopback(&w->port);
	assert_int_equal(mc_arena_create(&w->sup, NULL, &p), 0);
	c = w->sup.config;
	c->side = side;
	strcpy(c->guest, "test");
	snprintf(c->peer, sizeof(c->peer), "127.0.0.1:%d", w->port);
	strcpy(c->transport, "tcp");
	c->instance = (struct mc_instance){{1, 2}};
	if (side == MC_SIDE_PRIMARY)
		c->term = TERM;
	c->takeover_term = (struct mc_term){.number = TERM.number + 1, .id = 77};
	/* Retries stay fast, and silence is nobody's concern here. */
	atomic_store(&c->failure_timeout_ms, 600000);
	arena_as(&w->cap, &w->sup, MC_ROLE_CAPTURE);
	arena_as(&w->res, &w->sup, MC_ROLE_RESTORE);
	arena_as(&w->sta, &w->sup, mc_role_stage(0));
	fill_control(w);
	assert_int_equal(
	        mc_state_move(w->sup.control, side, MC_ROLE_SUPERVISOR, MC_STATE_NONE,
	                      side == MC_SIDE_PRIMARY ? MC_STATE_SYNCING : MC_STATE_WAITING,
	                      MC_REASON_STARTED),
	        0);
	control_open(w);
	return w;
}

static inline void world_start(struct world *w)
{
	char path[80];

	snprintf(path, sizeof(path), "%s/control", w->dir);
	proc_control = path;
	proc_start(&w->transport, &w->sup, MC_ROLE_TRANSPORT);
	control_accept(w);
}

static inline void world_end(struct world *w)
{
	char path[80];

	if (w->transport.pid)
		proc_end(&w->transport);
	sd_bus_close_unref(w->bus);
	close(w->control);
	close(w->listener);
	snprintf(path, sizeof(path), "%s/control", w->dir);
	unlink(path);
	rmdir(w->dir);
	mc_arena_done(&w->sta);
	mc_arena_done(&w->res);
	mc_arena_done(&w->cap);
	mc_arena_done(&w->sup);
	free(w);
}

static inline enum mc_state state_now(const struct world *w)
{
	return mc_state_of(atomic_load(&w->sup.control->state));
}

static inline bool is_alive(const struct world *w)
{
	return kill(w->transport.pid, 0) == 0 && waitpid(w->transport.pid, NULL, WNOHANG) == 0;
}

/* --- link ------------------------------------------------------------------------------ */

/* A connection to the backup's transport, passed on as the supervisor does. */
static inline int link_open(struct world *w)
{
	struct sockaddr_in a = {.sin_family = AF_INET,
	                        .sin_addr = {htonl(INADDR_LOOPBACK)},
	                        .sin_port = htons((uint16_t)w->port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), theirs, r;
	sd_bus_error e = SD_BUS_ERROR_NULL;

	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	theirs = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	assert_true(theirs >= 0);
	r = sd_bus_call_method(w->bus, NULL, MC_WORKER_PATH, MC_WORKER_IFACE, "Connection", &e,
	                       NULL, "h", theirs);
	if (r < 0)
		fail_msg("transport takes no connection: %s%s", e.message ? e.message : "?",
		         is_alive(w) ? "" : "; it died");
	sd_bus_error_free(&e);
	close(theirs);
	return fd;
}

/* The primary's transport connects. */
static inline int link_accept(struct world *w)
{
	int fd;

	wait_readable(w->listener);
	fd = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

/* Reads @len bytes; false at the end of the connection. */
static inline bool link_read(int fd, void *to, size_t len)
{
	for (size_t have = 0; have < len;) {
		ssize_t n;

		wait_readable(fd);
		n = recv(fd, (uint8_t *)to + have, len - have, 0);
		if (n <= 0)
			return false;
		have += (size_t)n;
	}
	return true;
}

/* The next message but PINGs, with its payload; type 0: the link was closed. */
static inline unsigned link_next(int fd, struct mc_wire_header *h, uint8_t *payload)
{
	do {
		if (!link_read(fd, h, sizeof(*h)))
			return 0;
		assert_int_equal(h->magic, MC_WIRE_MAGIC);
		assert_true(h->length <= MC_WIRE_HELLO_MAX + UNIT);
		if (!link_read(fd, payload, h->length))
			return 0;
		assert_true(mc_wire_checksum(h, payload, h->length, NULL, 0) == h->checksum);
	} while (h->type == MC_MSG_PING);
	return h->type;
}

/* Sends what the other end may refuse at any byte. */
static inline void link_write(int fd, const void *buf, size_t len)
{
	(void)!send(fd, buf, len, MSG_NOSIGNAL);
}

#endif
