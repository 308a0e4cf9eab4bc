/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The primary's end: connects, greets, hands each message to what knows it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "streams.h"

#define RETRY_FAST_US 10000
#define RETRY_SLOW_US 500000
#define REACH_NS      (5 * MC_NS_PER_S) /* first contact */

bool primary_armed(const struct transport *t)
{
	return atomic_load(&t->a->control->first_sent) ||
	       atomic_load(&t->a->journal.shm->last_committed);
}

int primary_move(struct transport *t, enum mc_state from, enum mc_state to, enum mc_reason why)
{
	int r = mc_state_move(t->a->control, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT, from, to, why);

	if (r == 0)
		mc_arena_ring_all(t->a);
	return r;
}

void primary_move_any(struct transport *t, enum mc_state to, enum mc_reason why)
{
	static const enum mc_state from[] = {MC_STATE_SYNCING, MC_STATE_PROTECTED, MC_STATE_HELD,
	                                     MC_STATE_DEGRADED};

	for (size_t i = 0; i < MC_ARRAY_SIZE(from); i++)
		if (primary_move(t, from[i], to, why) == 0)
			return;
}

static void retry_in(struct transport *t, uint64_t us)
{
	(void)sd_event_source_set_time_relative(t->p.retry, us);
	(void)sd_event_source_set_enabled(t->p.retry, SD_EVENT_ONESHOT);
}

static bool finished(const struct transport *t)
{
	enum mc_state s = transport_state(t);

	return s != MC_STATE_SYNCING && s != MC_STATE_PROTECTED && s != MC_STATE_HELD;
}

void primary_stop_syncing(struct transport *t, enum mc_reason why, const char *text)
{
	mc_control_refuse(t->a->control, "%s", text);
	mc_err("%s", text);
	(void)primary_move(t, MC_STATE_SYNCING, MC_STATE_STOPPED, why);
}

static void on_closed(void *ctx, struct link *l, int error, const char *why)
{
	struct transport *t = ctx;
	struct out_epoch *e = NULL;
	char text[MC_WHY_MAX];
	uint64_t now = mc_now_ns();
	bool was_up = t->up;
	size_t n;

	connect_ended(t, l, error, why);
	streams_end(t);
	transport_bury(t, l);
	transport_set_link(t, false);
	while ((e = collect_oldest(t, e ? e->epoch : 0))) {
		e->started = e->done = false;
		e->next = 0;
		e->bytes = e->digest = 0;
	}
	if (!t->p.attempt_began)
		t->p.attempt_began = now;
	if (finished(t))
		return;
	if (error == -EKEYREJECTED)
		snprintf(text, sizeof(text), "link to %.90s: %.400s", t->a->config->peer, why);
	else
		snprintf(text, sizeof(text), "link to %s: %s: %s; %s", t->a->config->peer, why,
		         strerror(error < 0 ? -error : error), transport_remedy(error));
	if (error == -EKEYREJECTED && (primary_armed(t) || t->p.greeted))
		transport_tell_refusal(t, text);
	else if (error == -EKEYREJECTED && transport_state(t) == MC_STATE_SYNCING) {
		mc_worker_event(t->w, "refused", 0, "%s", text);
		primary_stop_syncing(t, MC_REASON_REFUSED, text);
		return;
	}
	if (transport_state(t) == MC_STATE_SYNCING && !primary_armed(t) &&
	    (now - t->p.attempt_began > REACH_NS ||
	     (again_begun(t, false) && !again_pending(t) && !again_begin(t)))) {
		n = strlen(text);
		snprintf(text + n, sizeof(text) - n,
		         " (the guest runs on, unprotected; mcctl protect tries again)");
		primary_stop_syncing(t, MC_REASON_PEER_LOST, text);
		return;
	}
	mc_log(was_up ? LOG_WARNING : LOG_DEBUG, "%s (it is tried again)", text);
	retry_in(t, now - t->p.attempt_began < transport_failure_ns(t) ? RETRY_FAST_US
	                                                               : RETRY_SLOW_US);
}

