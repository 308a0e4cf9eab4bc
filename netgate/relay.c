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
#include "relay-private.h"
#include "tap.h"

#define RETRY_US 500 /* until a receiver that was full is tried again */
#define READ_US  200 /* between reads of what is held anyway: QEMU's socket isn't full by then */
#define SNDBUF   (8 << 20)

static struct relay *to_relay(struct gate_nic *n)
{
	return (struct relay *)n;
}

static void held_metrics(struct relay *r, int64_t frames, int64_t bytes)
{
	mc_metric_add(r->m, MC_M_HELD_PACKETS, (uint64_t)frames);
	mc_metric_add(r->m, MC_M_HELD_BYTES, (uint64_t)bytes);
}

/*
 * Sends @n frames of out_v[] to the world.  How many are done with: fewer than @n when the
 * receiver is full.  What can't be sent for another reason is lost, as on a wire.
 */
static unsigned send_burst(struct relay *r, unsigned n)
{
	unsigned done = 0;

	while (done < n) {
		int k;

		if (r->world_is_sock)
			k = sendmmsg(r->world, r->out_m + done, n - done,
			             MSG_DONTWAIT | MSG_NOSIGNAL);
		else
			k = write(r->world, r->out_v[done].iov_base, r->out_v[done].iov_len) < 0
			            ? -1
			            : 1;
		if (k < 0 && errno == EAGAIN)
			break;
		for (int i = 0; i < k; i++)
			r->out += r->out_v[done + (unsigned)i].iov_len;
		mc_metric_add(r->m, k < 0 ? MC_M_PURGED : MC_M_FRAMES_OUT, k < 0 ? 1 : (uint64_t)k);
		done += k < 0 ? 1 : (unsigned)k;
	}
	return done;
}

static void retry_later(struct relay *r)
{
	(void)sd_event_source_set_time_relative(r->retry, RETRY_US);
	(void)sd_event_source_set_enabled(r->retry, SD_EVENT_ONESHOT);
}

/* Sends of the queue what may leave. */
static void flush(struct relay *r)
{
	struct frame f[BURST];

	while (r->mode != GATE_SHUT) {
		unsigned n = queue_peek_many(&r->held, f, BURST), may = 0, done;

		while (may < n && (r->mode == GATE_PASS || f[may].epoch <= r->released)) {
			r->out_v[may] = (struct iovec){(void *)f[may].data, f[may].len};
			may++;
		}
		if (!may)
			break;
		done = send_burst(r, may);
		for (unsigned i = 0; i < done; i++) {
			held_metrics(r, -1, -(int64_t)f[i].len);
			queue_pop(&r->held);
		}
		(void)mc_fault(MC_FAULT_NETGATE_RELEASED_ONE);
		if (done < may) {
			retry_later(r);
			break;
		}
	}
	if (r->mode == GATE_HOLD && r->out > r->allowed) {
		mc_metric_add(r->m, MC_M_LEAKS, 1);
		mc_metric_add(r->m, MC_M_LEAKED_BYTES, r->out - r->allowed);
		r->allowed = r->out;
	}
}

static int on_retry(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	flush(userdata);
	return 0;
}

static void keep(struct relay *r, const void *frame, size_t len)
{
	if (queue_push(&r->held, frame, len) == 0) {
		held_metrics(r, 1, (int64_t)len);
		r->in += len;
	} else {
		mc_metric_add(r->m, MC_M_GATE_DROPS, 1);
	}
}

/* Frames that pass go on without a copy, unless others wait before them. */
static void take_burst(struct relay *r, unsigned n)
{
	unsigned done = 0;

	if (r->mode == GATE_PASS && !r->held.frames) {
		for (unsigned i = 0; i < n; i++)
			r->out_v[i] = (struct iovec){r->b.data[i], r->b.m[i].msg_len};
		done = send_burst(r, n);
		for (unsigned i = 0; i < done; i++)
			r->in += r->b.m[i].msg_len;
	}
	for (; done < n && r->mode != GATE_SHUT; done++)
		keep(r, r->b.data[done], r->b.m[done].msg_len);
	if (r->mode == GATE_PASS && r->held.frames)
		retry_later(r);
}

/* Reads a burst of the guest's frames. False: no more are there. */
static bool read_qemu(struct relay *r)
{
	int n;

	for (unsigned i = 0; i < BURST; i++)
		r->b.m[i].msg_hdr.msg_namelen = sizeof(r->b.from[i]);
	n = recvmmsg(r->qemu, r->b.m, BURST, MSG_DONTWAIT, NULL);
	if (n <= 0)
		return false;
	relay_in_learn(r, &r->b.m[n - 1].msg_hdr);
	take_burst(r, (unsigned)n);
	return true;
}

/*
 * Frames that come one after the other and are held would cost a wake-up each, here and in QEMU:
 * they may as well wait in the socket for a moment.  A barrier reads them whenever it comes.
 */
static void read_later(struct relay *r)
{
	(void)sd_event_source_set_enabled(r->qemu_io, SD_EVENT_OFF);
	(void)sd_event_source_set_time_relative(r->read_again, READ_US);
	(void)sd_event_source_set_enabled(r->read_again, SD_EVENT_ONESHOT);
}

