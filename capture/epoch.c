/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One epoch: stop, barrier, device state and scan side by side, copy, cont, hand-over. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

#define BARRIER_LIMIT  (20 * MC_NS_PER_MS)
#define PRESCAN_AGAIN  512 /* than this, written while they were copied: one more round */
#define PRESCAN_ROUNDS 4

struct epoch {
	uint64_t n;
	_Atomic uint64_t *bitmap;
	uint32_t pre_slabs; /* copied before the pause proper */
	uint64_t pages, sum_ns, longest_ns;
	struct pace_tried tried; /* the pre-scan */
	uint64_t state_bytes;
};

static uint64_t slabs_needed(const struct capture *c)
{
	uint64_t slabs = c->dirty_estimate / mc_copyset_pages_max(c->a->slabs.unit) + 2;

	/* More than that is tried, too: only the attempt tells that it is too much. */
	return mc_min_u64(slabs, c->a->slabs.max / 2);
}

bool epoch_has_room(const struct capture *c)
{
	return copy_has_room(c, slabs_needed(c));
}

static int prepare(struct capture *c, struct epoch *e)
{
	struct mc_journal *j = &c->a->journal;
	uint64_t slabs = slabs_needed(c);
	struct mc_journal_record *rec;
	int r;

	carry_merge(c);
	if (!copy_has_room(c, slabs) || carry_number(c, &e->n) < 0)
		return -EAGAIN;
	e->bitmap = c->a->bitmap[e->n % EPOCH_BITMAPS];
	bitmap_clear(e->bitmap, c->a->bitmap_words);
	memset(c->prep.again, 0, c->a->bitmap_words * 8);
	(void)mc_pool_reserve(&c->a->slabs, slabs);
	(void)mc_pool_reserve(&c->a->descs, slabs);
	if (c->rdma)
		rdma_copy_prepare(c->rdma);
	copy_list_init(c);
	r = mc_journal_begin(j, e->n);
	if (r < 0)
		return r == -EBUSY ? -EAGAIN : r;
	rec = mc_journal_get(j, e->n);
	if (!rec)
		return -ESTALE;
	c->owner[e->n % EPOCH_BITMAPS] = e->n;
	atomic_store(&rec->base, carry_base(c));
	return mc_fault(MC_FAULT_CAPTURE_BEGUN);
}

/* Strikes out pages of pre-copied slabs that are, or were, copied again: those in prep.again. */
static void strike_out(struct capture *c, struct epoch *e)
{
	for (uint32_t i = 0; i < e->pre_slabs; i++) {
		struct mc_slab_meta *m = mc_pool_meta(&c->a->slabs, c->list.slab[i]);
		struct mc_page_desc *d = m ? mc_pool_data(&c->a->descs, m->desc) : NULL;

		for (uint32_t p = 0; d && p < m->pages; p++) {
			uint64_t page = c->a->control->block[d[p].block].first_page +
			                d[p].offset / MC_PAGE_SIZE;

			if (!(c->prep.again[page / 64] >> page % 64 & 1) ||
			    d[p].flags & MC_PAGE_STRUCK)
				continue;
			d[p].flags |= MC_PAGE_STRUCK;
			e->tried.struck++;
		}
	}
}

/* Scans in a short stop. */
static int scan_drained(struct capture *c, struct epoch *e, _Atomic uint64_t *also)
{
	uint64_t began, took;
	int64_t n;
	int r = pause_begin(c, false, &began), x;

	if (r < 0)
		return r;
	n = tracker_scan(&c->tracker, e->bitmap, also);
	if (n >= 0 && mc_fault(MC_FAULT_CAPTURE_PRESCANNED) < 0)
		n = -EIO;
	x = pause_leave(c, began, &took);
	e->sum_ns += took;
	e->longest_ns = mc_max_u64(e->longest_ns, took);
	mc_metric_add(mc_worker_metrics(c->w), MC_M_PRESCANS, 1);
	return n < 0 ? (int)n : x;
}

/* Whether the guest has written so much during @ns that one more round is worth its stop. */
static bool worth_a_round(const struct capture *c, uint64_t ns)
{
	return c->dirty_estimate * ns / mc_config_interval_ns(c->a->config) > PRESCAN_AGAIN;
}

/*
 * Much to copy: scan in a short stop, copy while the guest runs, and again what it wrote
 * meanwhile; the pause takes only the rest.  A page that is found again is struck out where it was
 * copied before.
 */