void primary_connect(struct transport *t)
{
	static struct mc_hello hello; /* 18 KiB: too large for the stack, one thread */
	int r = connect_start(t);

	if (!t->p.attempt_began)
		t->p.attempt_began = mc_now_ns();
	if (r == -EINVAL) {
		primary_stop_syncing(t, MC_REASON_REFUSED,
		                     "the peer must be given as ADDRESS:PORT or [V6ADDRESS]:PORT");
		return;
	}
	if (r < 0) {
		retry_in(t, RETRY_SLOW_US);
		return;
	}
	t->link->limits =
	        (struct mc_wire_limits){.slab_size = t->a->slabs.unit, .from = MC_SIDE_BACKUP};
	t->link->term = t->a->config->term;
	transport_fill_hello(t, &hello);
	while (getrandom(&t->s.link_id, sizeof(t->s.link_id), 0) != sizeof(t->s.link_id))
		;
	hello.h.link_id = t->s.link_id;
	hello.h.ask = ask_wanted(t);
	(void)transport_send_hello(t, t->link, &hello);
	(void)mc_fault(MC_FAULT_TRANSPORT_CONNECTED);
}

static int on_retry(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct transport *t = userdata;

	(void)s;
	(void)usec;
	/* A question that nobody answers is asked again. */
	if (ask_wanted(t)) {
		t->link = link_free(t->link);
		primary_connect(t);
		retry_in(t, ASK_US);
		return 0;
	}
	if (t->link || finished(t))
		return 0;
	if (again_pending(t))
		retry_in(t, RETRY_FAST_US);
	else
		primary_connect(t);
	return 0;
}

/* --- answers --------------------------------------------------------------------------- */

static int taken_over(struct transport *t, uint64_t term)
{
	atomic_store(&t->a->control->peer_taken, 1);
	mc_err("the backup took over under term %llu: this guest is stopped and its output "
	       "discarded; end this QEMU, the guest runs on the other host",
	       (unsigned long long)term);
	mc_worker_event(t->w, "taken-over", 0, "the backup took over under term %llu",
	                (unsigned long long)term);
	primary_move_any(t, MC_STATE_STOPPED, MC_REASON_TAKEN_OVER);
	return -ESHUTDOWN;
}

static int conflict(struct transport *t, uint64_t term)
{
	char text[MC_WHY_MAX];

	snprintf(text, sizeof(text),
	         "terms conflict: the backup knows term %llu of this guest, ours is %llu; "
	         "something else protects or ran it; find out which one is right (mcctl status on "
	         "all hosts), then protect that one anew",
	         (unsigned long long)term, (unsigned long long)t->a->config->term.number);
	mc_control_refuse(t->a->control, "%s", text);
	mc_err("%s", text);
	mc_worker_event(t->w, "conflict", 0, "%s", text);
	atomic_store(&t->a->control->peer_taken, primary_armed(t));
	primary_move_any(t, MC_STATE_STOPPED, MC_REASON_CONFLICT);
	return -ESHUTDOWN;
}

static bool same_instance(const struct transport *t, const uint64_t id[2])
{
	const struct mc_control *c = t->a->control;

	return atomic_load(&c->peer_instance[0]) == id[0] &&
	       atomic_load(&c->peer_instance[1]) == id[1];
}

static int accept_hello(struct transport *t, const struct mc_wire_header *h,
                        const struct mc_hello *th)
{
	struct mc_control *c = t->a->control;
	const struct mc_term *ours = &t->a->config->term;

	if (th->h.taken_over)
		return taken_over(t, h->term);
	if (h->term > ours->number || (h->term == ours->number && h->term_id != ours->id))
		return conflict(t, h->term);
	if (!atomic_load(&c->peer_instance[0]) && !atomic_load(&c->peer_instance[1])) {
		atomic_store(&c->peer_instance[0], th->h.instance[0]);
		atomic_store(&c->peer_instance[1], th->h.instance[1]);
	} else if (!same_instance(t, th->h.instance)) {
		return ending_standby_replaced(t);
	} else if (th->h.resync && (again_begun(t, th->h.resync == 2) || primary_armed(t))) {
		/* It is sure of it: nothing was committed there, and nothing will be. */
		return again_begin(t) ? -ESHUTDOWN : ending_standby_replaced(t);
	}
	if (hashes_hello(t, &th->h) < 0)
		return -EPROTO;
	atomic_store(&c->peer_max_epoch, th->h.max_epoch);
	t->link->limits.have_term = 1;
	t->link->limits.term = *ours;
	t->link->gather = true;
	t->p.attempt_began = 0;
	if (t->p.greeted)
		mc_metric_add(mc_worker_metrics(t->w), MC_M_RECONNECTS, 1);
	t->p.greeted = true;
	t->p.refused_logged = false;
	t->p.end_sent = false;
	transport_note_security(t, t->link);
	/* A lease counts from a PING, but first contact needs one to begin with. */
	transport_set_link(t, true);
	transport_start_clock(t);
	(void)mc_fault(MC_FAULT_TRANSPORT_ACCEPTED);
	if (th->h.last_committed && acks_take(t, th->h.last_committed) < 0)
		return -EPROTO;
	/* A peer that is back is no reason to end a hold for overload. */
	if (mc_state_reason(atomic_load(&c->state)) != MC_REASON_OVERLOAD && !handover_stands(t))
		(void)primary_move(t, MC_STATE_HELD, MC_STATE_PROTECTED, MC_REASON_PEER_BACK);
	return 0;
}

