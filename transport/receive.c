/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Backup: an epoch on its way in. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "streams.h"

/* Empty slabs that a link may have before it is known what comes. */
#define AHEAD      2
#define AHEAD_SYNC 8  /* in the first copy */
#define SYNC_HELD  16 /* slabs of the first copy that may lie here */

static uint64_t committed(const struct transport *t)
{
	return mc_commit_epoch(atomic_load_explicit(&t->a->control->commit, memory_order_acquire));
}

/* The link is gone, or the epoch void: nothing of a partial epoch stays. */
void receive_reset(struct transport *t)
{
	if (t->b.current && !t->b.ignore) {
		(void)mc_journal_abort_from(&t->a->journal, t->b.current, -ECONNRESET);
		mc_arena_ring(t->a, MC_ROLE_RESTORE);
	}
	t->b.current = 0;
	t->b.starved = 0;
	t->b.starved_told = false;
	order_reset(t);
}

/* restore refused the epoch: what is still on its way of it is read and dropped. */
void receive_refused(struct transport *t, uint64_t epoch, int error)
{
	if (t->b.current < epoch || t->b.ignore)
		return;
	(void)mc_journal_abort_from(&t->a->journal, t->b.current, error);
	t->b.ignore = true;
}

void receive_abort(struct transport *t, uint64_t epoch)
{
	(void)mc_journal_abort_from(&t->a->journal, epoch, -ECANCELED);
	if (t->b.current >= epoch)
		t->b.current = 0;
	mc_arena_ring(t->a, MC_ROLE_RESTORE);
}

static bool is_here(const struct transport *t, uint64_t epoch)
{
	enum mc_epoch_state s = mc_journal_state(&t->a->journal, epoch);

	return epoch <= committed(t) || s == MC_EPOCH_CAPTURED || s == MC_EPOCH_STAGED;
}

int receive_start(struct transport *t, const struct mc_wire_header *h,
                  const struct mc_wire_start *s)
{
	struct mc_control *c = t->a->control;
	uint64_t half = t->a->slabs.max / 2;
	struct mc_journal_record *rec;
	int r;

	if (t->b.current || !s->slabs || s->slabs > MC_EPOCH_SLABS_MAX || s->start_seq ||
	    s->base >= h->epoch)
		return -EPROTO;
	if (s->slabs + 2 > half)
		return -EFBIG;
	if (!s->base && s->sync_slabs != atomic_load(&c->sync_received))
		return -EPROTO;
	t->b.current = h->epoch;
	t->b.slabs = s->slabs;
	t->b.base = s->base;
	t->b.next_seq = 0;
	t->b.bytes = t->b.digest = 0;
	t->b.ignore = is_here(t, h->epoch);
	atomic_store(&c->peer_strikes, s->strikes);
	if (t->b.ignore)
		return 0;
	r = mc_journal_rebegin(&t->a->journal, h->epoch);
	if (r < 0) {
		t->b.current = 0;
		return r;
	}
	rec = mc_journal_get(&t->a->journal, h->epoch);
	atomic_store(&rec->base, s->base);
	atomic_store(&rec->raw_bytes, s->raw_bytes);
	atomic_store_explicit(&rec->slabs, s->slabs, memory_order_release);
	return 0;
}

static bool expected(const struct transport *t, uint64_t epoch, const struct mc_wire_slab *s)
{
	if (epoch)
		return epoch == t->b.current && s->seq == t->b.next_seq && s->seq < t->b.slabs;
	return transport_state(t) == MC_STATE_SYNCING && !t->b.current && !committed(t) &&
	       s->seq == (uint32_t)atomic_load(&t->a->control->sync_received);
}

/* Slabs that are still to come of the epoch that restore decodes next. */
static uint32_t needed(const struct transport *t)
{
	return t->b.current && t->b.base == committed(t) ? t->b.slabs - t->b.next_seq : 0;
}

