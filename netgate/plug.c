/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Operating the plug.  Of epochs it knows only one that is closed (BUFFER) and not released
 * (RELEASE_ONE), and loses count if it gets a second BUFFER: so a barrier with one
 * outstanding, or with its packets still on their way out, sets no mark.  The order of what is
 * written to the record, and why a successor can rely on it, is told in ipc/gate.h.
 */
#include "plug.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"

#define DRAIN_TRIES 20 /* looks at the queue before what a passing plug still has is dropped */

static uint64_t get(const _Atomic uint64_t *w)
{
	return atomic_load_explicit(w, memory_order_acquire);
}

static void put(_Atomic uint64_t *w, uint64_t v)
{
	atomic_store_explicit(w, v, memory_order_release);
}

void plug_report(struct plug *p, const char *id, const char *fmt, ...)
{
	char text[400];
	int n = snprintf(text, sizeof(text), "NIC %s: ", mc_nic_name(&p->spec));
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
	va_end(ap);
	mc_warn("%s", text);
	p->env.report(p->env.ctx, id, text);
}

static void count_held(struct plug *p, uint64_t packets, uint64_t bytes)
{
	mc_metric_add(p->env.m, MC_M_HELD_PACKETS, packets - p->held_packets);
	mc_metric_add(p->env.m, MC_M_HELD_BYTES, bytes - p->held_bytes);
	p->held_packets = packets;
	p->held_bytes = bytes;
}

/* The alarm that must never sound: more left the plug than committed epochs allow. */
static void check_leak(struct plug *p, const struct nl_qdisc_info *q)
{
	uint64_t allowed = get(&p->r->allowed);

	if (plug_mode(p) != GATE_HOLD || q->sent <= allowed)
		return;
	mc_metric_add(p->env.m, MC_M_LEAKS, 1);
	mc_metric_add(p->env.m, MC_M_LEAKED_BYTES, q->sent - allowed);
	plug_report(p, "gate-leak",
	            "%llu bytes left before their epoch was committed; somebody else works on "
	            "qdisc or links of %s: find out who (tc monitor), and keep them off",
	            (unsigned long long)(q->sent - allowed), p->ifb_name);
	put(&p->r->allowed, q->sent);
}

int plug_stats(struct plug *p, struct nl_qdisc_info *q)
{
	int r = nl_qdisc_root(&p->nl, p->ifb, q);
	uint64_t drops = get(&p->r->drops);

	if (r == 0 && (strcmp(q->kind, "plug") != 0 || q->major != get(&p->r->handle))) {
		p->damaged = true;
		r = -ESTALE;
	}
	if (r < 0)
		return r;
	if (q->drops > drops)
		mc_metric_add(p->env.m, MC_M_GATE_DROPS, q->drops - drops);
	put(&p->r->drops, q->drops);
	if (plug_mode(p) == GATE_HOLD)
		count_held(p, q->qlen, q->backlog);
	check_leak(p, q);
	return 0;
}

int plug_fresh(struct plug *p)
{
	struct mc_gate_record *r = p->r;
	struct nl_qdisc_info q;
	unsigned major;
	int e = nl_qdisc_root(&p->nl, p->ifb, &q);

	if (e < 0)
		return e;
	major = q.major == 1 ? 2 : 1;
	e = nl_plug_add(&p->nl, p->ifb, major, p->limit, q.kind[0]);
	if (e == 0)
		e = mc_fault(MC_FAULT_PLUG_FRESH);
	if (e < 0)
		return e;
	/* The handle last: until then the record and the kernel differ, and a successor swaps
	 * again. */
	put(&r->intent, 0);
	put(&r->done, 0);
	put(&r->cap, 0);
	put(&r->allowed, 0);
	put(&r->from, 0);
	put(&r->uncertain, 0);
	put(&r->drops, 0);
	put(&r->handle, major);
	count_held(p, 0, 0);
	return 0;
}

/* --- events ------------------------------------------------------------------------------ */

static void on_link_event(struct plug *p, const struct nl_event *e)
{
	if (e->ifindex == p->ifb && e->kind == NL_EVENT_LINK_GONE)
		p->damaged = true;
	else if (e->ifindex == p->ifb && e->kind == NL_EVENT_LINK_DOWN && plug_mode(p) != GATE_SHUT)
		p->flapped = p->damaged = true;
	else if (e->ifindex == p->tap && e->kind == NL_EVENT_LINK_GONE)
		p->tap_gone = true;
}

static void on_event(void *ctx, const struct nl_event *e)
{
	struct plug *p = ctx;

	switch (e->kind) {
	case NL_EVENT_LINK_UP:
	case NL_EVENT_LINK_DOWN:
	case NL_EVENT_LINK_GONE:
		on_link_event(p, e);
		break;
	case NL_EVENT_QDISC_GONE:
		if ((e->ifindex == p->ifb && e->major == get(&p->r->handle)) ||
		    (e->ifindex == p->tap && e->major == 0xffff))
			p->bypassed = p->damaged = true;
		break;
	case NL_EVENT_FILTER_GONE:
		if (e->ifindex == p->tap)
			p->bypassed = p->damaged = true;
		break;
	case NL_EVENT_LOST:
		p->flapped = p->damaged = true;
		break;
	}
}