static int prescan(struct capture *c, struct epoch *e)
{
	_Atomic uint64_t *again = (_Atomic uint64_t *)c->prep.again;
	int r = 0;

	for (unsigned round = 0; r == 0 && round < PRESCAN_ROUNDS; round++) {
		uint64_t word = 0, t;

		r = scan_drained(c, e, round ? again : NULL);
		if (r < 0)
			break;
		if (round)
			strike_out(c, e);
		else /* what was carried over is copied in this round as well */
			bitmap_or(e->bitmap, c->a->bitmap[CARRY], c->a->bitmap_words);
		t = mc_now_ns();
		r = copy_pages(c, round ? again : e->bitmap, &word, c->a->bitmap_words, e->n, false,
		               UINT32_MAX, &e->pages);
		e->pre_slabs = c->list.n;
		bitmap_clear(again, c->a->bitmap_words);
		t = mc_now_ns() - t;
		e->tried.copy_ns += t;
		if (!worth_a_round(c, t))
			break;
	}
	e->tried.pages = e->pages;
	e->tried.stop_ns = e->sum_ns;
	return r < 0 ? r : mc_fault(MC_FAULT_CAPTURE_PRECOPIED);
}

static int await_barrier(struct capture *c, struct epoch *e)
{
	struct mc_control *ctl = c->a->control;
	struct mc_bell *bell = &c->a->proc[MC_ROLE_CAPTURE].bell;
	int fd = c->a->bell_fd[MC_ROLE_CAPTURE];
	uint64_t end = mc_now_ns() + BARRIER_LIMIT;

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		uint64_t now = mc_now_ns();
		struct timespec ts = {.tv_nsec = now < end ? (long)(end - now) : 0};

		mc_bell_sleep(bell);
		if (atomic_load_explicit(&ctl->barrier_done, memory_order_acquire) >= e->n)
			return 0;
		if (atomic_load(&ctl->gate_error) || atomic_load(&ctl->barrier_failed) >= e->n ||
		    now >= end)
			return -ETIME;
		(void)ppoll(&p, 1, &ts, NULL);
		mc_bell_awake(bell, fd);
	}
}

/* Words of the final scan that hold something: copies them. */
static int copy_final(struct capture *c, struct epoch *e)
{
	const _Atomic uint64_t *set = (const _Atomic uint64_t *)c->prep.again;
	uint64_t word = 0;

	if (e->pre_slabs) {
		/* The last slab of the pre-scan stays as it is: strike-out walks slabs [0,
		 * pre_slabs). */
		c->list.meta = NULL;
	} else {
		bitmap_or(e->bitmap, c->a->bitmap[CARRY], c->a->bitmap_words);
		set = e->bitmap;
	}
	return copy_pages(c, set, &word, c->a->bitmap_words, e->n, true, UINT32_MAX, &e->pages);
}

/* What happens while the guest stands still and QEMU writes its device state. */
static int inside_pause(struct capture *c, struct epoch *e)
{
	struct mc_metrics_block *m = mc_worker_metrics(c->w);
	struct mc_control *ctl = c->a->control;
	bool gated = c->a->config->gate != MC_GATE_NONE;
	uint64_t t0, t1, t2;
	int64_t n;
	int r;

	if (gated) {
		atomic_store_explicit(&ctl->barrier_req, e->n, memory_order_release);
		mc_arena_ring(c->a, MC_ROLE_NETGATE);
		(void)mc_fault(MC_FAULT_CAPTURE_BARRIER);
	}
	if (tracker_needs_quiet(&c->tracker))
		pause_await_saved(c);
	t0 = mc_now_ns();
	n = tracker_scan(&c->tracker, e->bitmap, (_Atomic uint64_t *)c->prep.again);
	t1 = mc_now_ns();
	r = n < 0 ? (int)n : mc_fault(MC_FAULT_CAPTURE_SCANNED);
	if (r == 0)
		r = copy_final(c, e);
	if (r == 0)
		r = mc_fault(MC_FAULT_CAPTURE_COPIED);
	t2 = mc_now_ns();
	if (r == 0 && gated)
		r = await_barrier(c, e);
	if (r == 0)
		r = mc_fault(MC_FAULT_CAPTURE_BARRIER_SET);
	mc_metric_set(m, MC_M_LOG_DIRTY_TIME, t1 - t0);
	mc_metric_set(m, MC_M_BITMAP_TIME, t1 - t0);
	mc_metric_set(m, MC_M_RAM_COPY_TIME, t2 - t1);
	mc_metric_set(m, MC_M_BARRIER_TIME, mc_now_ns() - t2);
	mc_metric_set(m, MC_M_DIRTY_PAGES, n > 0 ? (uint64_t)n : 0);
	return r;
}