/*
 * The link has no empty slab and gets none.  One that stalls asks for it when a slab is there; one
 * that lends ahead reads on, and misses it only where restore waits for what can't come: without
 * memory (@dry) for the rest of the epoch that it decodes next, or for the first copy.
 */
static void note_starvation(struct transport *t, bool dry)
{
	bool missed = dry && (needed(t) || transport_state(t) == MC_STATE_SYNCING);

	if (t->b.lent)
		return;
	if (!t->link->stalls && !missed) {
		t->b.starved = 0;
	} else if (!t->b.starved) {
		t->b.starved = mc_now_ns();
		transport_start_clock(t);
	}
}

uint64_t receive_lend(struct transport *t, unsigned stream, void **data)
{
	const struct mc_pool *p = &t->a->slabs;
	uint64_t used = atomic_load_explicit(&p->shm->in_use, memory_order_relaxed);
	bool sync = transport_state(t) == MC_STATE_SYNCING;
	uint32_t ahead = sync ? AHEAD_SYNC : AHEAD;
	uint64_t most = sync ? mc_min_u64(p->max / 2, SYNC_HELD) : p->max / 2;
	bool enough;
	mc_handle h;

	if (order_ahead(t, stream))
		return MC_HANDLE_NONE;
	/* What waits for its turn can't be the reason to keep away the one that it waits for. */
	used -= mc_min_u64(used, t->o.held);
	/*
	 * The epoch that restore decodes next may take what it needs (START made sure that it
	 * fits twice); anything ahead of it must leave restore its half of the pool.  Slabs come
	 * in order: what is lent already goes to that epoch first.  The first copy needs no more
	 * than keeps restore busy: slabs that were used just now are mapped, and in the cache.
	 */
	enough = t->b.lent >= needed(t) && (used >= most || t->b.lent >= ahead);
	if (enough || mc_pool_alloc(&t->a->slabs, 0, false, &h) < 0) {
		note_starvation(t, !enough);
		return MC_HANDLE_NONE;
	}
	t->b.starved = 0;
	t->b.starved_told = false;
	*data = mc_pool_data(&t->a->slabs, h);
	t->b.lent++;
	return h;
}

/*
 * Without memory for what comes next a TCP link reads nothing any more, PINGs neither: the silence
 * is ours, not the primary's.  That may last for failure_timeout; then the epoch is given up,
 * which gives back what is here of it; should even that not be enough, the link is closed, so
 * that a primary that died meanwhile is found out, and one that waits begins anew.
 */
void receive_look_at_starvation(struct transport *t)
{
	uint64_t limit = transport_failure_ns(t);
	uint64_t now = mc_now_ns(), epoch = t->b.current;

	if (!t->b.starved)
		return;
	if (t->link->stalls)
		atomic_store_explicit(&t->a->control->last_rx, now, memory_order_release);
	if (now - t->b.starved > 2 * limit || (now - t->b.starved > limit && !epoch)) {
		t->b.starved = 0;
		t->b.starved_told = false;
		t->link->events->closed(t->link->ctx, t->link, -ENOSPC,
		                        "no memory for what it sends");
	} else if (now - t->b.starved > limit && !t->b.starved_told) {
		t->b.starved_told = true;
		mc_warn("there is no memory for epoch %llu: it is refused; enlarge /dev/shm, or "
		        "the standby's --max-memory",
		        (unsigned long long)epoch);
		receive_refused(t, epoch, -ENOSPC);
		mc_arena_ring(t->a, MC_ROLE_RESTORE);
		(void)transport_send_reason(t->link, MC_MSG_NACK, epoch, ENOSPC,
		                            "the backup has no memory for it; enlarge /dev/shm "
		                            "there, or the standby's --max-memory");
	}
}

void receive_give_back(struct transport *t, mc_handle slab)
{
	if (mc_pool_free(&t->a->slabs, slab) == 0)
		t->b.lent--;
}

