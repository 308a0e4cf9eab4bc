/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the backup's answers mean to the primary: commits, refused epochs, the lease. */
#include <errno.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "transport.h"

/*
 * The lease: what was sent at @sent was answered, so the backup heard from us after that, and
 * takes over for silence no earlier than failure_timeout after.
 */
static void renew_lease(struct transport *t, uint64_t sent)
{
	struct mc_control *c = t->a->control;
	uint64_t margin = atomic_load(&t->a->config->lease_margin_ms) * MC_NS_PER_MS;
	uint64_t now = mc_now_ns(), lease = sent + transport_failure_ns(t) - margin;
	uint64_t state = atomic_load(&c->state);

	if (lease <= atomic_load(&c->lease_until))
		return;
	/* Who waits for the lease was left without one: only then a bell is due. */
	if (atomic_exchange(&c->lease_until, lease) < now)
		mc_arena_ring_all(t->a);
	(void)mc_fault(MC_FAULT_TRANSPORT_LEASE);
	/* The answer was late, not lost: behind much data, or a busy host. */
	if (lease > now && mc_state_of(state) == MC_STATE_HELD &&
	    mc_state_reason(state) == MC_REASON_PEER_LOST)
		(void)primary_move(t, MC_STATE_HELD, MC_STATE_PROTECTED, MC_REASON_PEER_BACK);
}

static void commit_one(struct transport *t, struct out_epoch *e)
{
	struct mc_metrics_block *m = mc_worker_metrics(t->w);
	struct mc_journal_record *rec = mc_journal_get(&t->a->journal, e->epoch);
	struct mc_journal *j = &t->a->journal;
	uint64_t now = mc_now_ns();

	/* The marks of the last worker, or of SENT, may be a moment behind the ACK. */
	(void)mc_journal_move(j, e->epoch, MC_EPOCH_STAGED, MC_EPOCH_SENT);
	if (rec && mc_journal_move(j, e->epoch, MC_EPOCH_SENT, MC_EPOCH_COMMITTED) == 0) {
		uint64_t began = atomic_load(&rec->stamp[MC_EPOCH_CAPTURING]);
		uint64_t xmit = now - e->began;

		mc_histogram_add(&m->hist[MC_H_COMMIT], now - began);
		mc_metric_add(m, MC_M_EPOCHS_ACKED, 1);
		mc_metric_set(m, MC_M_XMIT_TIME, xmit);
		mc_metric_set(m, MC_M_XMIT_MBPS, xmit ? e->bytes * 8 * 1000 / xmit : 0);
	}
	collect_drop(t, e);
	(void)mc_fault(MC_FAULT_TRANSPORT_FREED);
}

int acks_apply(struct transport *t)
{
	struct mc_control *c = t->a->control;
	struct out_epoch *e;
	int did = 0;

	while ((e = collect_oldest(t, 0)) && e->epoch <= t->p.acked) {
		enum mc_epoch_state s = mc_journal_state(&t->a->journal, e->epoch);

		if (s == MC_EPOCH_CAPTURED)
			break;
		commit_one(t, e);
		did = 1;
	}
	if (!did)
		return 0;
	if (mc_state_of(atomic_load(&c->state)) == MC_STATE_SYNCING)
		(void)primary_move(t, MC_STATE_SYNCING, MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT);
	mc_arena_ring(t->a, MC_ROLE_CAPTURE);
	mc_arena_ring(t->a, MC_ROLE_NETGATE);
	mc_arena_ring(t->a, MC_ROLE_SUPERVISOR);
	return 1;
}

int acks_take(struct transport *t, uint64_t epoch)
{
	struct out_epoch *e = collect_find(t, epoch);

	if (epoch > atomic_load(&t->a->journal.shm->last_begun) ||
	    mc_journal_state(&t->a->journal, epoch) == MC_EPOCH_CAPTURING)
		return -EPROTO; /* never sent */
	if (mc_fault(MC_FAULT_TRANSPORT_ACK) < 0)
		return -EIO;
	/* An ACK on this very link answers the COMMIT that was sent on it. */
	if (e && e->done && t->up) {
		renew_lease(t, e->ended);
		transport_answered(t);
	}
	t->p.acked = mc_max_u64(t->p.acked, epoch);
	(void)acks_apply(t);
	return 0;
}

int acks_take_nack(struct transport *t, uint64_t epoch, const void *payload, size_t len)
{
	char text[MC_WHY_MAX];
	uint32_t reason;
	struct out_epoch *e = NULL;
	int r = mc_wire_reason_parse(payload, len, &reason, text);

	if (r < 0)
		return r;
	mc_warn("the backup refused epoch %llu: %s; its pages are sent again",
	        (unsigned long long)epoch, text);
	mc_metric_add(mc_worker_metrics(t->w), MC_M_NACKS, 1);
	if (!primary_armed(t)) {
		primary_stop_syncing(t, MC_REASON_ERROR, text);
		return 0;
	}
	(void)mc_journal_abort_from(&t->a->journal, epoch, -EREMOTEIO);
	while ((e = collect_oldest(t, epoch - 1))) {
		/* The backup reads on until it hears that the rest won't come. */
		if (e->started && !e->done)
			(void)link_send(t->link, MC_MSG_ABORT, e->epoch, NULL, 0);
		collect_drop(t, e);
	}
	mc_arena_ring_all(t->a);
	return 0;
}

void acks_take_pong(struct transport *t, const struct mc_wire_ping *p)
{
	uint64_t now = mc_now_ns();

	if (p->stamp > now)
		return;
	mc_metric_set(mc_worker_metrics(t->w), MC_M_RTT, now - p->stamp);
	renew_lease(t, p->stamp);
}
