/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "tcp-private.h"

#define UNSENT_MAX (512 << 10)
#define SECURE_US  5000000 /* for everything before the link, with TLS */

static struct tcp *to_tcp(struct link *l)
{
	return (struct tcp *)l;
}

static void free_outgoing(struct outgoing *o)
{
	if (!o)
		return;
	free(o->big);
	free(o);
}

void tcp_set_io(struct tcp *t)
{
	uint32_t ev = (t->stalled || t->connecting ? 0 : EPOLLIN) |
	              (t->connecting || (t->count && t->full) ? EPOLLOUT : 0);

	if (t->securing && !t->connecting)
		ev = tls_wants(t->tls);
	(void)sd_event_source_set_io_events(t->io, ev);
}

static int write_out(struct tcp *t);

void tcp_closed(struct tcp *t, int error, const char *why)
{
	if (t->dead)
		return;
	/* The last word may be why it ends. */
	if (t->l.gather)
		(void)write_out(t);
	t->dead = true;
	(void)sd_event_source_set_enabled(t->io, SD_EVENT_OFF);
	if (t->more)
		(void)sd_event_source_set_enabled(t->more, SD_EVENT_OFF);
	if (t->limit)
		(void)sd_event_source_set_enabled(t->limit, SD_EVENT_OFF);
	shutdown(t->fd, SHUT_RDWR);
	t->l.events->closed(t->l.ctx, &t->l, error, why);
}

/* TLS knows better what is wrong. */
const char *tcp_broken(const struct tcp *t, const char *otherwise)
{
	return t->tls && tls_error(t->tls)[0] ? tls_error(t->tls) : otherwise;
}

/* --- out ------------------------------------------------------------------------------- */

static size_t add_iov(struct iovec *iov, int *n, const void *p, size_t len, size_t skip)
{
	if (skip >= len)
		return skip - len;
	iov[(*n)++] = (struct iovec){(uint8_t *)p + skip, len - skip};
	return 0;
}

static size_t size_of(const struct outgoing *o)
{
	return o->head_len + o->big_len + o->slab_len;
}

static void first_done(struct tcp *t)
{
	struct outgoing *o = t->queue[t->first];

	t->queue[t->first] = NULL;
	t->first = (t->first + 1) % QUEUE_MAX;
	t->count--;
	t->sent -= size_of(o);
	t->l.copied += o->slab_len; /* into the socket */
	if (o->slab)
		t->l.events->slab_sent(t->l.ctx, &t->l, o->cookie);
	free_outgoing(o);
}

/* Bytes, or negative errno. */
static ssize_t write_some(struct tcp *t, struct iovec *iov, int n)
{
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)n};
	ssize_t r;

	if (t->tls)
		return tls_send(t->tls, iov[0].iov_base, iov[0].iov_len);
	r = sendmsg(t->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	return r < 0 ? -errno : r;
}

/* The oldest messages as a vector; TLS takes one piece at a time. */
static int gather(const struct tcp *t, struct iovec *iov)
{
	unsigned many = t->tls ? 1 : t->count < BATCH_MAX ? t->count : BATCH_MAX;
	size_t skip = t->sent;
	int n = 0;

	for (unsigned i = 0; i < many; i++) {
		const struct outgoing *o = t->queue[(t->first + i) % QUEUE_MAX];

		skip = add_iov(iov, &n, o->head, o->head_len, skip);
		skip = add_iov(iov, &n, o->big, o->big_len, skip);
		skip = add_iov(iov, &n, o->slab, o->slab_len, skip);
	}
	return n;
}

/* Writes what the socket takes: 0, or why it is broken. */
static int write_out(struct tcp *t)
{
	t->gathered = 0;
	t->full = false;
	while (t->count && !t->dead && !t->securing && !t->connecting) {
		struct iovec iov[3 * BATCH_MAX];
		ssize_t n = write_some(t, iov, gather(t, iov));

		if (n == -EINTR)
			continue;
		if (n < 0) {
			t->full = true;
			return n == -EAGAIN ? 0 : (int)n;
		}
		for (t->sent += (size_t)n; t->count && t->sent >= size_of(t->queue[t->first]);)
			first_done(t);
	}
	return 0;
}

