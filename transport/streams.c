/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "streams.h"

#include <errno.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"

#define RETRY_NS   (500 * MC_NS_PER_MS)
#define REFUSED_NS (5 * MC_NS_PER_S) /* the backup has no room for it */

int streams_index(const struct transport *t, const struct link *l)
{
	if (l && l == t->link)
		return 0;
	for (int i = 0; l && i < STREAMS_EXTRA; i++)
		if (t->s.stream[i].l == l)
			return i + 1;
	return -1;
}

bool streams_any(const struct transport *t)
{
	for (int i = 0; i < STREAMS_EXTRA; i++)
		if (t->s.stream[i].l)
			return true;
	return false;
}

uint64_t streams_heard(const struct transport *t)
{
	uint64_t at = 0;

	for (int i = 0; i < STREAMS_EXTRA; i++)
		if (t->s.stream[i].l && t->s.stream[i].up)
			at = mc_max_u64(at, t->s.stream[i].l->heard);
	return at;
}

unsigned streams_count(const struct transport *t)
{
	unsigned n = 0;

	for (int i = 0; i < STREAMS_EXTRA; i++)
		n += t->s.stream[i].l && t->s.stream[i].up;
	return n;
}

void streams_end(struct transport *t)
{
	t->s.ended = true;
	t->s.retry_at = 0;
}

static void end_one(struct stream *s)
{
	s->l = link_free(s->l);
	memset(s, 0, sizeof(*s));
}

void streams_reap(struct transport *t)
{
	for (int i = 0; i < STREAMS_EXTRA; i++)
		if (t->s.stream[i].l && (t->s.ended || t->s.stream[i].dead))
			end_one(&t->s.stream[i]);
	t->s.ended = false;
}

void streams_resume(struct transport *t)
{
	for (int i = 0; i < STREAMS_EXTRA; i++)
		if (t->s.stream[i].l && t->s.stream[i].up && !t->s.stream[i].dead)
			link_resume(t->s.stream[i].l);
}

/* The end of one that wasn't in order: what it carried is unknown. */
static void lost(struct transport *t, struct stream *s, int error, const char *why)
{
	s->dead = true;
	if (s->up && !s->bye && t->link && !t->s.ended)
		t->link->events->closed(t, t->link, error, why);
	t->s.retry_at = mc_now_ns() + (s->up ? RETRY_NS : REFUSED_NS);
}

static void on_closed(void *ctx, struct link *l, int error, const char *why)
{
	struct transport *t = ctx;
	int i = streams_index(t, l);

	if (i > 0)
		lost(t, &t->s.stream[i - 1], error, why);
}

static void on_give_back(void *ctx, struct link *l, uint64_t slab)
{
	(void)l;
	receive_give_back(ctx, slab);
}

/* --- primary ---------------------------------------------------------------------------- */

static int primary_message(void *ctx, struct link *l, const struct mc_wire_header *h,
                           const void *payload, uint64_t slab)
{
	struct transport *t = ctx;
	int i = streams_index(t, l);

	(void)payload;
	(void)slab;
	if (i <= 0 || t->s.ended || h->type != MC_MSG_HELLO || t->s.stream[i - 1].up)
		return -EPROTO;
	t->s.stream[i - 1].up = true;
	l->limits.have_term = 1;
	l->limits.term = t->a->config->term;
	mc_debug("stream %d carries slabs", i);
	return 0;
}

static uint64_t no_lend(void *ctx, struct link *l, void **data)
{
	(void)ctx;
	(void)l;
	(void)data;
	return 0;
}

static const struct link_events primary_stream = {
        .message = primary_message,
        .lend = no_lend,
        .give_back = on_give_back,
        .slab_sent = send_slab_sent,
        .closed = on_closed,
};

static void make_one(struct transport *t, unsigned index)
{
	static struct mc_hello hello; /* 18 KiB: too large for the stack, one thread */
	struct stream *s = &t->s.stream[index];
	int r = connect_stream(t, &s->l, &primary_stream);

	if (r < 0) {
		t->s.retry_at = mc_now_ns() + RETRY_NS;
		return;
	}
	s->l->limits = t->link->limits;
	s->l->limits.have_term = 0;
	s->l->term = t->a->config->term;
	transport_fill_hello(t, &hello);
	hello.h.link_id = t->s.link_id;
	hello.h.stream = index + 1;
	(void)transport_send_hello(t, s->l, &hello);
}