/* The guest runs again: takes the device state over, which QEMU has written meanwhile. */
static int take_state(struct capture *c, struct epoch *e)
{
	off_t len;
	int r;

	if (c->saved < 0)
		return c->saved;
	/* QEMU's copy of the descriptor shares our file offset. */
	len = lseek(c->state_out, 0, SEEK_CUR);
	if (len <= 0)
		return -EIO;
	e->state_bytes = (uint64_t)len;
	r = copy_state(c, e->n, e->state_bytes);
	return r < 0 ? r : mc_fault(MC_FAULT_CAPTURE_STATE_COPIED);
}

static int pause_and_copy(struct capture *c, struct epoch *e)
{
	struct mc_metrics_block *m = mc_worker_metrics(c->w);
	uint64_t began, stopped, ready, took;
	int r = pause_begin(c, true, &began), x;

	if (r < 0)
		return r;
	stopped = mc_now_ns();
	r = inside_pause(c, e);
	ready = mc_now_ns();
	x = c->keep_paused ? pause_keep(c, began, &took) : pause_leave(c, began, &took);
	e->sum_ns += took;
	e->longest_ns = mc_max_u64(e->longest_ns, took);
	mc_metric_set(m, MC_M_STOP_TIME, stopped - began);
	mc_metric_set(m, MC_M_STATE_TIME, c->saved_at - stopped);
	mc_metric_set(m, MC_M_CONT_TIME, began + took - mc_max_u64(ready, c->saved_at));
	if (r == 0)
		r = x;
	return r < 0 ? r : take_state(c, e);
}

/* The device state goes first: seq 0. */
static void state_first(struct capture *c)
{
	struct slab_list *l = &c->list;
	mc_handle state = l->slab[l->n - 1];

	memmove(l->slab + 1, l->slab, (l->n - 1) * sizeof(l->slab[0]));
	l->slab[0] = state;
}

static int check_sections(struct capture *c, const struct epoch *e)
{
	struct mc_slab_meta *m = mc_pool_meta(&c->a->slabs, c->list.slab[c->list.n - 1]);
	const uint8_t *state = mc_pool_data(&c->a->slabs, c->list.slab[c->list.n - 1]);
	char what[256];
	int r;

	if (!m || !state)
		return -ESTALE;
	r = sections_changed(c, state, e->state_bytes, what, sizeof(what));
	if (r == 1) {
		mc_err("the guest's devices changed: %s; protection can't go on, protect it again "
		       "with a standby that has the same devices",
		       what);
		mc_control_refuse(c->a->control,
		                  "devices changed: %s; protect it again, with a standby that has "
		                  "the same devices",
		                  what);
		mc_worker_event(c->w, "hotplug", e->n, "devices changed: %s", what);
		atomic_store(&c->a->control->guest_end, MC_REASON_HOTPLUG);
		c->phase = PHASE_ENDING;
	}
	return r == 1 ? -ECANCELED : r;
}

static void record(struct capture *c, const struct epoch *e, struct mc_journal_record *rec)
{
	struct mc_metrics_block *m = mc_worker_metrics(c->w);
	uint64_t copy_ns = mc_metric_get(m, MC_M_RAM_COPY_TIME);

	atomic_store(&rec->pages, e->pages);
	atomic_store(&rec->state_bytes, e->state_bytes);
	atomic_store(&rec->raw_bytes, e->pages * MC_PAGE_SIZE + e->state_bytes);
	atomic_store(&rec->pause_ns, e->sum_ns);
	atomic_store(&rec->longest_ns, e->longest_ns);
	atomic_store(&rec->slabs, c->list.n);
	mc_metric_add(m, MC_M_CHECKPOINTS, 1);
	mc_metric_add(m, MC_M_PAGES_TOTAL, e->pages);
	mc_metric_set(m, MC_M_STATE_BYTES, e->state_bytes);
	mc_metric_set(m, MC_M_DOWNTIME, e->sum_ns);
	mc_metric_set(m, MC_M_LONGEST_STOP, e->longest_ns);
	mc_metric_set(m, MC_M_COPY_MBPS,
	              copy_ns ? e->pages * MC_PAGE_SIZE * 8 * 1000 / copy_ns : 0);
	mc_histogram_add(&m->hist[MC_H_PAUSE], e->sum_ns);
	mc_histogram_add(&m->hist[MC_H_LONGEST], e->longest_ns);
}

