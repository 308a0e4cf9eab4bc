/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is around a mc-stage in its tests: a guest's RAM, its capture, its transport. */
#ifndef MC_STAGE_TEST_WORLD_H
#define MC_STAGE_TEST_WORLD_H

#include "../ipc/test-process.h"
#include "../ipc/worker.h"
#include "test-decoder.h"

#define UNIT    (256ULL << 10)
#define SLABS   64
#define PAGES   2048ULL
#define WORKERS 3
#define KEPT    4 /* epochs between stage and commit */
#define STATE   5000

struct sent {
	uint64_t epoch;
	uint32_t n;
	mc_handle slab[SLABS];
};

struct world {
	struct mc_arena sup, cap, tra;
	struct proc worker[WORKERS];
	unsigned workers;
	struct mc_ring_end to[WORKERS], from[WORKERS];
	struct backup backup;
	struct sent sent[KEPT];
	uint8_t *guest;          /* its RAM now */
	uint8_t nobase[PAGES];   /* flags of pages whose last content the backup may lack */
	uint8_t carry[PAGES];    /* pages of aborted epochs */
	uint8_t in[KEPT][PAGES]; /* pages of the epochs, by number */
	uint64_t base, committed;
	uint32_t repeats;
	unsigned seed;
};

static uint32_t pick(struct world *w, uint32_t n)
{
	return (uint32_t)rand_r(&w->seed) % n;
}

static void start(struct world *w, unsigned i)
{
	proc_start(&w->worker[i], &w->sup, mc_role_stage(i));
}

static struct world *world_new(unsigned workers)
{
	struct mc_arena_params p = {.slab_size = UNIT,
	                            .max_memory = SLABS * UNIT,
	                            .delta_cache = 4 << 20,
	                            .ram_pages = PAGES,
	                            .side = MC_SIDE_PRIMARY};
	struct world *w = calloc(1, sizeof(*w));

	assert_int_equal(mc_arena_create(&w->sup, NULL, &p), 0);
	w->sup.config->side = MC_SIDE_PRIMARY;
	strcpy(w->sup.config->guest, "test");
	atomic_store(&w->sup.config->stage_workers, workers);
	atomic_store(&w->sup.control->blocks, 1);
	arena_as(&w->cap, &w->sup, MC_ROLE_CAPTURE);
	arena_as(&w->tra, &w->sup, MC_ROLE_TRANSPORT);
	backup_new(&w->backup, UNIT, 1, PAGES * MC_PAGE_SIZE);
	w->guest = calloc(PAGES, MC_PAGE_SIZE);
	w->workers = workers;
	w->seed = 7;
	for (unsigned i = 0; i < workers; i++) {
		assert_int_equal(
		        mc_ring_attach_producer(&w->to[i], w->cap.ring_stage[i], w->cap.ring_slots),
		        0);
		assert_int_equal(mc_ring_attach_consumer(&w->from[i], w->tra.ring_transport[i],
		                                         w->tra.ring_slots),
		                 0);
		start(w, i);
	}
	return w;
}

/* Nothing may be left in the pools. */
static void world_end(struct world *w)
{
	for (unsigned i = 0; i < w->workers; i++)
		if (w->worker[i].pid)
			proc_end(&w->worker[i]);
	assert_int_equal(pool_owned(&w->sup.slabs), 0);
	assert_int_equal(pool_owned(&w->sup.descs), 0);
	backup_free(&w->backup);
	mc_arena_done(&w->sup);
	mc_arena_done(&w->cap);
	mc_arena_done(&w->tra);
	free(w->guest);
	free(w);
}

/* --- capture --------------------------------------------------------------------------- */

static void dirty_page(struct world *w, uint64_t page)
{
	uint8_t *p = w->guest + page * MC_PAGE_SIZE;

	switch (pick(w, 4)) {
	case 0:
		memset(p, 0, MC_PAGE_SIZE);
		break;
	case 1:
		for (size_t i = 0; i < MC_PAGE_SIZE; i++)
			p[i] = (uint8_t)pick(w, 256);
		break;
	default:
		p[pick(w, MC_PAGE_SIZE)]++;
	}
}

