/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is around one mc-transport, played: restore on the backup; capture, stage and netgate on the
 * primary. */
#ifndef MC_TESTS_TRANSPORT_ROLES_H
#define MC_TESTS_TRANSPORT_ROLES_H

static unsigned long unit = 1UL << 20, slabs = 64;
#define UNIT  unit
#define SLABS slabs
#include "../../transport/test-link.h"

#include <sys/resource.h>

#define HOGS_MAX 256

struct end {
	struct world *w;
	struct mc_arena gate; /* the arena as netgate */
	struct mc_ring_end ring;
	bool sparse, hold, insecure;
	unsigned long timeout;
	const char *transport;
	bool poll;
	/* primary */
	uint64_t last, released; /* epochs begun, released */
	uint64_t sync;
	/* backup */
	uint32_t have; /* slabs of the epoch that is being collected */
	uint64_t sync_checked, bad;
	mc_handle hog[HOGS_MAX];
	unsigned hogs;
};

/* --- content --------------------------------------------------------------------------- */

static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static uint64_t seed(uint64_t epoch, uint32_t seq)
{
	return (epoch + 1) * 0x9e3779b97f4a7c15ULL ^ (seq + 1) * 0xc2b2ae3d27d4eb4fULL;
}

/* Fills, or compares: words of 8 bytes (one a page when sparse), the last bytes as they come. */
static bool content(const struct end *e, uint8_t *p, uint64_t n, uint64_t epoch, uint32_t seq,
                    bool check)
{
	uint64_t s = seed(epoch, seq), step = e->sparse ? 4096 : 8, i;

	for (i = 0; i + 8 <= n; i += step) {
		uint64_t v = next(&s), have;

		memcpy(&have, p + i, 8);
		if (!check)
			memcpy(p + i, &v, 8);
		else if (have != v)
			return false;
	}
	for (i = n / 8 * 8; i < n; i++) {
		uint8_t v = (uint8_t)next(&s);

		if (!check)
			p[i] = v;
		else if (p[i] != v)
			return false;
	}
	return true;
}

/* --- backup: restore ------------------------------------------------------------------- */

static uint64_t committed(const struct end *e)
{
	return mc_commit_epoch(atomic_load(&e->w->sup.control->commit));
}

static void drop(struct end *e, uint32_t n)
{
	struct mc_arena *a = &e->w->res;
	mc_handle h;

	while (n-- && mc_ring_peek(&e->ring, 0, &h) == 1) {
		if (mc_pool_claim(&a->slabs, h, MC_ROLE_TRANSPORT) == 0)
			(void)mc_pool_free(&a->slabs, h);
		mc_ring_advance(&e->ring, 1);
	}
	mc_arena_ring(a, MC_ROLE_TRANSPORT);
}

static void check_slab(struct end *e, mc_handle h, const struct mc_slab_meta *m)
{
	if (content(e, mc_pool_data(&e->w->res.slabs, h), m->used, m->epoch, m->seq, true))
		return;
	e->bad++;
	fprintf(stderr, "slab %u of epoch %llu isn't what was sent\n", m->seq,
	        (unsigned long long)m->epoch);
}

static void commit(struct end *e, uint64_t epoch)
{
	struct mc_arena *a = &e->w->res;
	struct mc_control *c = a->control;
	bool first = !committed(e);

	if (first)
		assert_int_equal(mc_commit_reset(c, atomic_load(&c->peer_term_number)), 0);
	assert_int_equal(mc_journal_move(&a->journal, epoch, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED),
	                 0);
	assert_int_equal(mc_commit_advance(c, atomic_load(&c->peer_term_number), epoch), 0);
	(void)mc_journal_move(&a->journal, epoch, MC_EPOCH_STAGED, MC_EPOCH_COMMITTED);
	if (first)
		(void)mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_SYNCING,
		                    MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT);
	atomic_store(&c->applied, epoch);
	(void)mc_journal_move(&a->journal, epoch, MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED);
	drop(e, e->have);
	e->have = 0;
	(void)mc_pool_epoch_done(&a->slabs);
}