static void ignore_event(void *ctx, const struct nl_event *e)
{
	struct plug *p = ctx;

	if (e->ifindex == p->tap && e->kind == NL_EVENT_LINK_GONE)
		p->tap_gone = true;
}

/* What our own changes reported is no news. */
static void forget_events(struct plug *p)
{
	(void)nl_event_read(p->events, ignore_event, p);
}

/* Puts in order what others changed. Whatever was held by then is dropped. */
static int mend(struct plug *p)
{
	bool holding = plug_mode(p) == GATE_HOLD;
	char why[256] = "";
	int r = 0;

	mc_metric_add(p->env.m, MC_M_GATE_FLAPS, 1);
	/* Counts of the old plug would let uncommitted packets out after a flap. */
	if (holding && p->flapped)
		r = plug_fresh(p);
	if (r == 0 || r == -ENODEV)
		r = plug_complete(p, why, sizeof(why));
	if (r == 0 && plug_mode(p) != GATE_SHUT)
		r = nl_link_set_up(&p->nl, p->ifb, true);
	if (r < 0) {
		if (!p->told)
			plug_report(p, "gate-damaged",
			            "its gate was changed by others and can't be put in order: %s; "
			            "protect the guest again once they are gone",
			            why[0] ? why : strerror(-r));
		p->told = true;
		return r;
	}
	forget_events(p);
	if (holding && p->bypassed)
		mc_metric_add(p->env.m, MC_M_LEAKS, 1);
	plug_report(p, holding && p->bypassed ? "gate-leak" : "gate-mended",
	            "others changed %s or the redirection to it; the gate is whole again%s",
	            p->ifb_name,
	            !holding      ? ""
	            : p->bypassed ? ", but frames may have left unheld meanwhile"
	                          : ", what was held is lost");
	p->damaged = p->bypassed = p->told = false;
	p->flapped = holding;
	return 0;
}

int plug_follow_events(struct plug *p)
{
	int r = nl_event_read(p->events, on_event, p);

	if (r < 0)
		return r;
	if (p->tap_gone)
		return -ENODEV;
	return p->damaged ? mend(p) : 0;
}

/* --- barrier and release ----------------------------------------------------------------- */

/* True when everything that was released has left, so that counts can change safely. */
static bool drained(struct plug *p, uint64_t sent)
{
	if (sent >= get(&p->r->allowed))
		return true;
	return get(&p->r->uncertain) && sent == get(&p->r->from);
}

int plug_finish_release(struct plug *p)
{
	struct mc_gate_record *r = p->r;
	uint64_t intent = get(&r->intent);
	int e;

	if (mc_gate_op_of(intent) != MC_GATE_OP_RELEASE || get(&r->done) == intent)
		return 0;
	put(&r->allowed, get(&r->cap));
	e = mc_fault(MC_FAULT_PLUG_RELEASE);
	if (e == 0)
		e = nl_plug_do(&p->nl, p->ifb, (unsigned)get(&r->handle), PLUG_RELEASE_ONE,
		               p->limit);
	if (e == 0)
		e = mc_fault(MC_FAULT_PLUG_RELEASED);
	if (e == 0)
		put(&r->done, intent);
	return e;
}

/* Closes what is held as @epoch.  Nothing is enqueued meanwhile: the guest is stopped. */
static int buffer(struct plug *p, uint64_t epoch, const struct nl_qdisc_info *q)
{
	struct mc_gate_record *r = p->r;
	uint64_t intent = mc_gate_word(MC_GATE_OP_BUFFER, epoch);
	int e;

	put(&r->cap, q->sent + q->backlog);
	put(&r->intent, intent);
	e = mc_fault(MC_FAULT_PLUG_BUFFER);
	if (e == 0)
		e = nl_plug_do(&p->nl, p->ifb, (unsigned)get(&r->handle), PLUG_BUFFER, p->limit);
	if (e == 0)
		e = mc_fault(MC_FAULT_PLUG_BUFFERED);
	if (e == 0)
		put(&r->done, intent);
	return e;
}

static int plug_barrier(struct gate_nic *n, uint64_t epoch)
{
	struct plug *p = to_plug(n);
	struct nl_qdisc_info q;
	int r = plug_follow_events(p);

	if (r == 0 && p->flapped) {
		p->flapped = false;
		return -ENETRESET;
	}
	if (r < 0 || plug_mode(p) != GATE_HOLD)
		return r;
	r = plug_finish_release(p);
	if (r == 0)
		r = plug_stats(p, &q);
	if (r < 0)
		return r;
	if (mc_gate_op_of(get(&p->r->intent)) == MC_GATE_OP_BUFFER || !drained(p, q.sent)) {
		mc_metric_add(p->env.m, MC_M_COALESCED, 1);
		return 0;
	}
	r = buffer(p, epoch, &q);
	return r < 0 ? r : 1;
}

