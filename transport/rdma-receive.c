/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * In: messages, and the slabs that the peer may write to.  Remote access to a slab begins with its
 * registration and ends, before anything in it is looked at, with its deregistration.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "rdma.h"

static int post(struct rdma *r, unsigned i)
{
	uint32_t len;
	uint8_t *p = memory_recv_buffer(r, i, &len);
	struct ibv_sge sge = {.addr = (uintptr_t)p, .length = len, .lkey = r->area_mr->lkey};
	struct ibv_recv_wr wr = {.wr_id = WR_RECV | i, .sg_list = &sge, .num_sge = 1};

	return verbs_post_recv(r->id->qp, &wr);
}

int receive_post_all(struct rdma *r)
{
	int e = 0;

	for (unsigned i = 0; e == 0 && i < MC_RDMA_RECVS; i++)
		e = post(r, i);
	return e;
}

static void protocol_error(struct rdma *r, const char *why)
{
	rdma_closed(r, -EPROTO, "%s", why);
}

/* --- lending --------------------------------------------------------------------------- */

/* Lends one slab in @slot. 1; 0: there is none; negative errno: the link was closed. */
static int lend(struct rdma *r, unsigned slot, struct mc_rdma_credit *c)
{
	struct slot *s = &r->slot[slot];
	char why[320];
	void *data;
	uint64_t slab = r->l.events->lend(r->l.ctx, &r->l, &data);
	int e;

	if (!slab)
		return 0;
	e = memory_register(r, data, r->l.limits.slab_size,
	                    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, &s->mr);
	if (e < 0) {
		r->l.events->give_back(r->l.ctx, &r->l, slab);
		rdma_closed(r, e, "%s", memory_why(e, why, sizeof(why)));
		return e;
	}
	s->slab = slab;
	s->data = data;
	*c = (struct mc_rdma_credit){.addr = (uintptr_t)data, .rkey = s->mr->rkey, .slot = slot};
	return 1;
}

void receive_tend(struct rdma *r)
{
	struct mc_rdma_credit c[MC_RDMA_SLOTS];
	unsigned n = 0;

	if (!send_may_credit(r))
		return;
	for (unsigned i = 0; i < MC_RDMA_SLOTS; i++) {
		int e = r->slot[i].slab ? 2 : lend(r, i, &c[n]);

		if (e < 0)
			return;
		if (e == 0)
			break;
		n += e == 1;
	}
	if (n || r->consumed - r->told >= MC_RDMA_RECVS / 2)
		(void)send_credits(r, c, n);
}

/* Ends remote access to the slab of a slot and empties the slot. */
static uint64_t take_slab(struct rdma *r, struct slot *s)
{
	uint64_t slab = s->slab;

	memory_deregister(r, &s->mr);
	*s = (struct slot){0};
	return slab;
}

void receive_free(struct rdma *r)
{
	for (unsigned i = 0; i < MC_RDMA_SLOTS; i++)
		if (r->slot[i].slab)
			r->l.events->give_back(r->l.ctx, &r->l, take_slab(r, &r->slot[i]));
}

/* --- messages -------------------------------------------------------------------------- */

static bool check_header(struct rdma *r, const struct mc_wire_header *h)
{
	char why[128];
	int e = mc_wire_header_check(h, &r->l.limits, why, sizeof(why));

	if (e < 0)
		rdma_closed(r, e, "%s", why);
	return e == 0;
}

static void deliver(struct rdma *r, const struct mc_wire_header *h, const uint8_t *payload,
                    uint64_t slab)
{
	int e = r->l.events->message(r->l.ctx, &r->l, h, payload, slab);

	if (e < 0)
		rdma_closed(r, e, "what the peer sent is refused");
}

