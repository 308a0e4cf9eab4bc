/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The backup's end: accepts a primary, receives, acknowledges what restore committed. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "streams.h"

static uint64_t commit_word(const struct transport *t)
{
	return atomic_load_explicit(&t->a->control->commit, memory_order_acquire);
}

static void on_closed(void *ctx, struct link *l, int error, const char *why)
{
	struct transport *t = ctx;

	if (l == t->link) {
		streams_end(t);
		mc_warn("link from the primary: %s: %s; %s", why,
		        strerror(error < 0 ? -error : error), transport_remedy(error));
		receive_reset(t);
		transport_bury(t, l);
		atomic_store(&t->a->control->link_closed, mc_now_ns());
		transport_set_link(t, false);
		return;
	}
	if (error == -EKEYREJECTED) {
		char text[MC_WHY_MAX];

		snprintf(text, sizeof(text), "a primary is turned away: %.400s", why);
		transport_tell_refusal(t, text);
	} else if (!t->b.asked || l != t->b.pending) {
		mc_warn("a connection is turned away: %s: %s; %s", why,
		        strerror(error < 0 ? -error : error), transport_remedy(error));
	}
	transport_bury(t, l);
}

int backup_connection(struct transport *t, int fd)
{
	const char *no_entry = NULL;
	struct link *l;
	int r;

	if (t->tls_bad)
		no_entry = "this standby's TLS credentials can't be used; its log says why";
	else if (!t->tls && !t->a->config->insecure && !tcp_is_loopback(fd))
		no_entry =
		        "the link would not be encrypted; give both ends tls-dir or psk-file, or "
		        "both insecure if their network is trusted";
	r = tcp_link_new(&l, t->w->event, fd, t->tls, &backup_events, t);
	if (r < 0)
		return r;
	t->b.no_entry = no_entry;
	t->b.asked = false;
	backup_link(t, l);
	(void)mc_fault(MC_FAULT_RECEIVER_CONNECTION);
	return 0;
}

void backup_link(struct transport *t, struct link *l)
{
	t->b.pending = link_free(t->b.pending);
	t->b.pending = l;
	l->limits = (struct mc_wire_limits){.slab_size = t->a->slabs.unit, .from = MC_SIDE_PRIMARY};
	l->term = t->a->config->term;
}

static int refuse(struct transport *t, struct link *l, enum mc_reason reason, const char *text)
{
	mc_warn("a primary is refused: %s", text);
	mc_worker_event(t->w, "refused", 0, "a primary is refused: %s", text);
	(void)transport_send_reason(l, MC_MSG_END, 0, reason, text);
	return -EPERM;
}

/* The old primary comes back: it must learn that its guest runs here. */
static int tell_taken(struct transport *t, struct link *l)
{
	static struct mc_hello hello; /* 18 KiB: too large for the stack, one thread */

	l->term = t->a->config->takeover_term;
	transport_fill_hello(t, &hello);
	hello.h.taken_over = 1;
	hello.h.last_committed = mc_commit_epoch(commit_word(t));
	(void)transport_send_hello(t, l, &hello);
	return -ESHUTDOWN;
}

static bool known_primary(const struct transport *t, const struct mc_wire_header *h,
                          const struct mc_hello *th)
{
	const struct mc_control *c = t->a->control;

	return atomic_load(&c->peer_term_number) == h->term &&
	       atomic_load(&c->peer_term_id) == h->term_id &&
	       atomic_load(&c->peer_instance[0]) == th->h.instance[0] &&
	       atomic_load(&c->peer_instance[1]) == th->h.instance[1];
}

/* Two that raised the same number without knowing of each other: neither can be believed. */
static bool same_number(const struct mc_wire_header *h, uint64_t number, uint64_t id)
{
	return number && h->term == number && h->term_id != id;
}

static int refuse_conflict(struct transport *t, struct link *l, const struct mc_wire_header *h)
{
	char text[256];

	snprintf(text, sizeof(text),
	         "term %llu was raised twice, with different ids: something else protects or ran "
	         "this guest; find out which one is right, then start a new standby",
	         (unsigned long long)h->term);
	mc_worker_event(t->w, "conflict", 0, "%s", text);
	return refuse(t, l, MC_REASON_CONFLICT, text);
}

