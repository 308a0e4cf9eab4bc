/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Out: control messages are composed in registered buffers and sent in order; PING and PONG go
 * ahead of what waits for credits.  A slab is written, straight from where it lies, into a slab
 * that the peer advertised, in chunks of which a few are on their way at a time: so that a PING is
 * never behind more than those.  Its SLAB message follows on the same queue pair, which delivers
 * in order.
 */
#include <errno.h>
#include <string.h>

#include "../ipc/util.h"
#include "rdma.h"

static int take_buffer(struct rdma *r, bool large)
{
	int i = large ? SEND_LARGE : 0;

	while (!large && i < SENDS && r->out[i].used)
		i++;
	if (i > SEND_LARGE || (!large && i == SENDS) || r->out[i].used)
		return -ENOBUFS;
	r->out[i] = (struct out){.used = true};
	r->used++;
	return i;
}

static void drop_buffer(struct rdma *r, unsigned i)
{
	r->out[i].used = false;
	r->used--;
}

/* Head of the message in buffer @i; what changes until it is posted comes in post(). */
static uint8_t *begin(struct rdma *r, unsigned i, enum mc_rdma_kind kind, uint16_t count)
{
	struct mc_rdma_head h = {.magic = MC_RDMA_MAGIC, .kind = (uint16_t)kind, .count = count};
	uint8_t *p = memory_send_buffer(r, i);

	memcpy(p, &h, sizeof(h));
	r->out[i].len = sizeof(h);
	return p + sizeof(h);
}

static void append(struct rdma *r, unsigned i, const void *data, size_t len)
{
	if (len)
		memcpy(memory_send_buffer(r, i) + r->out[i].len, data, len);
	r->out[i].len += (uint32_t)len;
}

/* True while the peer has a receive for one more message; the last ones are for credits. */
static bool may_send(const struct rdma *r, bool credit)
{
	return r->sent - r->peer_consumed < MC_RDMA_RECVS - (credit ? 0 : MC_RDMA_RESERVED);
}

static void post(struct rdma *r, unsigned i)
{
	struct out *o = &r->out[i];
	uint8_t *p = memory_send_buffer(r, i);
	struct ibv_sge sge = {.addr = (uintptr_t)p, .length = o->len, .lkey = r->area_mr->lkey};
	struct ibv_send_wr wr = {
	        .wr_id = WR_SEND | i, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND};
	struct mc_rdma_head h;
	int e;

	memcpy(&h, p, sizeof(h));
	h.consumed = r->consumed;
	h.slot = o->slab ? o->credit.slot : 0;
	memcpy(p, &h, sizeof(h));
	e = verbs_post_send(r->id->qp, &wr);
	if (e < 0) {
		r->broken = true;
		rdma_closed(r, e, "a message can't be posted");
		return;
	}
	r->told = r->consumed;
	r->sent++;
	r->sends++;
	if (o->slab)
		r->slots_held &= ~(1U << o->credit.slot);
}

/* --- slabs ----------------------------------------------------------------------------- */

static bool take_credit(struct rdma *r, struct out *o)
{
	if (!r->credits) {
		r->l.credit_waits += !o->waited;
		o->waited = true;
		return false;
	}
	o->credit = r->credit[r->credit_first];
	r->credit_first = (r->credit_first + 1) % MC_RDMA_SLOTS;
	r->credits--;
	o->have_credit = true;
	return true;
}

static int post_chunk(struct rdma *r, struct out *o)
{
	uint32_t len = (uint32_t)mc_min_u64(o->bytes - o->written, CHUNK);
	struct ibv_sge sge = {
	        .addr = (uintptr_t)o->data + o->written, .length = len, .lkey = o->lkey};
	struct ibv_send_wr wr = {
	        .wr_id = WR_WRITE,
	        .sg_list = &sge,
	        .num_sge = 1,
	        .opcode = IBV_WR_RDMA_WRITE,
	        .wr.rdma = {.remote_addr = o->credit.addr + o->written, .rkey = o->credit.rkey},
	};
	int e = verbs_post_send(r->id->qp, &wr);

	if (e < 0)
		return e;
	o->written += len;
	r->chunks++;
	return 0;
}

/* True once all of the slab's writes are posted. */
static bool push_slab(struct rdma *r, struct out *o)
{
	char why[320];
	int e = 0;

	if (!o->have_credit && !take_credit(r, o))
		return false;
	if (!o->registered) {
		e = memory_lkey(r, o->data, &o->lkey);
		if (e < 0) {
			r->l.try_other = true;
			rdma_closed(r, e, "%s", memory_why(e, why, sizeof(why)));
			return false;
		}
		o->registered = true;
	}
	while (e == 0 && o->written < o->bytes && r->chunks < CHUNKS)
		e = post_chunk(r, o);
	if (e < 0) {
		r->broken = true;
		rdma_closed(r, e, "a slab can't be posted");
	}
	return e == 0 && o->written == o->bytes;
}