static mc_handle raw_slab(struct world *w, uint64_t epoch, uint32_t seq, enum mc_slab_kind kind)
{
	struct mc_slab_meta *m;
	mc_handle h;

	assert_int_equal(mc_pool_alloc(&w->cap.slabs, epoch, false, &h), 0);
	m = mc_pool_meta(&w->cap.slabs, h);
	m->seq = seq;
	m->kind = kind;
	if (kind == MC_KIND_PAGES)
		assert_int_equal(mc_pool_alloc(&w->cap.descs, epoch, false, &m->desc), 0);
	return h;
}

static void push(struct world *w, uint32_t seq, mc_handle h)
{
	assert_int_equal(mc_ring_push(&w->to[seq % w->workers], h), 0);
	mc_arena_ring(&w->cap, mc_role_stage(seq % w->workers));
}

static void state_slab(struct world *w, uint64_t epoch)
{
	mc_handle h = raw_slab(w, epoch, 0, MC_KIND_STATE);

	memset(mc_pool_data(&w->cap.slabs, h), (int)(epoch & 0xff), STATE);
	mc_pool_meta(&w->cap.slabs, h)->used = STATE;
	push(w, 0, h);
}

/* Slabs of the pages that are set; the number of the next one. */
static uint32_t page_slabs(struct world *w, uint64_t epoch, uint32_t seq, const uint8_t *set)
{
	uint64_t max = mc_copyset_pages_max(UNIT);
	struct mc_slab_meta *m = NULL;
	mc_handle h = MC_HANDLE_NONE;

	for (uint64_t p = 0; p < PAGES; p++) {
		struct mc_page_desc *d;

		if (!set[p])
			continue;
		if (m && m->pages == max) {
			push(w, seq++, h);
			m = NULL;
		}
		if (!m) {
			h = raw_slab(w, epoch, seq, MC_KIND_PAGES);
			m = mc_pool_meta(&w->cap.slabs, h);
		}
		d = mc_pool_data(&w->cap.descs, m->desc);
		d[m->pages] = (struct mc_page_desc){.offset = p * MC_PAGE_SIZE,
		                                    .flags = w->nobase[p] ? MC_PAGE_NOBASE : 0};
		memcpy((uint8_t *)mc_pool_data(&w->cap.slabs, h) + m->pages++ * MC_PAGE_SIZE,
		       w->guest + p * MC_PAGE_SIZE, MC_PAGE_SIZE);
		m->used += MC_PAGE_SIZE;
	}
	if (m)
		push(w, seq++, h);
	return seq;
}

static uint64_t begin(struct world *w)
{
	struct mc_journal *j = &w->cap.journal;
	uint64_t n = atomic_load(&j->shm->last_begun) + 1;

	assert_int_equal(mc_journal_begin(j, n), 0);
	atomic_store(&mc_journal_get(j, n)->base, w->base);
	return n;
}

static void captured(struct world *w, uint64_t n, uint32_t slabs)
{
	struct mc_journal *j = &w->cap.journal;

	atomic_store(&mc_journal_get(j, n)->slabs, slabs);
	assert_int_equal(mc_journal_move(j, n, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED), 0);
	memset(w->carry, 0, sizeof(w->carry));
	memset(w->nobase, 0, sizeof(w->nobase));
	w->base = n;
	mc_arena_ring_all(&w->cap);
}

/* Writes to the guest's RAM and hands the epoch over up to the move to CAPTURED. */
static uint64_t hand_over(struct world *w, uint32_t *slabs)
{
	uint64_t n = begin(w);
	uint8_t *set = w->in[n % KEPT];
	uint64_t first = pick(w, PAGES - 400);

	memcpy(set, w->carry, PAGES);
	for (uint64_t p = first; p < first + 400; p++) {
		if (pick(w, 2))
			continue;
		dirty_page(w, p);
		set[p] = 1;
	}
	state_slab(w, n);
	*slabs = page_slabs(w, n, 1, set);
	return n;
}

static uint64_t capture(struct world *w)
{
	uint32_t slabs;
	uint64_t n = hand_over(w, &slabs);

	captured(w, n, slabs);
	return n;
}

/* What capture does when it notices. */
static void merge_aborted(struct world *w, uint64_t n)
{
	for (uint64_t p = 0; p < PAGES; p++) {
		w->carry[p] |= w->in[n % KEPT][p];
		w->nobase[p] |= w->in[n % KEPT][p];
	}
	w->base = w->committed;
}

/* --- transport ------------------------------------------------------------------------- */

static struct sent *sent_of(struct world *w, uint64_t epoch)
{
	struct sent *s = &w->sent[epoch % KEPT];