/* Looks at the next slab. True: did something. */
static bool restore_step(struct end *e)
{
	struct mc_arena *a = &e->w->res;
	struct mc_slab_meta *m;
	enum mc_epoch_state st;
	mc_handle h;

	if (e->hold)
		return false;
	if (e->have) {
		uint64_t epoch = committed(e) + 1;
		const struct mc_journal_record *rec = mc_journal_get(&a->journal, epoch);

		st = mc_journal_state(&a->journal, epoch);
		if (st == MC_EPOCH_CAPTURED && rec && e->have == atomic_load(&rec->slabs)) {
			commit(e, epoch);
			return true;
		}
	}
	if (mc_ring_peek(&e->ring, e->have, &h) != 1)
		return false;
	if (mc_pool_claim(&a->slabs, h, MC_ROLE_TRANSPORT) < 0 ||
	    !(m = mc_pool_meta(&a->slabs, h))) {
		fprintf(stderr, "a slab in the ring is nobody's\n");
		e->bad++;
		drop(e, 1);
		return true;
	}
	if (!m->epoch) {
		check_slab(e, h, m);
		e->bad += m->seq != (uint32_t)e->sync_checked++;
		atomic_fetch_add(&a->control->sync_applied, 1);
		drop(e, 1);
		return true;
	}
	st = mc_journal_state(&a->journal, m->epoch);
	if (m->epoch <= committed(e) || (st != MC_EPOCH_CAPTURING && st != MC_EPOCH_CAPTURED)) {
		drop(e, e->have + 1);
		e->have = 0;
		return true;
	}
	if (m->seq == 0 && e->have) {
		drop(e, e->have); /* sent again */
		e->have = 0;
		return true;
	}
	if (m->seq != e->have || m->epoch != committed(e) + 1) {
		/* What an aborted try left, or the next epoch: its turn comes after the commit. */
		if (m->epoch == committed(e) + 1 && !e->have) {
			drop(e, 1);
			return true;
		}
		return false;
	}
	check_slab(e, h, m);
	e->have++;
	return true;
}

/* A first copy that broke off: restore clears up and waits for another primary. */
static void begin_anew(struct end *e)
{
	struct mc_control *c = e->w->res.control;

	if (e->hold || state_now(e->w) != MC_STATE_SYNCING || atomic_load(&c->link) != MC_LINK_DOWN)
		return;
	drop(e, UINT32_MAX);
	e->have = 0;
	e->sync_checked = 0;
	atomic_store(&c->sync_applied, 0);
	atomic_store(&c->sync_received, 0);
	(void)mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_SYNCING, MC_STATE_WAITING,
	                    MC_REASON_PEER_LOST);
	mc_arena_ring(&e->w->res, MC_ROLE_TRANSPORT);
}

/* --- primary: capture, stage, netgate -------------------------------------------------- */

static void release(struct end *e)
{
	while (e->released < e->last &&
	       mc_journal_state(&e->w->cap.journal, e->released + 1) == MC_EPOCH_COMMITTED) {
		e->released++;
		assert_int_equal(mc_journal_move(&e->gate.journal, e->released, MC_EPOCH_COMMITTED,
		                                 MC_EPOCH_RELEASED),
		                 0);
	}
}

static void turn(struct end *e, int ms);

static mc_handle new_slab(struct end *e, uint64_t epoch, uint32_t seq, uint64_t bytes)
{
	struct mc_arena *a = &e->w->sta;
	struct mc_slab_meta *m;
	mc_handle h;

	while (mc_pool_alloc(&a->slabs, epoch, false, &h) < 0)
		turn(e, 1);
	m = mc_pool_meta(&a->slabs, h);
	*m = (struct mc_slab_meta){.epoch = epoch,
	                           .seq = seq,
	                           .kind = MC_KIND_ENCODED,
	                           .of_kind = seq ? MC_KIND_PAGES : MC_KIND_STATE,
	                           .used = bytes,
	                           .raw = bytes};
	(void)content(e, mc_pool_data(&a->slabs, h), bytes, epoch, seq, false);
	return h;
}

static void push(struct end *e, mc_handle h)
{
	assert_int_equal(mc_ring_push(&e->ring, h), 0);
	mc_arena_ring(&e->w->sta, MC_ROLE_TRANSPORT);
}

static void begin_epoch(struct end *e, uint32_t n, uint64_t bytes)
{
	struct world *w = e->w;
	uint64_t epoch = e->last + 1;
	struct mc_journal_record *rec;

	if (epoch == 1)
		atomic_store(&w->sup.control->armed_epoch, 1);
	while (mc_journal_begin(&w->cap.journal, epoch) < 0)
		turn(e, 1);
	e->last = epoch;
	rec = mc_journal_get(&w->cap.journal, epoch);
	atomic_store(&rec->base, epoch - 1);
	atomic_store(&rec->raw_bytes, n * bytes);
	atomic_store(&rec->slabs, n);
	assert_int_equal(
	        mc_journal_move(&w->cap.journal, epoch, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED), 0);
	for (uint32_t i = 0; i < n; i++)
		push(e, new_slab(e, epoch, i, bytes));
	assert_int_equal(
	        mc_journal_move(&w->sta.journal, epoch, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED), 0);
	mc_arena_ring(&w->sta, MC_ROLE_TRANSPORT);
}

static bool is_committed(const struct end *e, uint64_t epoch)
{
	return atomic_load(&e->w->cap.journal.shm->last_committed) >= epoch;
}

#endif