static int check_term(struct transport *t, struct link *l, const struct mc_wire_header *h)
{
	const struct mc_term *known = &t->a->config->term;
	const struct mc_control *c = t->a->control;
	uint64_t peer = atomic_load(&c->peer_term_number);
	char text[256];

	if (same_number(h, known->number, known->id) ||
	    same_number(h, peer, atomic_load(&c->peer_term_id)))
		return refuse_conflict(t, l, h);
	if (h->term > known->number && h->term >= peer)
		return 0;
	snprintf(text, sizeof(text),
	         "term %llu of the primary isn't above term %llu, which this host knows; the guest "
	         "was protected or taken over since: see where it runs, then protect it anew there",
	         (unsigned long long)h->term, (unsigned long long)mc_max_u64(known->number, peer));
	return refuse(t, l, MC_REASON_CONFLICT, text);
}

static int adopt_primary(struct transport *t, struct link *l, const struct mc_wire_header *h,
                         const struct mc_hello *th)
{
	struct mc_control *c = t->a->control;
	int r = check_term(t, l, h);

	if (r < 0)
		return r;
	atomic_store(&c->peer_term_number, h->term);
	atomic_store(&c->peer_term_id, h->term_id);
	atomic_store(&c->peer_instance[0], th->h.instance[0]);
	atomic_store(&c->peer_instance[1], th->h.instance[1]);
	atomic_store(&c->sync_received, 0);
	atomic_store(&c->peer_end, 0); /* of an earlier primary, whose first copy broke off */
	atomic_store(&c->peer_strikes, th->h.strikes);
	t->b.acked = 0;
	return 0;
}

/* A primary that can't compare fills an empty RAM: restore empties it, and is asked again. */
static bool must_empty(const struct transport *t, const struct link *l, const struct mc_hello *th)
{
	struct mc_control *c = t->a->control;
	bool compares = l->large && th->h.features & MC_FEATURE_HASHES;

	atomic_store(&c->want_empty, !compares);
	if (compares || !atomic_load(&c->ram_kept))
		return false;
	mc_arena_ring(t->a, MC_ROLE_RESTORE);
	return true;
}

/* May this HELLO in?  0, or negative: turned away (and told why). */
static int check_hello(struct transport *t, struct link *l, const struct mc_wire_header *h,
                       const struct mc_hello *th)
{
	enum mc_state s = transport_state(t);
	char why[MC_WHY_MAX];

	if (th->h.side != MC_SIDE_PRIMARY || strcmp(th->h.guest, t->a->config->guest) != 0)
		return refuse(t, l, MC_REASON_REFUSED,
		              "HELLO of another guest, or not a primary; are names and peer "
		              "addresses right on both hosts?");
	if (commit_word(t) & MC_COMMIT_TAKEN)
		return tell_taken(t, l);
	if (s == MC_STATE_ENDED || s == MC_STATE_STOPPED)
		return refuse(t, l, MC_REASON_STANDBY_LOST,
		              "the standby has ended; start a new one and run mcctl standby");
	if (!atomic_load(&t->a->control->standby_ready))
		return -EAGAIN; /* the primary tries again */
	if (transport_compare(t, th, why, sizeof(why)))
		return refuse(t, l, MC_REASON_REFUSED, why);
	if (s == MC_STATE_PROTECTED && known_primary(t, h, th))
		return 0;
	if (s == MC_STATE_PROTECTED)
		return same_number(h, atomic_load(&t->a->control->peer_term_number),
		                   atomic_load(&t->a->control->peer_term_id))
		               ? refuse_conflict(t, l, h)
		               : refuse(t, l, MC_REASON_REFUSED,
		                        "the standby is armed for another primary or instance; "
		                        "unprotect there, or start a new standby");
	if (s == MC_STATE_SYNCING)
		return -EAGAIN; /* restore clears up after the broken first copy */
	if (s != MC_STATE_WAITING || must_empty(t, l, th))
		return -EAGAIN;
	return adopt_primary(t, l, h, th);
}

static void answer_hello(struct transport *t, struct link *l, uint32_t resync)
{
	static struct mc_hello hello; /* as above */

	transport_fill_hello(t, &hello);
	hello.h.last_committed = mc_commit_epoch(commit_word(t));
	hello.h.resync = resync;
	(void)transport_send_hello(t, l, &hello);
}

/* A primary that lost its standby asks, every other second, for a new one: no word in our log. */
static int answer_question(struct transport *t, struct link *l, const struct mc_hello *th)
{
	static struct mc_hello hello; /* as above */
	enum mc_state s = transport_state(t);
	char why[MC_WHY_MAX] = "no standby waits";

	if (th->h.side != MC_SIDE_PRIMARY || strcmp(th->h.guest, t->a->config->guest) != 0)
		return -EPROTO;
	if (commit_word(t) & MC_COMMIT_TAKEN)
		return tell_taken(t, l);
	if (s == MC_STATE_WAITING && atomic_load(&t->a->control->standby_ready) &&
	    !transport_compare(t, th, why, sizeof(why))) {
		transport_fill_hello(t, &hello);
		hello.h.resync = 1;
		(void)transport_send_hello(t, l, &hello);
	} else {
		(void)transport_send_reason(l, MC_MSG_END, 0, MC_REASON_STANDBY_LOST, why);
	}
	return -ESHUTDOWN;
}