static void flush(struct tcp *t)
{
	int r = write_out(t);

	if (r < 0)
		tcp_closed(t, r, tcp_broken(t, "write failed"));
	if (!t->dead)
		tcp_set_io(t);
}

static void tcp_flush(struct link *l)
{
	struct tcp *t = to_tcp(l);

	if (t->gathered && !t->dead && !t->full)
		flush(t);
}

/* A sign of life doesn't wait for slabs: it is the next one after that which is being written. */
static void hurry(struct tcp *t)
{
	for (unsigned i = t->count - 1; i > 1; i--) {
		struct outgoing **a = &t->queue[(t->first + i) % QUEUE_MAX];
		struct outgoing **b = &t->queue[(t->first + i - 1) % QUEUE_MAX];
		struct outgoing *o = *a;

		*a = *b;
		*b = o;
	}
}

static int enqueue(struct tcp *t, struct outgoing *o, bool urgent)
{
	if (t->dead || t->count == QUEUE_MAX) {
		free_outgoing(o);
		return t->dead ? -ENOTCONN : -ENOBUFS;
	}
	t->queue[(t->first + t->count++) % QUEUE_MAX] = o;
	t->gathered += size_of(o);
	if (urgent)
		hurry(t);
	if (t->full || t->connecting || t->securing)
		return 0;
	if (!t->l.gather || t->gathered >= GATHER_MAX || t->count >= QUEUE_MAX / 2)
		flush(t);
	return 0;
}

static int tcp_send(struct link *l, enum mc_msg type, uint64_t epoch, const void *payload,
                    size_t len)
{
	struct outgoing *o = calloc(1, sizeof(*o));
	struct mc_wire_header h;

	if (!o)
		return -ENOMEM;
	mc_wire_header_init(&h, type, &l->term, epoch, (uint32_t)len);
	h.checksum = mc_wire_checksum(&h, payload, len, NULL, 0);
	memcpy(o->head, &h, sizeof(h));
	o->head_len = sizeof(h);
	if (len <= sizeof(o->head) - sizeof(h)) {
		if (len)
			memcpy(o->head + sizeof(h), payload, len);
		o->head_len += len;
	} else {
		o->big = malloc(len);
		if (!o->big) {
			free(o);
			return -ENOMEM;
		}
		memcpy(o->big, payload, len);
		o->big_len = len;
	}
	return enqueue(to_tcp(l), o, type == MC_MSG_PING || type == MC_MSG_PONG);
}

static int tcp_send_slab(struct link *l, uint64_t epoch, const struct mc_wire_slab *s,
                         const void *data, uint64_t cookie, uint64_t *checksum)
{
	struct outgoing *o = calloc(1, sizeof(*o));
	struct mc_wire_header h;

	if (!o)
		return -ENOMEM;
	mc_wire_header_init(&h, MC_MSG_SLAB, &l->term, epoch, (uint32_t)(sizeof(*s) + s->bytes));
	h.checksum = mc_wire_checksum(&h, s, sizeof(*s), data, s->bytes);
	*checksum = h.checksum;
	memcpy(o->head, &h, sizeof(h));
	memcpy(o->head + sizeof(h), s, sizeof(*s));
	o->head_len = sizeof(h) + sizeof(*s);
	o->slab = data;
	o->slab_len = s->bytes;
	o->cookie = cookie;
	return enqueue(to_tcp(l), o, false);
}

static bool tcp_has_room(const struct link *l)
{
	const struct tcp *t = (const struct tcp *)l;

	/* Some places are kept for control messages. */
	return !t->dead && t->count < QUEUE_MAX - 16;
}

static bool tcp_idle(const struct link *l)
{
	return ((const struct tcp *)l)->count == 0;
}

/* --- life ------------------------------------------------------------------------------ */

