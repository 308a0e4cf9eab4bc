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
#include "backend.h"
#include "tls.h"

#define QUEUE_MAX  64 /* messages on their way out */
#define INLINE_MAX (MC_WIRE_HEADER + sizeof(struct mc_wire_reason) + MC_WHY_MAX)
#define READS_MAX  64      /* reads before others get their turn */
#define SECURE_US  5000000 /* for everything before the link, with TLS */

/* One message on its way out: head (header and small payload), then a slab. */
struct outgoing {
	uint8_t head[INLINE_MAX];
	size_t head_len;
	uint8_t *big; /* HELLO: allocated */
	size_t big_len;
	const uint8_t *slab;
	size_t slab_len;
	uint64_t cookie;
};

struct tcp {
	struct link l;
	int fd;
	sd_event_source *io;
	bool connecting, securing, stalled, dead;
	struct tls *tls;               /* NULL: plain */
	sd_event_source *limit, *more; /* TLS: of the handshake; bytes are here already */
	/* out */
	struct outgoing *queue[QUEUE_MAX];
	unsigned first, count;
	size_t sent; /* bytes of the first message */
	/* in */
	struct mc_wire_header h;
	size_t have;      /* bytes of header + payload so far */
	uint8_t *control; /* payload of control messages; head of a slab */
	uint64_t lent;    /* slab that is being received */
	uint8_t *slab;
};

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

static void set_io(struct tcp *t)
{
	uint32_t ev = (t->stalled || t->connecting ? 0 : EPOLLIN) |
	              (t->connecting || t->count ? EPOLLOUT : 0);

	if (t->securing && !t->connecting)
		ev = tls_wants(t->tls);
	(void)sd_event_source_set_io_events(t->io, ev);
}

