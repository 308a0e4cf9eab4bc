/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Primary: the first copy and epochs on their way out. */
#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "streams.h"

void send_slab_sent(void *ctx, struct link *l, uint64_t cookie)
{
	struct transport *t = ctx;
	struct mc_slab_meta *m = mc_pool_meta(&t->a->slabs, cookie);
	struct out_epoch *e = m && m->epoch ? collect_find(t, m->epoch) : NULL;

	(void)l;
	if (e && m->seq < MC_EPOCH_SLABS_MAX && e->slab[m->seq] == cookie) {
		e->in_link[m->seq] = false; /* waits for the ACK */
		return;
	}
	/* A round of the first copy is over with the sending, as is an epoch that was dropped. */
	if (m && !m->epoch)
		atomic_fetch_add(&t->a->control->sync_bytes, m->raw);
	(void)mc_pool_free(&t->a->slabs, cookie);
	(void)mc_fault(MC_FAULT_TRANSPORT_SYNC_FREED);
	mc_arena_ring_all(t->a);
}

static int send_slab(struct transport *t, mc_handle h, uint64_t *bytes, uint64_t *digest)
{
	struct mc_slab_meta *m = mc_pool_meta(&t->a->slabs, h);
	const void *data = mc_pool_data(&t->a->slabs, h);
	struct link *l = streams_pick(t);
	struct mc_wire_slab s;
	uint64_t sum;
	int r;

	if (!m || !data)
		return -ESTALE;
	if (!l)
		return -ENOBUFS;
	s = (struct mc_wire_slab){.seq = m->seq, .of_kind = m->of_kind, .bytes = m->used};
	r = link_send_slab(l, m->epoch, &s, data, h, &sum);
	if (r < 0)
		return r;
	if (!t->link)
		return 0; /* broke within: the totals were begun anew */
	*bytes += m->used;
	*digest ^= sum;
	mc_metric_add(mc_worker_metrics(t->w), MC_M_BYTES_XFER, m->used);
	return 0;
}

int send_on_bandwidth(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	(void)userdata;
	return 0; /* work() runs before the next wait */
}

/* False while the first copy has used up its share of the link. */
static bool may_spend(struct transport *t, uint64_t bytes)
{
	uint64_t rate = atomic_load(&t->a->config->max_bandwidth), now = mc_now_ns();

	if (!rate)
		return true;
	if (now < t->p.tokens_at) {
		(void)sd_event_source_set_time(t->p.bandwidth, t->p.tokens_at / MC_NS_PER_US + 1);
		(void)sd_event_source_set_enabled(t->p.bandwidth, SD_EVENT_ONESHOT);
		return false;
	}
	t->p.tokens_at = now + bytes * MC_NS_PER_S / rate;
	return true;
}

/* One of the connections takes a slab. */
static bool room(struct transport *t)
{
	struct link *l = streams_pick(t);

	if (l)
		t->s.turn--; /* only looked at */
	return l;
}

int send_sync(struct transport *t)
{
	struct primary *p = &t->p;
	mc_handle *slot = &p->window[p->sync_next % p->window_size];
	struct mc_slab_meta *m = *slot ? mc_pool_meta(&t->a->slabs, *slot) : NULL;
	uint64_t bytes = 0, digest = 0;
	mc_handle h = *slot;

	if (!m || !room(t) || !may_spend(t, m->used))
		return 0;
	*slot = MC_HANDLE_NONE;
	p->sync_next++;
	if (send_slab(t, h, &bytes, &digest) < 0)
		return 0;
	(void)mc_fault(MC_FAULT_TRANSPORT_SYNC_SENT);
	return 1;
}

static bool sync_sent(const struct transport *t)
{
	return t->p.sync_next >= atomic_load(&t->a->control->sync_slabs);
}