/* false: not yet, or closed. */
static bool secure(struct tcp *t)
{
	int r = tls_handshake(t->tls);

	if (r < 0) {
		tcp_closed(t, r, tcp_broken(t, "TLS failed"));
		return false;
	}
	if (r > 0) {
		t->securing = false;
		t->limit = sd_event_source_disable_unref(t->limit);
		flush(t);
	}
	tcp_set_io(t);
	return r > 0;
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	tcp_closed(userdata, -ETIMEDOUT, "no handshake within 5 s");
	return 0;
}

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct tcp *t = userdata;

	(void)s;
	if (t->connecting && revents & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
		int e = 0;
		socklen_t len = sizeof(e);

		(void)getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len);
		if (e) {
			tcp_closed(t, -e, "can't connect");
			return 0;
		}
		t->connecting = false;
	}
	if (t->securing) {
		/* What came behind the handshake may be deciphered: no event tells. */
		if (secure(t))
			tcp_receive(t);
		return 0;
	}
	if (revents & EPOLLOUT)
		flush(t);
	if (!t->dead && revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
		tcp_receive(t);
	return 0;
}

static struct link *tcp_free(struct link *l)
{
	struct tcp *t = to_tcp(l);

	if (l->gather)
		(void)write_out(t);
	t->dead = true;
	sd_event_source_disable_unref(t->io);
	sd_event_source_disable_unref(t->limit);
	sd_event_source_disable_unref(t->more);
	tls_free(t->tls);
	mc_closep(&t->fd);
	if (t->lent)
		t->l.events->give_back(t->l.ctx, &t->l, t->lent);
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		if (t->queue[i] && t->queue[i]->slab)
			t->l.events->slab_sent(t->l.ctx, &t->l, t->queue[i]->cookie);
		free_outgoing(t->queue[i]);
	}
	free(t->control);
	free(t);
	return NULL;
}

static const char *tcp_security(const struct link *l)
{
	const struct tcp *t = (const struct tcp *)l;

	return t->tls ? tls_peer(t->tls) : "none: plain TCP";
}

static const struct link_ops tcp_ops = {
        .send = tcp_send,
        .send_slab = tcp_send_slab,
        .has_room = tcp_has_room,
        .idle = tcp_idle,
        .resume = tcp_resume,
        .flush = tcp_flush,
        .security = tcp_security,
        .free = tcp_free,
};

static int add_tls(struct tcp *t, sd_event *event, const struct tls_creds *creds)
{
	int r = tls_new(&t->tls, creds, t->fd);

	if (r < 0)
		return r;
	t->securing = true;
	r = sd_event_add_time_relative(event, &t->limit, CLOCK_MONOTONIC, SECURE_US, 0, on_limit,
	                               t);
	if (r >= 0)
		r = sd_event_add_defer(event, &t->more, tcp_on_more, t);
	return r < 0 ? r : sd_event_source_set_enabled(t->more, SD_EVENT_OFF);
}

int tcp_socket(const struct link *l)
{
	return l->ops == &tcp_ops ? ((const struct tcp *)l)->fd : -1;
}

int tcp_link_new(struct link **ret, sd_event *event, int fd, const struct tls_creds *creds,
                 const struct link_events *events, void *ctx)
{
	struct tcp *t = calloc(1, sizeof(*t));
	struct sockaddr_storage a;
	socklen_t len = sizeof(a);
	int one = 1, unsent = UNSENT_MAX, r;

	if (!t)
		return -ENOMEM;
	t->control = malloc(MC_WIRE_HELLO_MAX);
	if (!t->control) {
		free(t);
		return -ENOMEM;
	}
	t->l = (struct link){.ops = &tcp_ops,
	                     .events = events,
	                     .ctx = ctx,
	                     .parallel = true,
	                     .large = true,
	                     .stalls = true};
	t->fd = fd;
	t->connecting = getpeername(fd, (struct sockaddr *)&a, &len) < 0;
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	/* A PING waits behind what the kernel has taken: over a slow link that must not be much. */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
	/* Whoever accepted it waited for a whole HELLO: a PING is shorter. */
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
	r = sd_event_add_io(event, &t->io, fd, t->connecting ? EPOLLOUT : EPOLLIN, on_io, t);
	if (r >= 0 && creds)
		r = add_tls(t, event, creds);
	if (r < 0) {
		t->fd = -1; /* stays the caller's */
		(void)tcp_free(&t->l);
		return r;
	}
	tcp_set_io(t);
	*ret = &t->l;
	return 0;
}