static void read_at_once(struct relay *r)
{
	(void)sd_event_source_set_enabled(r->read_again, SD_EVENT_OFF);
	(void)sd_event_source_set_enabled(r->qemu_io, SD_EVENT_ON);
}

static void read_bursts(struct relay *r)
{
	uint64_t last = r->read_at;
	int n = 0;

	while (n < BURSTS && read_qemu(r))
		n++;
	r->read_at = mc_now_ns();
	if (n && r->mode == GATE_HOLD && r->read_at - last < 2 * READ_US * MC_NS_PER_US)
		read_later(r);
	else
		read_at_once(r);
}

static int on_qemu(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	(void)s;
	(void)fd;
	(void)revents;
	read_bursts(userdata);
	return 0;
}

static int on_read_again(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	read_bursts(userdata);
	return 0;
}

static int relay_set_mode(struct gate_nic *n, enum gate_mode mode)
{
	struct relay *r = to_relay(n);
	struct frame f;

	if (mode == r->mode)
		return 0;
	r->mode = mode;
	if (mode == GATE_HOLD)
		r->allowed = r->in; /* what passed before but hasn't left yet */
	while (mode == GATE_SHUT && queue_peek(&r->held, &f)) {
		held_metrics(r, -1, -(int64_t)f.len);
		queue_pop(&r->held);
	}
	if (mode == GATE_SHUT)
		relay_in_drop(r);
	read_at_once(r);
	flush(r);
	return 0;
}

static int relay_barrier(struct gate_nic *n, uint64_t epoch)
{
	struct relay *r = to_relay(n);

	/* The guest is stopped and QEMU's writes are synchronous: what isn't here now never was. */
	while (read_qemu(r))
		;
	queue_mark(&r->held, epoch);
	r->mark[epoch % MARKS].epoch = epoch;
	r->mark[epoch % MARKS].in = r->in;
	return 1;
}

static int relay_release(struct gate_nic *n, uint64_t epoch)
{
	struct relay *r = to_relay(n);

	r->released = mc_max_u64(r->released, epoch);
	for (unsigned i = 0; i < MARKS; i++)
		if (r->mark[i].epoch && r->mark[i].epoch <= epoch)
			r->allowed = mc_max_u64(r->allowed, r->mark[i].in);
	flush(r);
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
	relay_in_close(r);
	sd_event_source_disable_unref(r->retry);
	sd_event_source_disable_unref(r->read_again);
	mc_closep(&r->qemu);
	mc_closep(&r->world);
	queue_done(&r->held);
	free(r);
	return NULL;
}

static int open_world(struct relay *r, char *why, size_t why_len)
{
	int fd, room = SNDBUF;

	if (r->spec.sock[0]) {
		r->world_is_sock = true;
		r->world_addr.sun_family = AF_UNIX;
		snprintf(r->world_addr.sun_path, sizeof(r->world_addr.sun_path), "%s",
		         r->spec.sock);
		fd = dgram_open(r->spec.sock_local, why, why_len);
		/* A release comes in one go: it needs room. */
		if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0)
			(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
		return fd;
	}
	return tap_open(r->spec.tap, r->spec.netns, why, why_len);
}

static void prepare_bursts(struct relay *r)
{
	for (unsigned i = 0; i < BURST; i++) {
		r->b.v[i] = (struct iovec){r->b.data[i], FRAME_MAX};
		r->b.m[i].msg_hdr = (struct msghdr){
		        .msg_iov = &r->b.v[i], .msg_iovlen = 1, .msg_name = &r->b.from[i]};
		r->out_m[i].msg_hdr = (struct msghdr){.msg_iov = &r->out_v[i],
		                                      .msg_iovlen = 1,
		                                      .msg_name = &r->world_addr,
		                                      .msg_namelen = sizeof(r->world_addr)};
	}
}

static int start_events(struct relay *r)
{
	int e = sd_event_add_io(r->event, &r->qemu_io, r->qemu, EPOLLIN, on_qemu, r);

	if (e >= 0)
		e = relay_in_start(r);
	if (e >= 0)
		e = sd_event_add_time_relative(r->event, &r->retry, CLOCK_MONOTONIC, 0,
		                               RETRY_US / 4, on_retry, r);
	if (e >= 0)
		e = sd_event_add_time_relative(r->event, &r->read_again, CLOCK_MONOTONIC, 0,
		                               READ_US / 4, on_read_again, r);
	if (e >= 0)
		e = sd_event_source_set_enabled(r->read_again, SD_EVENT_OFF);
	return e < 0 ? e : sd_event_source_set_enabled(r->retry, SD_EVENT_OFF);
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
	prepare_bursts(r);
	if (spec->qemu_path[0]) {
		r->qemu_addr.sun_family = AF_UNIX;
		snprintf(r->qemu_addr.sun_path, sizeof(r->qemu_addr.sun_path), "%s",
		         spec->qemu_path);
	}
	e = r->world = open_world(r, why, why_len);
	if (e >= 0)
		e = r->qemu = dgram_open(spec->path, why, why_len);
	if (e >= 0)
		e = relay_in_open(r);
	if (e >= 0)
		e = start_events(r);
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
