/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A successor of mc-restore: what it takes over of the epochs that its predecessor had in hand. */
#include <errno.h>
#include <string.h>

#include "restore.h"

/* Puts a predecessor's decoded slab in its place; false: it is void. */
static bool put_back(struct assembly *as, mc_handle h, const struct mc_slab_meta *m)
{
	if (!as->epoch || m->epoch != as->epoch || m->kind == MC_KIND_NONE ||
	    m->seq >= MC_EPOCH_SLABS_MAX || as->slab[m->seq])
		return false;
	as->slab[m->seq] = h;
	return true;
}

/* Nothing of epoch @n is still to be applied. */
static bool is_applied(const struct restore *r, uint64_t n)
{
	return atomic_load(&r->a->control->applied) >= n &&
	       mc_journal_state(&r->a->journal, n) != MC_EPOCH_COMMITTED;
}

/*
 * What is of no use to us: not of the committed epoch, of which only the device state is once it
 * is applied, and not of the one in the assembly.
 */
static bool is_void(void *ctx, mc_handle h)
{
	struct restore *r = ctx;
	struct mc_slab_meta *m = mc_pool_meta(&r->a->slabs, h);
	uint64_t n = restore_committed(r);

	if (!m || m->kind == MC_KIND_ENCODED)
		return m && !mc_ring_contains(r->in.ring, r->a->ring_slots, h);
	if (m->stamp != h)
		return true; /* not finished */
	if (m->epoch && m->epoch <= n)
		return is_applied(r, n) && !(m->kind == MC_KIND_STATE && m->epoch == n);
	return !put_back(&r->as, h, m);
}

/* The ring's first slab was decoded already, by one that died before it let go of it. */
static bool decoded_before(struct restore *r, mc_handle h)
{
	const struct mc_slab_meta *m;

	if (mc_pool_claim(&r->a->slabs, h, MC_ROLE_TRANSPORT) < 0)
		return true; /* it was freed, even */
	m = mc_pool_meta(&r->a->slabs, h);
	return m && m->kind == MC_KIND_ENCODED && m->epoch == r->as.epoch && m->seq &&
	       m->seq < r->as.n;
}

/*
 * Goes on where a predecessor was: its decoded slabs from 0 to the first gap.  Those that it had
 * not let go of yet are in the ring once more; with slab 0 among them all are, and the epoch is
 * decoded anew, as if it had been sent again.
 */
static void recover_assembly(struct restore *r)
{
	struct assembly *as = &r->as;
	uint64_t n = restore_committed(r);
	mc_handle h;

	memset(as, 0, sizeof(*as));
	while ((n = mc_journal_next(&r->a->journal, n)) &&
	       !epoch_is_open(mc_journal_state(&r->a->journal, n)))
		;
	as->epoch = n;
	(void)mc_pool_reclaim(&r->a->slabs, is_void, r);
	if (!n)
		return;
	for (; as->n < MC_EPOCH_SLABS_MAX && as->slab[as->n]; as->n++) {
		const struct mc_slab_meta *m = mc_pool_meta(&r->a->slabs, as->slab[as->n]);
		bool is_state = m && m->kind == MC_KIND_STATE;

		if (is_state && as->have_state)
			break; /* decoded once more, it is refused */
		as->have_state |= is_state;
	}
	for (uint32_t i = as->n; i < MC_EPOCH_SLABS_MAX; i++)
		if (as->slab[i])
			slab_free(r, as->slab[i]);
	while (mc_ring_peek(&r->in, 0, &h) == 1 && decoded_before(r, h))
		commit_drop_first(r, h);
}

/* Descriptors that no slab of ours names any more. */
static bool of_nothing(void *ctx, mc_handle h)
{
	const struct mc_pool *p = ctx;

	for (uint64_t i = 0; i < p->max; i++) {
		uint64_t w = atomic_load_explicit(&p->word[i], memory_order_acquire);

		if (mc_slab_word_state(w) == MC_SLAB_OWNED &&
		    mc_slab_word_owner(w) == MC_ROLE_RESTORE && p->meta[i].desc == h)
			return false;
	}
	return true;
}

int commit_recover(struct restore *r)
{
	struct mc_journal *j = &r->a->journal;
	uint64_t n = restore_committed(r), nack = atomic_load(&r->a->control->nack_epoch);

	/* Refused, but not void yet: the predecessor may not have come to say so, either. */
	if (nack > n && nack != UINT64_MAX && epoch_is_open(mc_journal_state(j, nack))) {
		(void)mc_journal_abort_from(j, nack, -EOWNERDEAD);
		commit_nack(r, nack);
	}
	recover_assembly(r);
	(void)mc_pool_reclaim(&r->a->descs, of_nothing, &r->a->slabs);
	if (!n)
		return 0;
	(void)mc_journal_move(j, n, MC_EPOCH_STAGED, MC_EPOCH_COMMITTED);
	if (restore_state(r) == MC_STATE_SYNCING)
		commit_first(r);
	if (!is_applied(r, n))
		(void)commit_apply(r, n);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	return 0;
}
