/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a protection ends on the primary: by our END, by the peer's, or with its standby. */
#include <errno.h>
#include <stdio.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "transport.h"

/* The end that was asked for, or that the guest brought about, and that the backup knows of. */
static void end_as_wanted(struct transport *t)
{
	struct mc_control *c = t->a->control;
	uint64_t end = atomic_load(&c->guest_end), want = atomic_load(&c->want_end);

	if (end == MC_REASON_HOTPLUG || end == MC_REASON_OVERLOAD || end == MC_REASON_TRACKING ||
	    (!end && want == MC_REASON_ERROR))
		primary_move_any(t, MC_STATE_DEGRADED, (enum mc_reason)(end ? end : want));
	else
		primary_move_any(t, MC_STATE_ENDED, (enum mc_reason)(end ? end : want));
	mc_arena_ring_all(t->a);
}

/* The standby that we filled is gone for certain: another one answers in its place. */
int ending_standby_replaced(struct transport *t)
{
	struct mc_control *c = t->a->control;
	uint64_t end = atomic_load(&c->guest_end), want = end ? end : atomic_load(&c->want_end);

	/* It ended because we said END, whose answer was lost with a transport. */
	if (want && want != MC_REASON_FAILOVER && atomic_load(&c->capture_ready)) {
		atomic_store(&c->end_acked, 1);
		end_as_wanted(t);
		return -ESHUTDOWN;
	}
	mc_err("the standby was replaced by a new one: the guest runs unprotected until the new "
	       "one's copy is there, which begins by itself");
	mc_worker_event(t->w, "standby-lost", 0, "the standby was replaced by a new one");
	atomic_store(&t->a->control->end_acked, 1);
	primary_move_any(t, primary_armed(t) ? MC_STATE_DEGRADED : MC_STATE_STOPPED,
	                 MC_REASON_STANDBY_LOST);
	return -ESHUTDOWN;
}

/* END before HELLO is a refusal; after it the backup gave up its standby. */
int ending_take_end(struct transport *t, const struct mc_wire_header *h, const void *payload)
{
	bool beginning = transport_state(t) == MC_STATE_SYNCING && !primary_armed(t);
	char text[MC_WHY_MAX], whole[MC_WHY_MAX + 300];
	uint32_t reason;
	int r = mc_wire_reason_parse(payload, h->length, &reason, text);

	if (r < 0)
		return r;
	if (ask_wanted(t))
		return -ESHUTDOWN; /* not yet */
	if (!t->up) {
		/* "This host" in its words is the other one. */
		snprintf(whole, sizeof(whole), "the backup %s refuses: %s", t->a->config->peer,
		         text);
		if (!t->p.refused_logged && !beginning)
			mc_err("%s", whole);
		t->p.refused_logged = true;
		if (beginning) {
			bool terms = reason == MC_REASON_CONFLICT;

			mc_worker_event(t->w, terms ? "conflict" : "refused", 0, "%s", whole);
			primary_stop_syncing(t, terms ? MC_REASON_CONFLICT : MC_REASON_REFUSED,
			                     whole);
		} else if (reason == MC_REASON_STANDBY_LOST) {
			return ending_standby_replaced(t);
		}
		return -ESHUTDOWN;
	}
	mc_warn("the backup ended the protection: %s", text);
	mc_worker_event(t->w, "peer-ended", 0, "the backup ended the protection: %s", text);
	atomic_store(&t->a->control->peer_end, reason);
	atomic_store(&t->a->control->end_acked, 1);
	(void)link_send(t->link, MC_MSG_END_ACK, 0, NULL, 0);
	primary_move_any(t, MC_STATE_DEGRADED, MC_REASON_STANDBY_LOST);
	return 0;
}

int ending_take_end_ack(struct transport *t)
{
	struct mc_control *c = t->a->control;

	/* It opens the gate for good: only as the answer to our END. */
	if (!t->p.end_sent)
		return -EPROTO;
	atomic_store_explicit(&c->end_acked, 1, memory_order_release);
	(void)mc_fault(MC_FAULT_TRANSPORT_END_ACK);
	end_as_wanted(t);
	return 0;
}

static bool died(uint64_t reason)
{
	return reason == MC_REASON_GUEST_DIED || reason == MC_REASON_HOST_SIGNAL;
}

int ending_send(struct transport *t)
{
	struct mc_control *c = t->a->control;
	uint64_t why = atomic_load_explicit(&c->guest_end, memory_order_acquire);

	if (!why)
		why = atomic_load(&c->want_end);
	if (!why) {
		t->p.end_sent = false;
		return 0;
	}
	if (t->p.end_sent || !atomic_load(&c->capture_ready))
		return 0;
	if (!died(why) && collect_oldest(t, 0))
		return 0;
	if (why == MC_REASON_FAILOVER && !handover_may_send(t))
		return 0;
	t->p.end_sent = true;
	(void)transport_send_reason(t->link, MC_MSG_END, 0, (uint32_t)why,
	                            mc_reason_name((enum mc_reason)why));
	link_flush(t->link); /* before the bells: those that they wake may get this CPU */
	(void)mc_fault(MC_FAULT_TRANSPORT_END);
	if (died(why)) {
		atomic_store(&c->peer_taken, primary_armed(t));
		if (primary_armed(t))
			primary_move_any(t, MC_STATE_STOPPED, (enum mc_reason)why);
		else
			primary_move_any(t, MC_STATE_ENDED, (enum mc_reason)why);
	}
	return 1;
}

/* Without a link an end can only come while nothing was armed. */
int ending_unlinked(struct transport *t)
{
	struct mc_control *c = t->a->control;
	uint64_t why = atomic_load(&c->guest_end);

	if (!why)
		why = atomic_load(&c->want_end);
	if (!why || !atomic_load(&c->capture_ready) || primary_armed(t) ||
	    transport_state(t) != MC_STATE_SYNCING)
		return 0;
	atomic_store(&c->end_acked, 1);
	primary_move_any(t, MC_STATE_ENDED, (enum mc_reason)why);
	return 1;
}