static int take_hello(struct transport *t, struct link *l, const struct mc_wire_header *h,
                      const void *payload)
{
	static struct mc_hello hello; /* as above */
	char why[128];
	uint32_t resync = 0;
	int r;

	if (l != t->b.pending)
		return -EPROTO;
	if (t->b.no_entry)
		return refuse(t, l, MC_REASON_REFUSED, t->b.no_entry);
	r = mc_wire_hello_parse(payload, h->length, &hello, why, sizeof(why));
	if (r < 0)
		return refuse(t, l, MC_REASON_REFUSED, why);
	if (hello.h.stream)
		return streams_accept(t, l, h, &hello);
	if (hello.h.ask) {
		t->b.asked = true;
		return answer_question(t, l, &hello);
	}
	r = check_hello(t, l, h, &hello);
	if (r < 0)
		return r;
	/* The same primary over a new connection: the old one is dead, even if we haven't heard. */
	if (t->link) {
		receive_reset(t);
		t->link = link_free(t->link);
	}
	streams_end(t);
	streams_reap(t);
	t->s.link_id = hello.h.link_id;
	t->b.pending = NULL;
	t->link = l;
	l->term = (struct mc_term){.number = h->term, .id = h->term_id};
	l->limits.have_term = 1;
	l->limits.term = l->term;
	if (mc_fault(MC_FAULT_RECEIVER_HELLO) < 0)
		return -EIO;
	/* What was refused before is sent again, and judged again. */
	t->b.nacks = atomic_load(&t->a->control->nacks);
	hashes_reset(t);
	if (transport_state(t) == MC_STATE_WAITING)
		resync = atomic_load(&t->a->control->ram_kept) ? 2 : 1;
	answer_hello(t, l, resync);
	t->up = false;
	transport_note_security(t, l);
	transport_set_link(t, true);
	if (resync)
		(void)mc_state_move(t->a->control, MC_SIDE_BACKUP, MC_ROLE_TRANSPORT,
		                    MC_STATE_WAITING, MC_STATE_SYNCING, MC_REASON_STARTED);
	mc_arena_ring_all(t->a);
	return 0;
}

static int take_end(struct transport *t, const struct mc_wire_header *h, const void *payload)
{
	char text[MC_WHY_MAX];
	uint32_t reason;
	int r = mc_wire_reason_parse(payload, h->length, &reason, text);

	if (r < 0 || !reason || reason >= MC_REASONS)
		return -EPROTO;
	t->b.end_acked = false;
	atomic_store_explicit(&t->a->control->peer_end, reason, memory_order_release);
	(void)mc_fault(MC_FAULT_RECEIVER_END);
	mc_arena_ring(t->a, MC_ROLE_RESTORE);
	mc_info("the primary ended the protection: %s", text);
	return 0;
}

/* A PING is answered only by one that may still be outlived. */
static int take_ping(struct transport *t, struct link *l, const void *payload, size_t len)
{
	if (commit_word(t) & MC_COMMIT_TAKEN)
		return -ESHUTDOWN;
	(void)mc_fault(MC_FAULT_RECEIVER_PING);
	return link_send(l, MC_MSG_PONG, 0, payload, len);
}

static int dispatch(struct transport *t, struct link *l, const struct mc_wire_header *h,
                    const void *payload, uint64_t slab)
{
	struct mc_wire_slab s;

	switch (h->type) {
	case MC_MSG_SLAB:
		memcpy(&s, payload, sizeof(s));
		return order_slab(t, 0, h, &s, slab);
	case MC_MSG_START:
	case MC_MSG_COMMIT:
	case MC_MSG_ABORT:
		return order_control(t, h, payload);
	case MC_MSG_END:
		return take_end(t, h, payload);
	case MC_MSG_HASH_ASK:
		return l->large ? hashes_asked(t, h, payload) : -EPROTO;
	case MC_MSG_PING:
		return take_ping(t, l, payload, h->length);
	case MC_MSG_PONG:
	case MC_MSG_END_ACK:
		return 0;
	default:
		return -EPROTO;
	}
}

