/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Between QEMU's -netdev dgram (one datagram = one frame) and a tap or a socket.  Frames are
 * opaque: ARP, IPv6, anything passes or is held alike.
 */
#include <errno.h>
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
#include "backend.h"
#include "queue.h"
#include "tap.h"

#define BATCH 256 /* frames before others get their turn */

struct relay {
	struct gate_nic nic;
	struct mc_nic spec;
	struct mc_metrics_block *m;
	sd_event_source *qemu_io, *world_io;
	int qemu, world;
	int to_qemu; /* connected while we may: its socket belongs to another user */
	sd_event *event;
	bool world_is_sock;
	struct sockaddr_un qemu_addr, world_addr;
	enum gate_mode mode;
	struct queue held;
	uint64_t released; /* newest epoch that was released */
	uint8_t buf[FRAME_MAX];
};

static struct relay *to_relay(struct gate_nic *n)
{
	return (struct relay *)n;
}

static void held_metrics(struct relay *r, int64_t frames, int64_t bytes)
{
	mc_metric_add(r->m, MC_M_HELD_PACKETS, (uint64_t)frames);
	mc_metric_add(r->m, MC_M_HELD_BYTES, (uint64_t)bytes);
}

/* A frame to the world. A full tap or socket drops it, as a full wire would. */
static void send_out(struct relay *r, const void *frame, size_t len)
{
	ssize_t n = r->world_is_sock
	                    ? sendto(r->world, frame, len, MSG_DONTWAIT | MSG_NOSIGNAL,
	                             (struct sockaddr *)&r->world_addr, sizeof(r->world_addr))
	                    : write(r->world, frame, len);

	mc_metric_add(r->m, n < 0 ? MC_M_PURGED : MC_M_FRAMES_OUT, 1);
}

/* QEMU's socket, when it is there. */
static int connect_qemu(struct relay *r)
{
	if (connect(r->to_qemu, (struct sockaddr *)&r->qemu_addr, sizeof(r->qemu_addr)) == 0)
		return 0;
	return -errno;
}

/*
 * A new QEMU has taken a dead one's place.  Its socket may be another user's, which only a
 * process that has its privileges still can connect to: our successor.  Nothing is held then.
 */
static bool reconnect_qemu(struct relay *r)
{
	int e = connect_qemu(r);

	if (e == -EACCES && r->mode == GATE_PASS) {
		mc_info("QEMU at %s is a new one; the gate starts again", r->qemu_addr.sun_path);
		(void)sd_event_exit(r->event, 0);
	}
	return e == 0;
}

