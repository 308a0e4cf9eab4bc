/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Page hashes on their way (ipc/hashes.h): the primary's questions, which capture put into its
 * arena's box, and the backup's answers, which restore put into its own.
 *
 * What a link carried is void with it.  The primary answers for a peer that can't be asked: it
 * can't be told.  The backup drops what comes too late from restore.
 */
#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "transport.h"

/* --- primary --------------------------------------------------------------------------- */

int hashes_hello(struct transport *t, const struct mc_wire_hello *theirs)
{
	t->p.peer_hashes = t->link->large && theirs->features & MC_FEATURE_HASHES;
	atomic_store(&t->a->control->peer_hashes, t->p.peer_hashes);
	if (theirs->resync == 2 && !t->p.peer_hashes)
		return -EPROTO;
	if (theirs->resync)
		atomic_store(&t->a->control->peer_keeps, theirs->resync == 2);
	return 0;
}

static void answer_none(struct transport *t)
{
	if (mc_hash_drain(t->a->hashes))
		mc_arena_ring(t->a, MC_ROLE_CAPTURE);
	t->p.hashes_sent = atomic_load(&t->a->hashes->answered);
}

int hashes_ask(struct transport *t)
{
	const struct mc_hash_slot *s;
	int did = 0;

	if (!t->up || !t->p.peer_hashes) {
		answer_none(t);
		return 0;
	}
	while (link_has_room(t->link) && (s = mc_hash_question(t->a->hashes, t->p.hashes_sent))) {
		struct mc_wire_hash_ask ask = {
		        .seed = s->q.seed, .first = s->q.first, .pages = (uint32_t)s->q.pages};

		t->p.hashes_sent++;
		if (link_send(t->link, MC_MSG_HASH_ASK, s->q.epoch, &ask, sizeof(ask)) < 0)
			return 0; /* the link's end makes it void */
		(void)mc_fault(MC_FAULT_TRANSPORT_HASH_ASK);
		did = 1;
	}
	return did;
}

int hashes_take(struct transport *t, const struct mc_wire_header *h, const void *payload)
{
	static struct mc_hash_slot in; /* 16 KiB: too large for the stack, one thread */
	uint64_t n = atomic_load(&t->a->hashes->answered);
	struct mc_hash_slot *s;

	if (n == t->p.hashes_sent || mc_hashes_parse(payload, h->length, &in) < 0)
		return -EPROTO;
	s = mc_hash_question(t->a->hashes, n);
	if (!s || s->q.epoch != h->epoch || s->q.first != in.q.first ||
	    (in.known && s->q.pages != in.q.pages))
		return -EPROTO;
	/* A standby that is being filled by us must know what it holds. */
	if (!in.known && !h->epoch)
		return -EPROTO;
	memcpy(s->hash, in.hash, in.q.pages * sizeof(in.hash[0]));
	(void)mc_fault(MC_FAULT_TRANSPORT_HASHES);
	mc_hash_answered(t->a->hashes, in.known);
	mc_metric_add(mc_worker_metrics(t->w), MC_M_HASH_BYTES, h->length);
	mc_arena_ring(t->a, MC_ROLE_CAPTURE);
	return 0;
}

/* --- backup ---------------------------------------------------------------------------- */

void hashes_reset(struct transport *t)
{
	mc_hash_asker_init(&t->b.hashes, t->a->hashes);
}

int hashes_asked(struct transport *t, const struct mc_wire_header *h, const void *payload)
{
	struct mc_wire_hash_ask ask;
	struct mc_hash_question q;
	int r;

	memcpy(&ask, payload, sizeof(ask));
	if (ask.reserved || !ask.pages || ask.pages > MC_HASH_PAGES || ask.first % 64 ||
	    ask.first >= t->a->bitmap_words * 64 || ask.pages > t->a->bitmap_words * 64 - ask.first)
		return -EPROTO;
	q = (struct mc_hash_question){
	        .seed = ask.seed, .epoch = h->epoch, .first = ask.first, .pages = ask.pages};
	/* Never from a primary that keeps to half of the slots, with one link after the other. */
	r = mc_hash_ask(&t->b.hashes, &q);
	if (r == 0)
		(void)mc_fault(MC_FAULT_RECEIVER_HASH_ASK);
	mc_arena_ring(t->a, MC_ROLE_RESTORE);
	return r;
}

int hashes_answer(struct transport *t)
{
	static uint8_t buf[MC_WIRE_HASHES_MAX]; /* as above */
	struct mc_hash_slot *s;
	int did = 0;

	while (t->link && link_has_room(t->link) && (s = mc_hash_answer(&t->b.hashes))) {
		size_t len = mc_hashes_pack(s, buf);
		uint64_t epoch = s->q.epoch;

		mc_hash_taken(&t->b.hashes);
		mc_metric_add(mc_worker_metrics(t->w), MC_M_HASH_BYTES, len);
		(void)link_send(t->link, MC_MSG_HASHES, epoch, buf, len);
		(void)mc_fault(MC_FAULT_RECEIVER_HASHES);
		did = 1;
	}
	return did;
}