/* Everything that it carries leaves, then BYE, then it is closed. */
static void retire(struct stream *s)
{
	s->leaving = true;
	if (!s->up) {
		s->dead = true;
		return;
	}
	if (!link_idle(s->l))
		return;
	if (s->bye)
		s->dead = true;
	else if (link_send(s->l, MC_MSG_BYE, 0, NULL, 0) == 0)
		s->bye = true;
}

static unsigned wanted(const struct transport *t)
{
	uint32_t n = atomic_load(&t->a->config->streams);

	return t->link->parallel ? (unsigned)mc_min_u64(n ? n - 1 : 0, STREAMS_EXTRA) : 0;
}

void streams_step(struct transport *t)
{
	unsigned n = wanted(t);
	bool making = false;

	for (unsigned i = 0; i < STREAMS_EXTRA; i++) {
		struct stream *s = &t->s.stream[i];

		if (s->l && (i >= n || s->leaving))
			retire(s);
		making |= s->l && !s->up;
	}
	/* One at a time: the backup looks at one HELLO at a time. */
	for (unsigned i = 0; !making && i < n && mc_now_ns() >= t->s.retry_at; i++)
		if (!t->s.stream[i].l) {
			make_one(t, i);
			making = true;
		}
}

struct link *streams_pick(struct transport *t)
{
	for (unsigned k = 0; k <= STREAMS_EXTRA; k++) {
		unsigned i = t->s.turn++ % (STREAMS_EXTRA + 1);
		struct stream *s = i ? &t->s.stream[i - 1] : NULL;

		if (!i && link_has_room(t->link))
			return t->link;
		if (s && s->l && s->up && !s->leaving && !s->dead && link_has_room(s->l))
			return s->l;
	}
	return NULL;
}

/* --- backup ----------------------------------------------------------------------------- */

static int backup_message(void *ctx, struct link *l, const struct mc_wire_header *h,
                          const void *payload, uint64_t slab)
{
	struct transport *t = ctx;
	int i = streams_index(t, l), r = -EPROTO;
	struct mc_wire_slab s;

	if (i <= 0 || t->s.ended || !t->up || (h->type != MC_MSG_SLAB && h->type != MC_MSG_BYE) ||
	    t->s.stream[i - 1].bye) {
		if (slab)
			receive_give_back(t, slab);
		return -EPROTO;
	}
	atomic_store_explicit(&t->a->control->last_rx, mc_now_ns(), memory_order_release);
	if (h->type == MC_MSG_BYE) {
		t->s.stream[i - 1].bye = true;
		return 0;
	}
	memcpy(&s, payload, sizeof(s));
	r = order_slab(t, (unsigned)i, h, &s, slab);
	if (r < 0 && h->epoch && t->link)
		(void)transport_send_reason(t->link, MC_MSG_NACK, h->epoch, (uint32_t)-r,
		                            strerror(-r));
	return r;
}

static uint64_t backup_lend(void *ctx, struct link *l, void **data)
{
	struct transport *t = ctx;
	int i = streams_index(t, l);

	return i > 0 && t->up && !t->s.ended ? receive_lend(t, (unsigned)i, data) : 0;
}

static void no_slab_sent(void *ctx, struct link *l, uint64_t cookie)
{
	(void)ctx;
	(void)l;
	(void)cookie;
}

static const struct link_events backup_stream = {
        .message = backup_message,
        .lend = backup_lend,
        .give_back = on_give_back,
        .slab_sent = no_slab_sent,
        .closed = on_closed,
};

int streams_accept(struct transport *t, struct link *l, const struct mc_wire_header *h,
                   const struct mc_hello *th)
{
	static struct mc_hello hello; /* as above */
	struct stream *s;

	if (!t->link || !t->up || t->s.ended || !t->link->parallel ||
	    th->h.stream > STREAMS_EXTRA || th->h.link_id != t->s.link_id ||
	    h->term != t->link->term.number || h->term_id != t->link->term.id)
		return -ESTALE;
	/* A small pool has no room for what several streams bring early. */
	if (t->a->slabs.max / 16 < th->h.stream)
		return -ENOSPC;
	s = &t->s.stream[th->h.stream - 1];
	if (s->l && !s->bye)
		return -EBUSY;
	end_one(s);
	t->o.last[th->h.stream].seen = false;
	t->b.pending = NULL;
	s->l = l;
	s->up = true;
	l->events = &backup_stream;
	l->limits = t->link->limits;
	l->term = t->link->term;
	transport_fill_hello(t, &hello);
	hello.h.link_id = t->s.link_id;
	hello.h.stream = th->h.stream;
	return transport_send_hello(t, l, &hello);
}