static void closed(struct tcp *t, int error, const char *why)
{
	if (t->dead)
		return;
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
static const char *broken(const struct tcp *t, const char *otherwise)
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

static void first_done(struct tcp *t)
{
	struct outgoing *o = t->queue[t->first];

	t->queue[t->first] = NULL;
	t->first = (t->first + 1) % QUEUE_MAX;
	t->count--;
	t->sent = 0;
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

/* Writes what the socket takes. */
static void flush(struct tcp *t)
{
	while (t->count && !t->dead && !t->securing) {
		struct outgoing *o = t->queue[t->first];
		size_t total = o->head_len + o->big_len + o->slab_len, skip = t->sent;
		struct iovec iov[3];
		ssize_t n;
		int k = 0;

		skip = add_iov(iov, &k, o->head, o->head_len, skip);
		skip = add_iov(iov, &k, o->big, o->big_len, skip);
		(void)add_iov(iov, &k, o->slab, o->slab_len, skip);
		n = write_some(t, iov, k);
		if (n < 0) {
			if (n != -EAGAIN && n != -EINTR)
				closed(t, (int)n, broken(t, "write failed"));
			break;
		}
		t->sent += (size_t)n;
		if (t->sent == total)
			first_done(t);
	}
	if (!t->dead)
		set_io(t);
}

static int enqueue(struct tcp *t, struct outgoing *o)
{
	if (t->dead || t->count == QUEUE_MAX) {
		free_outgoing(o);
		return t->dead ? -ENOTCONN : -ENOBUFS;
	}
	t->queue[(t->first + t->count++) % QUEUE_MAX] = o;
	if (!t->connecting && !t->securing && t->count == 1)
		flush(t);
	else
		set_io(t);
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
	return enqueue(to_tcp(l), o);
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
	return enqueue(to_tcp(l), o);
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

/* --- in -------------------------------------------------------------------------------- */

/* Where the next bytes go and how many are wanted; 0: the message is complete. */
static size_t next_piece(struct tcp *t, uint8_t **to)
{
	size_t fixed = MC_WIRE_HEADER, got;

	if (t->have < fixed) {
		*to = (uint8_t *)&t->h + t->have;
		return fixed - t->have;
	}
	got = t->have - fixed;
	if (t->h.type != MC_MSG_SLAB) {
		*to = t->control + got;
		return t->h.length - got;
	}
	if (got < sizeof(struct mc_wire_slab)) {
		*to = t->control + got;
		return sizeof(struct mc_wire_slab) - got;
	}
	*to = t->slab ? t->slab + (got - sizeof(struct mc_wire_slab)) : NULL;
	return t->h.length - got;
}

/* A slab's head is here: asks where its content goes. false: stalled or closed. */
static bool open_slab(struct tcp *t)
{
	struct mc_wire_slab s;

	memcpy(&s, t->control, sizeof(s));
	if (s.bytes != t->h.length - sizeof(s)) {
		closed(t, -EPROTO, "SLAB whose lengths contradict each other");
		return false;
	}
	t->lent = t->l.events->lend(t->l.ctx, &t->l, (void **)&t->slab);
	if (t->lent)
		return true;
	t->slab = NULL;
	t->stalled = true;
	set_io(t);
	return false;
}

static bool message_complete(struct tcp *t)
{
	bool is_slab = t->h.type == MC_MSG_SLAB;
	size_t head = is_slab ? sizeof(struct mc_wire_slab) : t->h.length;
	uint64_t sum = mc_wire_checksum(&t->h, t->control, head, t->slab, t->h.length - head);
	uint64_t slab = t->lent;
	int r;

	if (sum != t->h.checksum) {
		closed(t, -EBADMSG, "message with a wrong checksum");
		return false;
	}
	t->have = 0;
	t->slab = NULL;
	t->lent = 0;
	t->l.copied += t->h.length - head; /* out of the socket */
	r = t->l.events->message(t->l.ctx, &t->l, &t->h, t->control, slab);
	if (r < 0)
		closed(t, r, "message refused");
	return !t->dead;
}

/* After every read: checks what became complete. false: no more reading now. */
static bool advance(struct tcp *t)
{
	char why[128];
	int r;

	if (t->have == MC_WIRE_HEADER) {
		r = mc_wire_header_check(&t->h, &t->l.limits, why, sizeof(why));
		if (r < 0) {
			closed(t, r, why);
			return false;
		}
	}
	if (t->have >= MC_WIRE_HEADER && t->have == MC_WIRE_HEADER + t->h.length)
		return message_complete(t);
	if (t->h.type == MC_MSG_SLAB && !t->slab &&
	    t->have == MC_WIRE_HEADER + sizeof(struct mc_wire_slab))
		return open_slab(t);
	return true;
}

static ssize_t read_some(struct tcp *t, void *to, size_t want)
{
	ssize_t n;

	if (t->tls)
		return tls_recv(t->tls, to, want);
	n = recv(t->fd, to, want, MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

/* What TLS has deciphered already wakes nobody: it is read at the next turn of the loop. */
static void read_more(struct tcp *t)
{
	if (t->tls && !t->dead && !t->stalled && tls_pending(t->tls))
		(void)sd_event_source_set_enabled(t->more, SD_EVENT_ONESHOT);
}

static void receive(struct tcp *t)
{
	for (int i = 0; i < READS_MAX && !t->dead && !t->stalled; i++) {
		uint8_t *to;
		size_t want = next_piece(t, &to);
		ssize_t n = read_some(t, to, want);

		if (n < 0) {
			if (n != -EAGAIN && n != -EINTR)
				closed(t, (int)n, broken(t, "read failed"));
			return;
		}
		if (n == 0) {
			closed(t, -ECONNRESET,
			       t->have ? "peer closed in the middle of a message"
			               : "peer closed the connection");
			return;
		}
		t->have += (size_t)n;
		if (!advance(t))
			return;
	}
	read_more(t);
}

static int on_more(sd_event_source *s, void *userdata)
{
	(void)s;
	receive(userdata);
	return 0;
}

static void tcp_resume(struct link *l)
{
	struct tcp *t = to_tcp(l);

	if (!t->stalled || t->dead)
		return;
	t->stalled = false;
	if (open_slab(t)) {
		set_io(t);
		read_more(t);
	}
}

/* --- life ------------------------------------------------------------------------------ */

/* false: not yet, or closed. */
static bool secure(struct tcp *t)
{
	int r = tls_handshake(t->tls);

	if (r < 0) {
		closed(t, r, broken(t, "TLS failed"));
		return false;
	}
	if (r > 0) {
		t->securing = false;
		t->limit = sd_event_source_disable_unref(t->limit);
		flush(t);
	}
	set_io(t);
	return r > 0;
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	closed(userdata, -ETIMEDOUT, "no handshake within 5 s");
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
			closed(t, -e, "can't connect");
			return 0;
		}
		t->connecting = false;
	}
	if (t->securing) {
		/* What came behind the handshake may be deciphered: no event tells. */
		if (secure(t))
			receive(t);
		return 0;
	}
	if (revents & EPOLLOUT)
		flush(t);
	if (!t->dead && revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
		receive(t);
	return 0;
}

static struct link *tcp_free(struct link *l)
{
	struct tcp *t = to_tcp(l);

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
		r = sd_event_add_defer(event, &t->more, on_more, t);
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
	int one = 1, r;

	if (!t)
		return -ENOMEM;
	t->control = malloc(MC_WIRE_HELLO_MAX);
	if (!t->control) {
		free(t);
		return -ENOMEM;
	}
	t->l = (struct link){.ops = &tcp_ops, .events = events, .ctx = ctx, .parallel = true};
	t->fd = fd;
	t->connecting = getpeername(fd, (struct sockaddr *)&a, &len) < 0;
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
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
	set_io(t);
	*ret = &t->l;
	return 0;
}
