/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Backup: back into order what several streams brought.  START, COMMIT and ABORT come on the main
 * link, in order; the SLABs between them come on any, in sequence within each.  What comes too
 * early waits here; receive.c sees the one order that a single link would have given.  Without
 * streams nothing may come early.
 */
#include <errno.h>
#include <string.h>

#include "../ipc/util.h"
#include "streams.h"

/* Slabs that may wait; a stream ahead of the others gets no more memory then. */
static uint32_t held_limit(const struct transport *t)
{
	return (uint32_t)mc_min_u64(ORDER_HELD - MC_STREAMS_MAX, t->a->slabs.max / 8);
}

static bool before(uint64_t epoch, uint32_t seq, uint64_t than_epoch, uint32_t than_seq)
{
	return epoch != than_epoch ? epoch < than_epoch : seq < than_seq;
}

/* The slab that is missing first. */
static void next_wanted(const struct transport *t, uint64_t *epoch, uint32_t *seq)
{
	*epoch = t->b.current ? t->b.current : t->o.floor;
	*seq = t->b.current ? t->b.next_seq
	       : t->o.floor ? UINT32_MAX
	                    : (uint32_t)atomic_load(&t->a->control->sync_received);
}

bool order_ahead(const struct transport *t, unsigned stream)
{
	const struct order_place *p = &t->o.last[stream];
	uint64_t epoch;
	uint32_t seq;

	next_wanted(t, &epoch, &seq);
	return t->o.held && p->seen && !before(p->epoch, p->seq, epoch, seq) &&
	       t->o.held >= held_limit(t);
}

/* A slab that waits is lent to no link any more: receive_lend() counts what is on its way. */
static void hold(struct transport *t, const struct order_slab *x)
{
	t->o.slab[t->o.held++] = *x;
	t->b.lent--;
}

static struct order_slab take(struct transport *t, unsigned i)
{
	struct order_slab x = t->o.slab[i];

	t->o.slab[i] = t->o.slab[--t->o.held];
	t->b.lent++;
	return x;
}

static void drop_held(struct transport *t, unsigned i)
{
	receive_give_back(t, take(t, i).slab);
}

void order_reset(struct transport *t)
{
	while (t->o.held)
		drop_held(t, 0);
	memset(&t->o, 0, sizeof(t->o));
}

/* Slabs of epochs that are over, or void, have no place any more. */
static void raise_floor(struct transport *t, uint64_t epoch)
{
	t->o.floor = mc_max_u64(t->o.floor, epoch);
	for (unsigned i = t->o.held; i-- > 0;)
		if (t->o.slab[i].h.epoch && t->o.slab[i].h.epoch <= t->o.floor)
			drop_held(t, i);
}

static bool is_next(const struct transport *t, const struct mc_wire_header *h,
                    const struct mc_wire_slab *s)
{
	if (h->epoch)
		return h->epoch == t->b.current && s->seq == t->b.next_seq;
	return s->seq == (uint32_t)atomic_load(&t->a->control->sync_received);
}

/* Hands on a waiting slab whose turn it is. 1, 0, negative errno. */
static int slab_step(struct transport *t)
{
	for (unsigned i = 0; i < t->o.held; i++) {
		struct order_slab x;
		int r;

		if (!is_next(t, &t->o.slab[i].h, &t->o.slab[i].s))
			continue;
		x = take(t, i);
		r = receive_slab(t, &x.h, &x.s, x.slab);
		return r < 0 ? r : 1;
	}
	return 0;
}

static void pop(struct transport *t)
{
	memmove(t->o.ctl, t->o.ctl + 1, --t->o.nctl * sizeof(t->o.ctl[0]));
}

/* START waits for the epoch before it, and for the first copy. */
static int start_step(struct transport *t, const struct order_ctl *c)
{
	struct mc_wire_start s = c->u.start;

	if (t->b.current || (!s.base && s.sync_slabs > atomic_load(&t->a->control->sync_received)))
		return 0;
	pop(t);
	return receive_start(t, &c->h, &s) ?: 1;
}

static int commit_step(struct transport *t, const struct order_ctl *c)
{
	int r;

	if (c->h.epoch <= t->o.floor) { /* refused meanwhile */
		pop(t);
		return 1;
	}
	if (c->h.epoch == t->b.current && t->b.next_seq < t->b.slabs && streams_any(t))
		return 0;
	pop(t);
	r = receive_commit(t, &c->h, &c->u.commit);
	if (r == 0 && streams_any(t))
		raise_floor(t, c->h.epoch);
	return r < 0 ? r : 1;
}

/* Does the first of what the main link said, if it is its turn. 1, 0, negative errno. */
static int ctl_step(struct transport *t)
{
	struct order_ctl c;

	if (!t->o.nctl)
		return 0;
	c = t->o.ctl[0];
	switch (c.h.type) {
	case MC_MSG_START:
		return start_step(t, &c);
	case MC_MSG_COMMIT:
		return commit_step(t, &c);
	default: /* ABORT */
		pop(t);
		receive_abort(t, c.h.epoch);
		if (streams_any(t))
			raise_floor(t, c.h.epoch);
		return 1;
	}
}

static int run(struct transport *t)
{
	int r;

	do {
		r = slab_step(t);
		if (r == 0)
			r = ctl_step(t);
	} while (r > 0);
	return r;
}

int order_control(struct transport *t, const struct mc_wire_header *h, const void *payload)
{
	struct order_ctl *c = &t->o.ctl[t->o.nctl];

	if (t->o.nctl == ORDER_CTL)
		return -EPROTO;
	*c = (struct order_ctl){.h = *h};
	memcpy(&c->u, payload, mc_min_u64(h->length, sizeof(c->u)));
	t->o.nctl++;
	return run(t);
}

int order_slab(struct transport *t, unsigned stream, const struct mc_wire_header *h,
               const struct mc_wire_slab *s, mc_handle slab)
{
	struct order_place *p = &t->o.last[stream];
	int r;

	/* Within a stream the order is the sender's. */
	if (p->seen && !before(p->epoch, p->seq, h->epoch, s->seq)) {
		receive_give_back(t, slab);
		return -EPROTO;
	}
	*p = (struct order_place){.epoch = h->epoch, .seq = s->seq, .seen = true};
	if (h->epoch && h->epoch <= t->o.floor) {
		receive_give_back(t, slab);
		return 0;
	}
	if (!streams_any(t) || is_next(t, h, s)) {
		r = receive_slab(t, h, s, slab);
		return r < 0 ? r : run(t);
	}
	if (t->o.held == ORDER_HELD) {
		receive_give_back(t, slab);
		return -EPROTO;
	}
	hold(t, &(struct order_slab){.h = *h, .s = *s, .slab = slab});
	return 0;
}