static int send_start(struct transport *t, struct out_epoch *e, struct mc_journal_record *rec)
{
	struct mc_wire_start s = {
	        .base = atomic_load(&rec->base),
	        .raw_bytes = atomic_load(&rec->raw_bytes),
	        .slabs = atomic_load(&rec->slabs),
	        .strikes = (uint32_t)atomic_load(&t->a->slabs.shm->strikes_max),
	        .interval_us = atomic_load(&t->a->config->interval_us),
	};

	if (!s.base)
		s.sync_slabs = atomic_load(&t->a->control->sync_slabs);
	if (s.slabs * t->a->slabs.unit > atomic_load(&t->a->control->peer_max_epoch))
		return -EFBIG;
	/* Before the first byte: from now on the backup may hold an epoch of us. */
	if (!atomic_load(&t->a->control->first_sent))
		atomic_store(&t->a->control->first_sent, e->epoch);
	e->started = true;
	e->began = mc_now_ns();
	return link_send(t->link, MC_MSG_START, e->epoch, &s, sizeof(s));
}

/* An epoch that can never be had at the other end. */
static int too_large(struct transport *t, struct out_epoch *e)
{
	mc_err("epoch %llu is larger than the backup can take; start the standby with a larger "
	       "--max-memory",
	       (unsigned long long)e->epoch);
	mc_worker_event(t->w, "overload", e->epoch, "an epoch is larger than the backup can take");
	(void)mc_journal_abort_from(&t->a->journal, e->epoch, -EFBIG);
	collect_drop(t, e);
	if (!primary_armed(t))
		primary_stop_syncing(
		        t, MC_REASON_OVERLOAD,
		        "the first epoch is larger than the backup can take; start the standby "
		        "with a larger --max-memory");
	return 1;
}

static int send_epoch(struct transport *t, struct out_epoch *e)
{
	struct mc_journal_record *rec = mc_journal_get(&t->a->journal, e->epoch);
	enum mc_epoch_state s = mc_journal_state(&t->a->journal, e->epoch);
	uint32_t total;
	int did = 0, r;

	if (!rec || s == MC_EPOCH_ABORTED || s == MC_EPOCH_FREE) {
		if (e->started)
			(void)link_send(t->link, MC_MSG_ABORT, e->epoch, NULL, 0);
		collect_drop(t, e);
		return 1;
	}
	total = atomic_load(&rec->slabs);
	if (e->done || s == MC_EPOCH_CAPTURING || !total || !room(t))
		return 0;
	if (!e->started && !link_has_room(t->link))
		return 0;
	if (!e->started) {
		r = send_start(t, e, rec);
		if (r == -EFBIG)
			return too_large(t, e);
		(void)mc_fault(MC_FAULT_TRANSPORT_START);
		did = 1;
	}
	while (e->next < total && e->slab[e->next] && room(t)) {
		/* Before the call: slab_sent() may come from within. */
		e->in_link[e->next] = true;
		if (send_slab(t, e->slab[e->next], &e->bytes, &e->digest) < 0) {
			e->in_link[e->next] = false;
			return 0;
		}
		(void)mc_fault(MC_FAULT_TRANSPORT_SLAB);
		if (!t->link)
			return 1; /* broke: the epoch begins anew on the next one */
		e->next++;
		did = 1;
	}
	if (e->next == total && link_has_room(t->link)) {
		struct mc_wire_commit c = {
		        .wire_bytes = e->bytes, .digest = e->digest, .slabs = total};

		e->done = true;
		e->ended = mc_now_ns();
		atomic_store(&rec->wire_bytes, e->bytes);
		atomic_store(&rec->digest, e->digest);
		if (link_send(t->link, MC_MSG_COMMIT, e->epoch, &c, sizeof(c)) == 0)
			mc_metric_add(mc_worker_metrics(t->w), MC_M_EPOCHS_SENT, 1);
		(void)mc_fault(MC_FAULT_TRANSPORT_COMMIT);
		did = 1;
	}
	return did;
}

int send_epochs(struct transport *t)
{
	struct out_epoch *e = NULL;
	uint64_t after = 0;
	int did = 0;

	if (!sync_sent(t))
		return 0;
	while (t->link && (e = collect_oldest(t, after))) {
		after = e->epoch;
		did |= send_epoch(t, e);
		if (e->epoch && !e->done)
			break; /* in order: the next one only after this one's COMMIT */
		if (e->epoch && mc_journal_state(&t->a->journal, after) == MC_EPOCH_STAGED &&
		    mc_journal_move(&t->a->journal, after, MC_EPOCH_STAGED, MC_EPOCH_SENT) == 0)
			did = 1;
	}
	return did;
}