static int hand_over(struct capture *c, struct epoch *e)
{
	struct mc_journal *j = &c->a->journal;
	struct mc_journal_record *rec = mc_journal_get(j, e->n);
	int r = check_sections(c, e);

	if (r < 0)
		return r;
	if (!rec)
		return -ESTALE;
	strike_out(c, e);
	if (e->pre_slabs)
		pace_prescan_done(&c->prescan, &e->tried);
	state_first(c);
	record(c, e, rec);
	r = copy_list_push(c, 0);
	if (r < 0)
		return r;
	r = mc_fault(MC_FAULT_CAPTURE_PUSHED);
	if (r == 0)
		r = mc_journal_move(j, e->n, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED);
	if (r < 0)
		return r;
	/* From here on the epoch's own bitmap answers for its pages. */
	bitmap_clear(c->a->bitmap[CARRY], c->a->bitmap_words);
	(void)mc_fault(MC_FAULT_CAPTURE_CARRY);
	/* A page that the backup was found to have keeps its mark until it is sent. */
	bitmap_and_not(c->a->bitmap[NOBASE], e->bitmap, c->a->bitmap_words);
	c->dirty_estimate = e->pages;
	/* The worker that encoded the last slab before the number of slabs was known. */
	for (unsigned n = 0; n < MC_STAGES_MAX; n++)
		mc_arena_ring(c->a, mc_role_stage(n));
	return 0;
}

/* What the backup holds can't be brought up to date any more: it must not take over later. */
static void tracking_lost(struct capture *c, const struct epoch *e)
{
	mc_control_refuse(c->a->control, TRACKING_LOST);
	mc_err(TRACKING_LOST);
	mc_worker_event(c->w, "tracking-lost", e->n, TRACKING_LOST);
	atomic_store(&c->a->control->guest_end, MC_REASON_TRACKING);
	c->phase = PHASE_ENDING;
}

/* It won't get smaller: rather said at once than tried again and again. */
static void state_too_large(struct capture *c, const struct epoch *e)
{
	uint64_t unit = c->a->slabs.unit, fits = unit;
	char why[MC_WHY_MAX];

	while (mc_copyset_state_max(fits) < e->state_bytes)
		fits *= 2;
	snprintf(why, sizeof(why),
	         "the device state of %llu bytes doesn't fit into a slab of %llu: the guest runs "
	         "unprotected; protect it again with slab-size %llu or more, on both hosts",
	         (unsigned long long)e->state_bytes, (unsigned long long)unit,
	         (unsigned long long)fits);
	mc_control_refuse(c->a->control, "%s", why);
	mc_err("%s", why);
	mc_worker_event(c->w, "overload", e->n, "%s", why);
	atomic_store(&c->a->control->guest_end, MC_REASON_OVERLOAD);
	c->phase = PHASE_ENDING;
}

static void give_up(struct capture *c, struct epoch *e, int error)
{
	if (error == -EUCLEAN)
		tracking_lost(c, e);
	else if (error == -EMSGSIZE)
		state_too_large(c, e);
	copy_list_free(c);
	(void)mc_journal_abort_from(&c->a->journal, e->n, error);
	carry_merge(c);
	mc_metric_add(mc_worker_metrics(c->w), MC_M_ABORTS, 1);
	mc_arena_ring_all(c->a);
}

int epoch_take(struct capture *c)
{
	struct epoch e = {0};
	int r = prepare(c, &e);

	if (r == -EAGAIN)
		return r;
	/* The barrier of the first epoch shuts the gate: netgate must know it before it is set. */
	if (r == 0 && !atomic_load(&c->a->control->armed_epoch))
		atomic_store(&c->a->control->armed_epoch, e.n);
	if (r == 0 && pace_wants_prescan(&c->prescan, c->dirty_estimate))
		r = prescan(c, &e);
	if (r == 0)
		r = pause_and_copy(c, &e);
	if (r == 0)
		r = hand_over(c, &e);
	if (r < 0)
		give_up(c, &e, r);
	if (!c->qmp_dead && !atomic_load(&c->a->control->paused))
		pause_prepare(c);
	return r;
}