static void send_in(struct relay *r, const void *frame, size_t len)
{
	ssize_t n = -1;

	if (r->qemu_addr.sun_path[0]) {
		n = send(r->to_qemu, frame, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && (errno == ENOTCONN || errno == ECONNREFUSED || errno == ECONNRESET) &&
		    reconnect_qemu(r))
			n = send(r->to_qemu, frame, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	mc_metric_add(r->m, n < 0 ? MC_M_PURGED : MC_M_FRAMES_IN, 1);
}

static void take_frame(struct relay *r, size_t len)
{
	if (r->mode == GATE_PASS) {
		send_out(r, r->buf, len);
	} else if (r->mode == GATE_HOLD) {
		if (queue_push(&r->held, r->buf, len) == 0)
			held_metrics(r, 1, (int64_t)len);
		else
			mc_metric_add(r->m, MC_M_GATE_DROPS, 1);
	}
}

/* Reads up to @max frames of the guest. Returns how many there were. */
static int read_qemu(struct relay *r, int max)
{
	int n;

	for (n = 0; n < max; n++) {
		struct sockaddr_un from;
		socklen_t from_len = sizeof(from);
		ssize_t len = recvfrom(r->qemu, r->buf, sizeof(r->buf), MSG_DONTWAIT,
		                       (struct sockaddr *)&from, &from_len);

		if (len <= 0)
			break;
		/* Where to send its frames to is learnt from where they come from. */
		if (!r->spec.qemu_path[0] &&
		    from_len > offsetof(struct sockaddr_un, sun_path) + 1 &&
		    strncmp(r->qemu_addr.sun_path, from.sun_path, sizeof(from.sun_path)) != 0) {
			r->qemu_addr = from;
			(void)connect_qemu(r);
		}
		take_frame(r, (size_t)len);
	}
	return n;
}

static int on_qemu(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	(void)s;
	(void)fd;
	(void)revents;
	(void)read_qemu(userdata, BATCH);
	return 0;
}

static int on_world(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct relay *r = userdata;

	(void)s;
	(void)revents;
	for (int n = 0; n < BATCH; n++) {
		ssize_t len = r->world_is_sock ? recv(fd, r->buf, sizeof(r->buf), MSG_DONTWAIT)
		                               : read(fd, r->buf, sizeof(r->buf));

		if (len <= 0)
			break;
		/* A standby that is fed while it waits would answer all of it when it starts. */
		if (r->mode != GATE_SHUT)
			send_in(r, r->buf, (size_t)len);
	}
	return 0;
}

static void empty_queue(struct relay *r, bool send)
{
	struct frame f;

	while (queue_peek(&r->held, &f)) {
		if (send)
			send_out(r, f.data, f.len);
		held_metrics(r, -1, -(int64_t)f.len);
		queue_pop(&r->held);
	}
}

static int relay_set_mode(struct gate_nic *n, enum gate_mode mode)
{
	struct relay *r = to_relay(n);

	if (mode == r->mode)
		return 0;
	if (mode != GATE_HOLD)
		empty_queue(r, mode == GATE_PASS);
	r->mode = mode;
	return 0;
}

static int relay_barrier(struct gate_nic *n, uint64_t epoch)
{
	struct relay *r = to_relay(n);

	/* The guest is stopped and QEMU's writes are synchronous: what isn't here now never was. */
	while (read_qemu(r, BATCH) == BATCH)
		;
	queue_mark(&r->held, epoch);
	return 1;
}

static int relay_release(struct gate_nic *n, uint64_t epoch)
{
	struct relay *r = to_relay(n);
	struct frame f;

	r->released = mc_max_u64(r->released, epoch);
	while (queue_peek(&r->held, &f) && f.epoch <= epoch) {
		/* Never true; counted, since a leak is the one thing that must not go unseen. */
		if (f.epoch > r->released || f.epoch == EPOCH_OPEN)
			mc_metric_add(r->m, MC_M_LEAKS, 1);
		send_out(r, f.data, f.len);
		(void)mc_fault(MC_FAULT_NETGATE_RELEASED_ONE);
		held_metrics(r, -1, -(int64_t)f.len);
		queue_pop(&r->held);
	}
	return 1;
}

static int relay_set_limit(struct gate_nic *n, uint64_t bytes)
{
	to_relay(n)->held.limit = bytes;
	return 0;
}

static struct gate_nic *relay_close(struct gate_nic *n, bool undo)
{
	struct relay *r = to_relay(n);

	(void)undo; /* closing is undoing */
	if (!r)
		return NULL;
	sd_event_source_disable_unref(r->qemu_io);
	sd_event_source_disable_unref(r->world_io);
	mc_closep(&r->qemu);
	mc_closep(&r->world);
	mc_closep(&r->to_qemu);
	queue_done(&r->held);
	free(r);
	return NULL;
}

static int open_world(struct relay *r, char *why, size_t why_len)
{
	if (r->spec.sock[0]) {
		r->world_is_sock = true;
		r->world_addr.sun_family = AF_UNIX;
		snprintf(r->world_addr.sun_path, sizeof(r->world_addr.sun_path), "%s",
		         r->spec.sock);
		return dgram_open(r->spec.sock_local, why, why_len);
	}
	return tap_open(r->spec.tap, r->spec.netns, why, why_len);
}

/* Our socket is for QEMU's user alone, its own is connected to as long as we may. */
static int open_to_qemu(struct relay *r)
{
	const char *theirs = r->qemu_addr.sun_path;
	struct stat st;

	if (theirs[0] && stat(theirs, &st) == 0 && geteuid() == 0 &&
	    (chown(r->spec.path, st.st_uid, st.st_gid) < 0 || chmod(r->spec.path, 0600) < 0))
		return -errno;
	r->to_qemu = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (r->to_qemu < 0)
		return -errno;
	if (theirs[0])
		(void)connect_qemu(r); /* tried again with the first frame */
	return 0;
}

static int relay_open(struct gate_nic **ret, const struct mc_nic *spec, const struct gate_env *env,
                      char *why, size_t why_len)
{
	struct relay *r = calloc(1, sizeof(*r));
	int e;

	if (!r)
		return -ENOMEM;
	r->nic.ops = &relay_ops;
	r->spec = *spec;
	r->m = env->m;
	r->qemu = r->world = r->to_qemu = -1;
	r->event = env->event;
	r->mode = GATE_SHUT;
	queue_init(&r->held, env->limit);
	if (spec->qemu_path[0]) {
		r->qemu_addr.sun_family = AF_UNIX;
		snprintf(r->qemu_addr.sun_path, sizeof(r->qemu_addr.sun_path), "%s",
		         spec->qemu_path);
	}
	e = r->world = open_world(r, why, why_len);
	if (e >= 0)
		e = r->qemu = dgram_open(spec->path, why, why_len);
	if (e >= 0)
		e = open_to_qemu(r);
	if (e >= 0)
		e = sd_event_add_io(env->event, &r->qemu_io, r->qemu, EPOLLIN, on_qemu, r);
	if (e >= 0)
		e = sd_event_add_io(env->event, &r->world_io, r->world, EPOLLIN, on_world, r);
	if (e < 0) {
		relay_close(&r->nic, true);
		return e;
	}
	*ret = &r->nic;
	return 0;
}

const struct gate_ops relay_ops = {
        .open = relay_open,
        .set_mode = relay_set_mode,
        .barrier = relay_barrier,
        .release = relay_release,
        .set_limit = relay_set_limit,
        .close = relay_close,
};