int receive_slab(struct transport *t, const struct mc_wire_header *h, const struct mc_wire_slab *s,
                 mc_handle slab)
{
	struct mc_slab_meta *m = mc_pool_meta(&t->a->slabs, slab);
	int r;

	if (!m)
		return -ESTALE;
	if (!expected(t, h->epoch, s)) {
		receive_give_back(t, slab);
		return -EPROTO;
	}
	if (h->epoch) {
		t->b.next_seq++;
		t->b.bytes += s->bytes;
		t->b.digest ^= h->checksum;
		if (t->b.ignore) {
			receive_give_back(t, slab);
			return 0;
		}
	}
	*m = (struct mc_slab_meta){.epoch = h->epoch,
	                           .seq = s->seq,
	                           .kind = MC_KIND_ENCODED,
	                           .of_kind = s->of_kind,
	                           .used = s->bytes,
	                           .hash = h->checksum,
	                           .stamp = mc_now_ns()};
	r = h->epoch ? mc_fault(MC_FAULT_RECEIVER_LANDED) : 0;
	if (r == 0)
		r = mc_ring_push(&t->b.out, slab);
	if (r < 0) {
		receive_give_back(t, slab);
		return r;
	}
	t->b.lent--;
	(void)mc_fault(h->epoch ? MC_FAULT_RECEIVER_PUSHED : MC_FAULT_RECEIVER_SYNC);
	if (!h->epoch)
		atomic_fetch_add(&t->a->control->sync_received, 1);
	mc_metric_add(mc_worker_metrics(t->w), MC_M_BYTES_RECEIVED, s->bytes);
	mc_arena_ring(t->a, MC_ROLE_RESTORE);
	return 0;
}

int receive_commit(struct transport *t, const struct mc_wire_header *h,
                   const struct mc_wire_commit *c)
{
	struct mc_journal_record *rec;

	if (h->epoch != t->b.current || c->reserved || c->slabs != t->b.slabs ||
	    t->b.next_seq != t->b.slabs || c->wire_bytes != t->b.bytes || c->digest != t->b.digest)
		return -EPROTO;
	if (t->b.ignore) {
		/* Committed already, perhaps: say so again. */
		t->b.current = t->b.acked = 0;
		return 0;
	}
	/* It is void with the link until it is CAPTURED; one that stays CAPTURING blocks all after
	 * it. */
	if (mc_fault(MC_FAULT_RECEIVER_COMMIT) < 0)
		return -EIO;
	t->b.current = 0;
	rec = mc_journal_get(&t->a->journal, h->epoch);
	if (!rec)
		return 0; /* restore refused it meanwhile */
	atomic_store(&rec->wire_bytes, c->wire_bytes);
	(void)mc_journal_move(&t->a->journal, h->epoch, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED);
	mc_arena_ring(t->a, MC_ROLE_RESTORE);
	return 0;
}

static bool not_pushed(void *ctx, mc_handle h)
{
	struct transport *t = ctx;

	return !mc_ring_contains(t->a->ring_restore, t->a->ring_slots, h);
}

/* What a predecessor was receiving is void; what it had handed over stands. */
int receive_recover(struct transport *t)
{
	uint64_t n = 0;
	int r = mc_ring_attach_producer(&t->b.out, t->a->ring_restore, t->a->ring_slots);

	if (r < 0)
		return mc_log_errno(r, "the ring to restore is damaged; start a new standby");
	(void)mc_pool_reclaim(&t->a->slabs, not_pushed, t);
	while ((n = mc_journal_next(&t->a->journal, n)))
		if (mc_journal_state(&t->a->journal, n) == MC_EPOCH_CAPTURING)
			(void)mc_journal_abort_from(&t->a->journal, n, -EOWNERDEAD);
	mc_arena_ring(t->a, MC_ROLE_RESTORE);
	return 0;
}