void send_pump(struct rdma *r)
{
	while (r->state == RDMA_UP && r->nurgent && may_send(r, false)) {
		unsigned i = r->urgent[0];

		memmove(r->urgent, r->urgent + 1, --r->nurgent);
		post(r, i);
	}
	while (r->state == RDMA_UP && r->queued) {
		unsigned i = r->queue[r->first];
		struct out *o = &r->out[i];

		if ((o->slab && !push_slab(r, o)) || !may_send(r, false))
			break;
		r->first = (r->first + 1) % MC_ARRAY_SIZE(r->queue);
		r->queued--;
		post(r, i);
	}
}

static int enqueue(struct rdma *r, unsigned i, bool urgent)
{
	if (urgent)
		r->urgent[r->nurgent++] = (uint8_t)i;
	else
		r->queue[(r->first + r->queued++) % MC_ARRAY_SIZE(r->queue)] = (uint8_t)i;
	send_pump(r);
	return 0;
}

int rdma_send(struct link *l, enum mc_msg type, uint64_t epoch, const void *payload, size_t len)
{
	struct rdma *r = (struct rdma *)l;
	struct mc_wire_header h;
	int i;

	if (r->state == RDMA_DEAD)
		return -ENOTCONN;
	if (type != MC_MSG_HELLO &&
	    len > MC_RDMA_SMALL - sizeof(struct mc_rdma_head) - MC_WIRE_HEADER)
		return -EMSGSIZE;
	i = take_buffer(r, type == MC_MSG_HELLO);
	if (i < 0)
		return i;
	mc_wire_header_init(&h, type, &l->term, epoch, (uint32_t)len);
	h.checksum = mc_wire_checksum(&h, payload, len, NULL, 0);
	(void)begin(r, (unsigned)i, MC_RDMA_MESSAGE, 0);
	append(r, (unsigned)i, &h, sizeof(h));
	append(r, (unsigned)i, payload, len);
	return enqueue(r, (unsigned)i, type == MC_MSG_PING || type == MC_MSG_PONG);
}

int rdma_send_slab(struct link *l, uint64_t epoch, const struct mc_wire_slab *s, const void *data,
                   uint64_t cookie, uint64_t *checksum)
{
	struct rdma *r = (struct rdma *)l;
	struct mc_wire_header h;
	struct out *o;
	int i;

	if (r->state == RDMA_DEAD)
		return -ENOTCONN;
	i = take_buffer(r, false);
	if (i < 0)
		return i;
	mc_wire_header_init(&h, MC_MSG_SLAB, &l->term, epoch, (uint32_t)(sizeof(*s) + s->bytes));
	h.checksum = mc_wire_checksum(&h, s, sizeof(*s), data, s->bytes);
	*checksum = h.checksum;
	(void)begin(r, (unsigned)i, MC_RDMA_SLAB, 0);
	append(r, (unsigned)i, &h, sizeof(h));
	append(r, (unsigned)i, s, sizeof(*s));
	o = &r->out[i];
	o->slab = true;
	o->data = data;
	o->bytes = (uint32_t)s->bytes;
	o->cookie = cookie;
	return enqueue(r, (unsigned)i, false);
}

/* --- credits --------------------------------------------------------------------------- */

int send_take_credits(struct rdma *r, const struct mc_rdma_credit *c, unsigned n)
{
	for (unsigned k = 0; k < n; k++) {
		if (c[k].slot >= MC_RDMA_SLOTS || r->slots_held >> c[k].slot & 1)
			return -EPROTO;
		r->slots_held |= 1U << c[k].slot;
		r->credit[(r->credit_first + r->credits++) % MC_RDMA_SLOTS] = c[k];
	}
	return 0;
}

bool send_may_credit(const struct rdma *r)
{
	return r->state == RDMA_UP && r->used < SENDS && may_send(r, true);
}

int send_credits(struct rdma *r, const struct mc_rdma_credit *c, unsigned n)
{
	int i = send_may_credit(r) ? take_buffer(r, false) : -ENOBUFS;

	if (i < 0)
		return i;
	(void)begin(r, (unsigned)i, MC_RDMA_CREDIT, (uint16_t)n);
	append(r, (unsigned)i, c, n * sizeof(*c));
	post(r, (unsigned)i); /* before all that is queued */
	return 0;
}

/* --- the end --------------------------------------------------------------------------- */

void send_completed(struct rdma *r, unsigned i)
{
	struct out *o = &r->out[i];

	if (o->slab) {
		memory_done(r, o->data);
		r->l.events->slab_sent(r->l.ctx, &r->l, o->cookie);
	}
	drop_buffer(r, i);
}

/* Slabs go back to their owner, whatever became of them. */
void send_free(struct rdma *r)
{
	for (unsigned i = 0; i < SENDS; i++) {
		struct out *o = &r->out[i];

		if (!o->used || !o->slab)
			continue;
		o->slab = false;
		r->l.events->slab_sent(r->l.ctx, &r->l, o->cookie);
	}
}
