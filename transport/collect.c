/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Primary: encoded slabs from the stage workers, sorted by epoch and sequence. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "transport.h"

struct out_epoch *collect_find(struct transport *t, uint64_t epoch)
{
	for (int i = 0; i < EPOCHS_MAX; i++)
		if (t->p.epoch[i].epoch == epoch)
			return &t->p.epoch[i];
	return NULL;
}

struct out_epoch *collect_oldest(struct transport *t, uint64_t after)
{
	struct out_epoch *best = NULL;

	for (int i = 0; i < EPOCHS_MAX; i++) {
		struct out_epoch *e = &t->p.epoch[i];

		if (e->epoch > after && (!best || e->epoch < best->epoch))
			best = e;
	}
	return best;
}

void collect_drop(struct transport *t, struct out_epoch *e)
{
	for (uint32_t i = 0; i < MC_EPOCH_SLABS_MAX && e->got; i++) {
		if (!e->slab[i])
			continue;
		if (!e->in_link[i]) /* else send_slab_sent() frees it */
			(void)mc_pool_free(&t->a->slabs, e->slab[i]);
		e->slab[i] = MC_HANDLE_NONE;
		e->got--;
	}
	e->epoch = 0;
	mc_arena_ring_freed(t->a);
}

static struct out_epoch *entry_for(struct transport *t, uint64_t epoch)
{
	struct out_epoch *e = collect_find(t, epoch);

	if (e)
		return e;
	e = collect_find(t, 0);
	if (!e)
		return NULL;
	*e = (struct out_epoch){.epoch = epoch};
	return e;
}

/* True when the epoch is over: its slabs are of no use. */
static bool is_over(const struct transport *t, uint64_t epoch)
{
	enum mc_epoch_state s = mc_journal_state(&t->a->journal, epoch);

	return s == MC_EPOCH_FREE || s == MC_EPOCH_ABORTED || s == MC_EPOCH_COMMITTED ||
	       s == MC_EPOCH_RELEASED;
}

/* Finds a slab's place. false: it isn't wanted (a repeat, or its epoch is over). */
static bool place(struct transport *t, mc_handle h, const struct mc_slab_meta *m)
{
	struct primary *p = &t->p;
	struct out_epoch *e;

	if (m->kind != MC_KIND_ENCODED || !m->used || m->used > t->a->slabs.unit)
		return false;
	if (!m->epoch && again_pending(t))
		return false;
	if (!m->epoch) {
		mc_handle *slot = &p->window[m->seq % p->window_size];

		if (m->seq < p->sync_next || m->seq - p->sync_next >= p->window_size || *slot)
			return false;
		*slot = h;
		return true;
	}
	if (m->seq >= MC_EPOCH_SLABS_MAX || is_over(t, m->epoch))
		return false;
	e = entry_for(t, m->epoch);
	if (!e || e->slab[m->seq])
		return false;
	e->slab[m->seq] = h;
	e->got++;
	return true;
}

int collect_step(struct transport *t)
{
	int did = 0;

	for (unsigned i = 0; i < MC_STAGES_MAX; i++) {
		struct mc_ring_end *in = &t->p.in[i];
		mc_handle h;
		int r;

		while ((r = mc_ring_peek(in, 0, &h)) == 1) {
			did = 1;
			if (mc_pool_claim(&t->a->slabs, h, mc_role_stage(i)) == 0 &&
			    !place(t, h, mc_pool_meta(&t->a->slabs, h))) {
				(void)mc_pool_free(&t->a->slabs, h);
				mc_arena_ring(t->a, MC_ROLE_CAPTURE);
			}
			(void)mc_fault(MC_FAULT_TRANSPORT_COLLECTED);
			mc_ring_advance(in, 1);
		}
		if (r < 0)
			return mc_log_errno(
			        r,
			        "the ring from stage worker %u is damaged; protect the guest anew",
			        i);
	}
	return did;
}

/* A predecessor's slab that is in no ring any more: back to its place, or freed. */
static bool not_wanted(void *ctx, mc_handle h)
{
	struct transport *t = ctx;

	for (unsigned i = 0; i < MC_STAGES_MAX; i++)
		if (mc_ring_contains(t->p.in[i].ring, t->a->ring_slots, h))
			return false;
	return !place(t, h, mc_pool_meta(&t->a->slabs, h));
}

int collect_recover(struct transport *t)
{
	struct primary *p = &t->p;
	int r;

	p->epoch = calloc(EPOCHS_MAX, sizeof(*p->epoch));
	for (p->window_size = 4; p->window_size < t->a->slabs.max * 2;)
		p->window_size *= 2;
	p->window = calloc(p->window_size, sizeof(*p->window));
	if (!p->epoch || !p->window)
		return -ENOMEM;
	for (unsigned i = 0; i < MC_STAGES_MAX; i++) {
		r = mc_ring_attach_consumer(&p->in[i], t->a->ring_transport[i], t->a->ring_slots);
		if (r < 0)
			return mc_log_errno(
			        r,
			        "the ring from stage worker %u is damaged; protect the guest anew",
			        i);
	}
	(void)mc_pool_reclaim(&t->a->slabs, not_wanted, t);
	return 0;
}