static int on_message(void *ctx, struct link *l, const struct mc_wire_header *h,
                      const void *payload, uint64_t slab)
{
	struct transport *t = ctx;
	int r;

	if (slab && (l != t->link || !t->up))
		receive_give_back(t, slab);
	if (h->type == MC_MSG_HELLO)
		return take_hello(t, l, h, payload);
	if (h->type == MC_MSG_RDMA_ASK && l == t->b.pending) {
		t->b.asked = true;
		return connect_asked(t, l, payload);
	}
	if (h->type == MC_MSG_TLS && l == t->b.pending)
		return refuse(t, l, MC_REASON_REFUSED,
		              t->b.no_entry ? t->b.no_entry
		                            : "this standby was started without TLS; give both "
		                              "ends tls-dir or psk-file");
	if (l != t->link || !t->up)
		return -EPROTO;
	atomic_store_explicit(&t->a->control->last_rx, mc_now_ns(), memory_order_release);
	r = dispatch(t, l, h, payload, slab);
	if (r < 0 && h->epoch)
		(void)transport_send_reason(l, MC_MSG_NACK, h->epoch, (uint32_t)-r, strerror(-r));
	return r;
}

static uint64_t on_lend(void *ctx, struct link *l, void **data)
{
	struct transport *t = ctx;

	return l == t->link && t->up ? receive_lend(t, 0, data) : 0;
}

static void on_give_back(void *ctx, struct link *l, uint64_t slab)
{
	(void)l;
	receive_give_back(ctx, slab);
}

static void on_slab_sent(void *ctx, struct link *l, uint64_t cookie)
{
	(void)ctx;
	(void)l;
	(void)cookie;
}

/* END was followed; by one that may have died before it could say more than its state. */
static bool ended(const struct transport *t)
{
	return atomic_load(&t->a->control->disarm_done) ||
	       (transport_state(t) == MC_STATE_ENDED && commit_word(t) & MC_COMMIT_DISARMED);
}

/* Tells the primary what restore committed or refused. */
static int send_answers(struct transport *t)
{
	struct mc_control *c = t->a->control;
	uint64_t w = commit_word(t), nack, nacks;
	int did = 0;

	if (mc_commit_epoch(w) > t->b.acked && !(w & MC_COMMIT_TAKEN) && link_has_room(t->link)) {
		t->b.acked = mc_commit_epoch(w);
		if (mc_fault(MC_FAULT_RECEIVER_ACK) < 0)
			return -EIO;
		(void)link_send(t->link, MC_MSG_ACK, t->b.acked, NULL, 0);
		(void)mc_fault(MC_FAULT_RECEIVER_ACKED);
		did = 1;
	}
	nacks = atomic_load_explicit(&c->nacks, memory_order_acquire);
	nack = atomic_load(&c->nack_epoch);
	if (t->link && nacks != t->b.nacks && nack > mc_commit_epoch(w)) {
		t->b.nacks = nacks;
		receive_refused(t, nack, -EBADMSG);
		(void)transport_send_reason(t->link, MC_MSG_NACK, nack == UINT64_MAX ? 1 : nack,
		                            EBADMSG, "the epoch could not be verified");
		did = 1;
	}
	if (t->link && ended(t) && !t->b.end_acked) {
		t->b.end_acked = true;
		(void)link_send(t->link, MC_MSG_END_ACK, 0, NULL, 0);
		(void)mc_fault(MC_FAULT_RECEIVER_END_ACK);
		did = 1;
	}
	return did;
}

/* The standby died under us: the primary may go on unprotected at once. */
static int tell_standby_lost(struct transport *t)
{
	if (t->b.told_taken || transport_state(t) != MC_STATE_STOPPED ||
	    !(commit_word(t) & MC_COMMIT_DISARMED))
		return 0;
	t->b.told_taken = true;
	(void)transport_send_reason(t->link, MC_MSG_END, 0, MC_REASON_STANDBY_LOST,
	                            "the standby's QEMU ended");
	return 1;
}

int backup_work(struct transport *t)
{
	int r;

	if (!t->link || !t->up)
		return 0;
	if (commit_word(t) & MC_COMMIT_TAKEN) {
		/* Whoever still speaks here must connect again and be told. */
		receive_reset(t);
		streams_end(t);
		t->link = link_free(t->link);
		transport_set_link(t, false);
		return 0;
	}
	r = send_answers(t);
	if (r == 0 && t->link)
		r = hashes_answer(t);
	if (r == 0 && t->link)
		r = tell_standby_lost(t);
	if (r == 0 && t->link)
		link_resume(t->link);
	if (r == 0 && t->link)
		streams_resume(t);
	return r;
}

int backup_start(struct transport *t)
{
	hashes_reset(t);
	return receive_recover(t);
}

const struct link_events backup_events = {
        .message = on_message,
        .lend = on_lend,
        .give_back = on_give_back,
        .slab_sent = on_slab_sent,
        .closed = on_closed,
};