	if (s->epoch != epoch) {
		assert_int_equal(s->n, 0);
		memset(s, 0, sizeof(*s));
		s->epoch = epoch;
	}
	return s;
}

static void collect(struct world *w)
{
	for (unsigned i = 0; i < w->workers; i++) {
		struct mc_slab_meta *m;
		struct sent *s;
		mc_handle h;

		while (mc_ring_peek(&w->from[i], 0, &h) == 1) {
			assert_int_equal(mc_pool_claim(&w->tra.slabs, h, mc_role_stage(i)), 0);
			m = mc_pool_meta(&w->tra.slabs, h);
			assert_int_equal(m->kind, MC_KIND_ENCODED);
			assert_true(m->epoch > w->committed && m->seq < SLABS);
			s = sent_of(w, m->epoch);
			if (s->slab[m->seq]) {
				w->repeats++;
				assert_int_equal(mc_pool_free(&w->tra.slabs, h), 0);
			} else {
				s->slab[m->seq] = h;
				s->n++;
			}
			mc_ring_advance(&w->from[i], 1);
		}
	}
}

static void drop_sent(struct world *w, struct sent *s)
{
	for (uint32_t i = 0; i < SLABS; i++)
		if (s->slab[i])
			assert_int_equal(mc_pool_free(&w->tra.slabs, s->slab[i]), 0);
	memset(s, 0, sizeof(*s));
	mc_arena_ring_all(&w->tra);
}

static void check_slab(struct world *w, uint64_t epoch, uint32_t seq, mc_handle h)
{
	const struct mc_slab_meta *m = mc_pool_meta(&w->tra.slabs, h);
	struct mc_enc_view v;

	assert_int_equal(m->seq, seq);
	if (!backup_decode(&w->backup, mc_pool_data(&w->tra.slabs, h), m->used, &v))
		fail_msg("epoch %d, slab %u: a page's hash doesn't fit", (int)epoch, seq);
	assert_int_equal(v.h.epoch, epoch);
	assert_int_equal(v.h.seq, seq);
	assert_int_equal(v.h.of_kind, seq ? MC_KIND_PAGES : MC_KIND_STATE);
	for (int i = 0; !seq && i < STATE; i++)
		assert_int_equal(w->backup.stream[i], epoch & 0xff);
}

/* Takes what is there; commits an epoch that is STAGED. */
static void transport_turn(struct world *w)
{
	struct mc_journal *j = &w->tra.journal, gate = *j;
	uint64_t n = w->committed + 1;

	while (mc_journal_state(j, n) == MC_EPOCH_ABORTED)
		n++;
	if (mc_journal_state(j, n) != MC_EPOCH_STAGED) {
		collect(w);
		return;
	}
	collect(w);
	/* STAGED says that all of it is there. */
	assert_int_equal(sent_of(w, n)->n, atomic_load(&mc_journal_get(j, n)->slabs));
	for (uint32_t i = 0; i < sent_of(w, n)->n; i++)
		check_slab(w, n, i, sent_of(w, n)->slab[i]);
	assert_int_equal(mc_journal_move(j, n, MC_EPOCH_STAGED, MC_EPOCH_SENT), 0);
	assert_int_equal(mc_journal_move(j, n, MC_EPOCH_SENT, MC_EPOCH_COMMITTED), 0);
	gate.role = MC_ROLE_NETGATE;
	assert_int_equal(mc_journal_move(&gate, n, MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED), 0);
	w->committed = n;
	drop_sent(w, sent_of(w, n));
}

static bool committed_all(void *ctx)
{
	struct world *w = ctx;

	transport_turn(w);
	return w->committed == w->base;
}

/* A repeat may come behind the epoch's end, as a successor's last act. */
static bool nothing_owned(void *ctx)
{
	struct world *w = ctx;

	for (unsigned i = 0; i < w->workers; i++) {
		mc_handle h;

		while (mc_ring_peek(&w->from[i], 0, &h) == 1) {
			if (mc_pool_claim(&w->tra.slabs, h, mc_role_stage(i)) == 0)
				(void)mc_pool_free(&w->tra.slabs, h);
			mc_ring_advance(&w->from[i], 1);
		}
	}
	return !pool_owned(&w->sup.slabs) && !pool_owned(&w->sup.descs);
}

static void check_ram(struct world *w)
{
	assert_memory_equal(w->backup.ram[0], w->guest, PAGES * MC_PAGE_SIZE);
}

#endif