static int plug_release(struct gate_nic *n, uint64_t epoch)
{
	struct plug *p = to_plug(n);
	struct mc_gate_record *rec = p->r;
	uint64_t intent;
	struct nl_qdisc_info q;
	int r = plug_follow_events(p);

	if (p->tap_gone || plug_mode(p) != GATE_HOLD)
		return 0;
	if (r == 0)
		r = plug_finish_release(p);
	intent = get(&rec->intent);
	if (r < 0 || mc_gate_op_of(intent) != MC_GATE_OP_BUFFER || mc_gate_epoch_of(intent) > epoch)
		return r;
	r = plug_stats(p, &q);
	if (r < 0)
		return r;
	/* Only after an uncertain BUFFER can the release before it still be on its way. */
	if (!drained(p, q.sent))
		return -EAGAIN;
	put(&rec->uncertain, get(&rec->done) != intent);
	put(&rec->from, q.sent);
	put(&rec->intent, mc_gate_word(MC_GATE_OP_RELEASE, mc_gate_epoch_of(intent)));
	r = plug_finish_release(p);
	return r < 0 ? r : 1;
}

static int plug_set_limit(struct gate_nic *n, uint64_t bytes)
{
	struct plug *p = to_plug(n);
	int r = nl_plug_do(&p->nl, p->ifb, (unsigned)get(&p->r->handle), PLUG_LIMIT, bytes);

	if (r == 0)
		p->limit = bytes;
	return r;
}

/* --- modes ------------------------------------------------------------------------------- */

/* Inbound frames pass, or are dropped before they reach the guest. */
static int set_inbound(struct plug *p, bool pass)
{
	int r = pass ? nl_redirect_del(&p->nl, p->tap, HOOK_TO_GUEST, 1)
	             : nl_redirect_add(&p->nl, p->tap, HOOK_TO_GUEST, 1, 0);

	return r == -ENOENT || r == -EINVAL || r == -EEXIST ? 0 : r;
}

static int shut(struct plug *p)
{
	int r = nl_link_set_up(&p->nl, p->ifb, false);

	if (r == 0)
		r = set_inbound(p, false);
	if (r == 0)
		put(&p->r->mode, GATE_SHUT);
	count_held(p, 0, 0);
	return r;
}

/* A passing plug has nearly nothing in its queue: given the time to leave, it isn't lost. */
static void let_drain(struct plug *p)
{
	struct nl_qdisc_info q;

	for (int i = 0; i < DRAIN_TRIES; i++)
		if (nl_qdisc_root(&p->nl, p->ifb, &q) < 0 || !q.qlen)
			return;
}

static int hold(struct plug *p)
{
	int r;

	if (plug_mode(p) == GATE_HOLD) {
		r = plug_finish_release(p);
	} else {
		if (plug_mode(p) == GATE_PASS)
			let_drain(p);
		r = plug_fresh(p);
	}
	if (r == 0)
		r = set_inbound(p, true);
	if (r == 0)
		r = nl_link_set_up(&p->nl, p->ifb, true);
	if (r == 0)
		r = mc_fault(MC_FAULT_PLUG_HOLD);
	if (r == 0)
		put(&p->r->mode, GATE_HOLD);
	return r;
}

static int pass(struct plug *p)
{
	enum gate_mode was = plug_mode(p);
	int r = was == GATE_SHUT ? plug_fresh(p) : 0;

	/* Recorded first: a successor must not take a plug that passes for one that holds. */
	put(&p->r->mode, GATE_PASS);
	if (r == 0)
		r = mc_fault(MC_FAULT_PLUG_PASS);
	if (r == 0)
		r = nl_plug_do(&p->nl, p->ifb, (unsigned)get(&p->r->handle),
		               PLUG_RELEASE_INDEFINITE, p->limit);
	if (r == 0)
		r = set_inbound(p, true);
	if (r == 0)
		r = nl_link_set_up(&p->nl, p->ifb, true);
	count_held(p, 0, 0);
	return r;
}

static int plug_set_mode(struct gate_nic *n, enum gate_mode mode)
{
	struct plug *p = to_plug(n);
	int r;

	if (p->tap_gone)
		return 0;
	r = mode == GATE_HOLD ? hold(p) : mode == GATE_PASS ? pass(p) : shut(p);
	if (r == 0)
		forget_events(p);
	return r;
}

const struct gate_ops plug_ops = {
        .open = plug_open,
        .set_mode = plug_set_mode,
        .barrier = plug_barrier,
        .release = plug_release,
        .set_limit = plug_set_limit,
        .close = plug_close,
        .in_kernel = true,
};