static int take_hello(struct transport *t, const struct mc_wire_header *h, const void *payload)
{
	static struct mc_hello hello; /* as above */
	char why[128];
	int r = t->up ? -EPROTO : mc_wire_hello_parse(payload, h->length, &hello, why, sizeof(why));

	if (r < 0 || hello.h.side != MC_SIDE_BACKUP || mc_fault(MC_FAULT_TRANSPORT_HELLO) < 0)
		return -EPROTO;
	if (ask_wanted(t))
		return ask_answered(t, &hello);
	return accept_hello(t, h, &hello);
}

static int on_message(void *ctx, struct link *l, const struct mc_wire_header *h,
                      const void *payload, uint64_t slab)
{
	struct transport *t = ctx;
	struct mc_wire_ping ping;

	(void)slab; /* only a primary sends SLAB */
	atomic_store_explicit(&t->a->control->last_rx, mc_now_ns(), memory_order_release);
	if (h->type == MC_MSG_HELLO)
		return take_hello(t, h, payload);
	if (h->type == MC_MSG_END)
		return ending_take_end(t, h, payload);
	if (!t->up)
		return -EPROTO;
	switch (h->type) {
	case MC_MSG_ACK:
		return acks_take(t, h->epoch);
	case MC_MSG_NACK:
		return acks_take_nack(t, h->epoch, payload, h->length);
	case MC_MSG_HASHES:
		return hashes_take(t, h, payload);
	case MC_MSG_PING:
		return link_send(l, MC_MSG_PONG, 0, payload, h->length);
	case MC_MSG_PONG:
		memcpy(&ping, payload, sizeof(ping));
		acks_take_pong(t, &ping);
		return 0;
	case MC_MSG_END_ACK:
		return ending_take_end_ack(t);
	default:
		return -EPROTO;
	}
}

int primary_work(struct transport *t)
{
	int r = collect_step(t);

	if (r == 0)
		r = acks_apply(t);
	if (r == 0)
		r = hashes_ask(t);
	if (r)
		return r;
	if (again_held(t))
		return 1;
	if (ask_wanted(t))
		return ask_step(t);
	if (finished(t))
		return 0;
	if (!t->link) {
		if (!t->p.attempt_began && !t->tls_bad && atomic_load(&t->a->control->attached) &&
		    !again_pending(t))
			primary_connect(t);
		return ending_unlinked(t);
	}
	link_resume(t->link);
	if (!t->link || !t->up)
		return 0;
	streams_step(t);
	r = send_sync(t);
	if (r == 0)
		r = send_epochs(t);
	if (r == 0 && t->link && t->up)
		r = ending_send(t);
	return r;
}

int primary_start(struct transport *t)
{
	bool sync = again_after_death(t);
	int r = collect_recover(t);

	if (r >= 0)
		r = sd_event_add_time_relative(t->w->event, &t->p.retry, CLOCK_MONOTONIC, 0, 100,
		                               on_retry, t);
	if (r >= 0)
		r = sd_event_source_set_enabled(t->p.retry, SD_EVENT_OFF);
	if (r >= 0)
		r = sd_event_add_time_relative(t->w->event, &t->p.bandwidth, CLOCK_MONOTONIC, 0,
		                               100, send_on_bandwidth, t);
	if (r >= 0)
		r = sd_event_source_set_enabled(t->p.bandwidth, SD_EVENT_OFF);
	if (r < 0)
		return mc_log_errno(r, "can't start; mcctl restart tries again");
	if (!sync)
		t->p.sync_next = atomic_load(&t->a->control->sync_slabs);
	return 0;
}

/* Nothing is lent for a peer that may not send slabs. */
static uint64_t on_lend(void *ctx, struct link *l, void **data)
{
	(void)ctx;
	(void)l;
	(void)data;
	return 0;
}

static void on_give_back(void *ctx, struct link *l, uint64_t slab)
{
	(void)ctx;
	(void)l;
	(void)slab;
}

const struct link_events primary_events = {
        .message = on_message,
        .lend = on_lend,
        .give_back = on_give_back,
        .slab_sent = send_slab_sent,
        .closed = on_closed,
};