static void take_message(struct rdma *r, const uint8_t *p, uint32_t len)
{
	struct mc_wire_header h;

	if (len < sizeof(h)) {
		protocol_error(r, "message of the wrong length");
		return;
	}
	memcpy(&h, p, sizeof(h));
	if (!check_header(r, &h))
		return;
	if (h.type == MC_MSG_SLAB || h.length != len - sizeof(h)) {
		protocol_error(r, "message of the wrong length");
		return;
	}
	if (mc_wire_checksum(&h, p + sizeof(h), h.length, NULL, 0) != h.checksum) {
		rdma_closed(r, -EBADMSG, "message with a wrong checksum");
		return;
	}
	deliver(r, &h, p + sizeof(h), 0);
}

static void take_slab_message(struct rdma *r, const uint8_t *p, uint32_t len, uint32_t number)
{
	struct slot *slot = number < MC_RDMA_SLOTS ? &r->slot[number] : NULL;
	struct mc_wire_header h;
	struct mc_wire_slab s;
	const uint8_t *data;
	uint64_t slab;

	if (len != sizeof(h) + sizeof(s)) {
		protocol_error(r, "SLAB of the wrong length");
		return;
	}
	memcpy(&h, p, sizeof(h));
	memcpy(&s, p + sizeof(h), sizeof(s));
	if (!check_header(r, &h))
		return;
	if (h.type != MC_MSG_SLAB || s.bytes != h.length - sizeof(s)) {
		protocol_error(r, "SLAB whose lengths contradict each other");
		return;
	}
	if (!slot || !slot->slab) {
		protocol_error(r, "SLAB in a slot that it was not given");
		return;
	}
	data = slot->data;
	slab = take_slab(r, slot); /* from here on the peer can't change it */
	if (mc_wire_checksum(&h, &s, sizeof(s), data, s.bytes) != h.checksum) {
		r->l.events->give_back(r->l.ctx, &r->l, slab);
		rdma_closed(r, -EBADMSG, "message with a wrong checksum");
		return;
	}
	deliver(r, &h, (const uint8_t *)&s, slab);
}

static void take_credit_message(struct rdma *r, const uint8_t *p, uint32_t len, uint16_t count)
{
	struct mc_rdma_credit c[MC_RDMA_SLOTS];

	if (count > MC_RDMA_SLOTS || len != count * sizeof(c[0])) {
		protocol_error(r, "CREDIT of the wrong length");
		return;
	}
	memcpy(c, p, len);
	if (send_take_credits(r, c, count) < 0)
		protocol_error(r, "CREDIT for a slot that is in use");
}

static void take(struct rdma *r, const uint8_t *p, uint32_t len)
{
	struct mc_rdma_head h;

	if (len < sizeof(h)) {
		protocol_error(r, "message of the wrong length");
		return;
	}
	memcpy(&h, p, sizeof(h));
	if (h.magic != MC_RDMA_MAGIC || (h.count && h.kind != MC_RDMA_CREDIT) ||
	    (h.slot && h.kind != MC_RDMA_SLAB) ||
	    h.consumed - r->peer_consumed > r->sent - r->peer_consumed) {
		protocol_error(r, "message with a field out of range");
		return;
	}
	r->peer_consumed = h.consumed;
	p += sizeof(h);
	len -= sizeof(h);
	if (h.kind == MC_RDMA_MESSAGE)
		take_message(r, p, len);
	else if (h.kind == MC_RDMA_SLAB)
		take_slab_message(r, p, len, h.slot);
	else if (h.kind == MC_RDMA_CREDIT)
		take_credit_message(r, p, len, h.count);
	else
		protocol_error(r, "message of an unknown kind");
}

void receive_completed(struct rdma *r, unsigned i, uint32_t len)
{
	uint32_t max;
	const uint8_t *p = memory_recv_buffer(r, i, &max);
	int e;

	if (r->state == RDMA_CONNECTING)
		rdma_up(r); /* a message may overtake the news of the connection */
	if (r->state != RDMA_UP)
		return;
	take(r, p, len < max ? len : max);
	if (r->state != RDMA_UP)
		return;
	e = post(r, i);
	if (e < 0) {
		r->broken = true;
		rdma_closed(r, e, "a receive can't be posted");
		return;
	}
	r->consumed++;
}
