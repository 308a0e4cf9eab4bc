/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mc-restore as a process beside a real QEMU that waits; the test plays supervisor and transport.
 */
#ifndef MC_RESTORE_TEST_STANDBY_H
#define MC_RESTORE_TEST_STANDBY_H

#include <sys/mman.h>

#include "../ipc/test-process.h"
#include "../qmp/test-guest.h"
#include "test-encoder.h"

#define UNIT     (256ULL << 10)
#define SLABS    64
#define PAGES    1024ULL /* of the standby's RAM that the tests write to */
#define RAM_SIZE (64 * MIB)
#define STATE    3000
#define TERM     5
#define FOREVER  600000 /* ms */

#define STANDBY "-m 64 -object memory-backend-file,id=ram,size=64M,mem-path=%s,share=on -machine "
#define OLD_WAY " -incoming defer -global migration.send-configuration=off"

struct world {
	struct guest qemu;
	struct mc_arena sup, tra;
	struct proc restore;
	struct mc_ring_end to;
	uint8_t *ram;  /* the standby's */
	uint8_t *want; /* what it must be once all is applied */
	uint64_t last; /* epoch sent last */
	unsigned seed;
};

static inline uint32_t pick(struct world *w, uint32_t n)
{
	return (uint32_t)rand_r(&w->seed) % n;
}

static inline void standby_start(struct world *w, const char *args)
{
	int fd;

	guest_start(&w->qemu, args);
	w->qemu.q = qmp_free(w->qemu.q); /* the monitor is for mc-restore */
	fd = open(w->qemu.ram, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	w->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(w->ram != MAP_FAILED);
	close(fd);
}

static inline void arena_new(struct world *w)
{
	struct mc_arena_params p = {.slab_size = UNIT,
	                            .max_memory = SLABS * UNIT,
	                            .ram_pages = RAM_SIZE / MC_PAGE_SIZE,
	                            .side = MC_SIDE_BACKUP};
	struct mc_config *c;

	assert_int_equal(mc_arena_create(&w->sup, NULL, &p), 0);
	c = w->sup.config;
	c->side = MC_SIDE_BACKUP;
	strcpy(c->guest, "test");
	snprintf(c->qmp, sizeof(c->qmp), "%s", w->qemu.sock);
	atomic_store(&c->failure_timeout_ms, FOREVER);
	atomic_store(&c->restart_grace_ms, 60000);
	arena_as(&w->tra, &w->sup, MC_ROLE_TRANSPORT);
	assert_int_equal(mc_ring_attach_producer(&w->to, w->tra.ring_restore, w->tra.ring_slots),
	                 0);
	assert_int_equal(mc_state_move(w->sup.control, MC_SIDE_BACKUP, MC_ROLE_SUPERVISOR,
	                               MC_STATE_NONE, MC_STATE_WAITING, MC_REASON_STARTED),
	                 0);
}

static inline enum mc_state state_now(const struct world *w)
{
	return mc_state_of(atomic_load(&w->sup.control->state));
}

static inline uint64_t committed(const struct world *w)
{
	return mc_commit_epoch(atomic_load(&w->sup.control->commit));
}

static inline bool is_ready(void *ctx)
{
	struct world *w = ctx;

	return atomic_load(&w->sup.control->standby_ready);
}

static inline bool is_in_state(void *ctx, enum mc_state s)
{
	return state_now(ctx) == s;
}
static inline bool is_stopped(void *ctx)
{
	return is_in_state(ctx, MC_STATE_STOPPED);
}
static inline bool is_waiting(void *ctx)
{
	return is_in_state(ctx, MC_STATE_WAITING);
}
static inline bool is_active(void *ctx)
{
	return is_in_state(ctx, MC_STATE_ACTIVE) || is_in_state(ctx, MC_STATE_STOPPED);
}

static inline void restore_start(struct world *w)
{
	/* A child that the dead one had just forked lets go of its place as soon as it runs. */
	for (uint64_t end = mc_now_ns() + PROC_LIMIT_NS;
	     mc_arena_place_taken(&w->sup, MC_ROLE_RESTORE);)
		assert_true(mc_now_ns() < end);
	proc_start(&w->restore, &w->sup, MC_ROLE_RESTORE);
}

static inline struct world *world_new(const char *args)
{
	struct world *w = calloc(1, sizeof(*w));

	w->seed = 11;
	w->want = calloc(1, RAM_SIZE);
	standby_start(w, args);
	arena_new(w);
	restore_start(w);
	if (!wait_until(&w->tra, is_ready, w))
		fail_msg("no standby: %s", w->sup.control->refusal);
	return w;
}

static inline void world_end(struct world *w)
{
	if (w->restore.pid)
		proc_end(&w->restore);
	munmap(w->ram, RAM_SIZE);
	guest_end(&w->qemu);
	mc_arena_done(&w->sup);
	mc_arena_done(&w->tra);
	free(w->want);
	free(w);
}

/* --- transport ------------------------------------------------------------------------- */

static inline void alive(struct world *w)
{
	atomic_store(&w->tra.control->last_rx, mc_now_ns());
}

static inline void link_up(struct world *w)
{
	struct mc_control *c = w->tra.control;

	alive(w);
	atomic_store(&c->link_closed, 0);
	atomic_store(&c->link, MC_LINK_UP);
	mc_arena_ring_all(&w->tra);
}

static inline void link_down(struct world *w)
{
	struct mc_control *c = w->tra.control;

	atomic_store(&c->link_closed, mc_now_ns());
	atomic_store(&c->link, MC_LINK_DOWN);
	mc_arena_ring_all(&w->tra);
}

/* A primary was let in: the first copy begins. */
static inline void admit(struct world *w, uint64_t term)
{
	struct mc_control *c = w->tra.control;

	atomic_store(&c->peer_term_number, term);
	atomic_store(&c->sync_received, 0);
	atomic_store(&c->peer_end, 0);
	link_up(w);
	assert_int_equal(mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_TRANSPORT, MC_STATE_WAITING,
	                               MC_STATE_SYNCING, MC_REASON_STARTED),
	                 0);
	memset(w->want, 0, RAM_SIZE);
	w->last = 0;
	mc_arena_ring_all(&w->tra);
}

/* An empty slab that transport is about to receive into. */
static inline uint8_t *landing(struct world *w, uint64_t epoch, mc_handle *h)
{
	assert_int_equal(mc_pool_alloc(&w->tra.slabs, epoch, false, h), 0);
	return mc_pool_data(&w->tra.slabs, *h);
}

static inline void push_slab(struct world *w, mc_handle h, uint64_t epoch, uint32_t seq, size_t len)
{
	*mc_pool_meta(&w->tra.slabs, h) = (struct mc_slab_meta){
	        .epoch = epoch, .seq = seq, .kind = MC_KIND_ENCODED, .used = len};
	assert_int_equal(mc_ring_push(&w->to, h), 0);
	mc_arena_ring(&w->tra, MC_ROLE_RESTORE);
}

static inline void push_state(struct world *w, uint64_t epoch, const uint8_t *state, size_t n)
{
	mc_handle h;
	uint8_t *to = landing(w, epoch, &h);

	push_slab(w, h, epoch, 0, test_state(to, epoch, 0, state, n));
}

/* Writes to @n random pages of @want, and sends them in one slab as they come out. */
static inline void push_pages(struct world *w, uint64_t epoch, uint64_t base, uint32_t seq,
                              uint64_t first, uint32_t n)
{
	mc_autofree struct test_page *page = calloc(n, sizeof(*page));
	mc_autofree uint8_t *old = malloc(n * MC_PAGE_SIZE);
	mc_handle h;
	uint8_t *to = landing(w, epoch, &h);

	for (uint32_t i = 0; i < n; i++) {
		uint8_t *p = w->want + (first + i) * MC_PAGE_SIZE;

		memcpy(old + i * MC_PAGE_SIZE, p, MC_PAGE_SIZE);
		page[i] = (struct test_page){.method = (uint16_t)pick(w, base ? 3 : 2),
		                             .offset = (first + i) * MC_PAGE_SIZE,
		                             .content = p,
		                             .base = old + i * MC_PAGE_SIZE};
		if (page[i].method == MC_PAGE_ZERO)
			memset(p, 0, MC_PAGE_SIZE);
		else
			for (int k = 0; k < 50; k++)
				p[pick(w, MC_PAGE_SIZE)] = (uint8_t)pick(w, 256);
	}
	push_slab(w, h, epoch, seq, test_pages(to, epoch, base, seq, page, n, true));
}

static inline void push_sync(struct world *w, uint32_t seq, uint64_t first, uint32_t n)
{
	push_pages(w, 0, 0, seq, first, n);
	atomic_fetch_add(&w->tra.control->sync_received, 1);
	mc_arena_ring(&w->tra, MC_ROLE_RESTORE);
}

static inline void begin_epoch(struct world *w, uint64_t n, uint64_t base, uint32_t slabs)
{
	struct mc_journal *j = &w->tra.journal;

	assert_int_equal(mc_journal_rebegin(j, n), 0);
	atomic_store(&mc_journal_get(j, n)->base, base);
	atomic_store(&mc_journal_get(j, n)->slabs, slabs);
}

static inline void end_epoch(struct world *w, uint64_t n)
{
	(void)mc_journal_move(&w->tra.journal, n, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED);
	w->last = n;
	mc_arena_ring(&w->tra, MC_ROLE_RESTORE);
}

static inline void fill_state(uint8_t *state, uint64_t epoch)
{
	memset(state, (int)(epoch & 0xff), STATE);
}

/* A whole epoch of @slabs slabs, the first of them the device state. */
static inline void send_epoch(struct world *w, uint64_t n, uint64_t base, uint32_t slabs)
{
	uint8_t state[STATE];

	begin_epoch(w, n, base, slabs);
	fill_state(state, n);
	push_state(w, n, state, sizeof(state));
	for (uint32_t i = 1; i < slabs; i++)
		push_pages(w, n, base, i, i * 60 + pick(w, 10), 1 + pick(w, 50));
	end_epoch(w, n);
}

static inline bool is_applied(void *ctx)
{
	struct world *w = ctx;

	/* What is left is the device state. */
	return atomic_load(&w->tra.control->applied) == w->last && !mc_ring_depth(w->to.ring) &&
	       pool_owned(&w->sup.slabs) == 1 && pool_owned(&w->sup.descs) == 0;
}

static inline void check_ram(struct world *w)
{
	assert_memory_equal(w->ram, w->want, RAM_SIZE);
}

/* All that was sent is committed and applied, and what it took is free again. */
static inline void check_applied(struct world *w)
{
	if (!wait_until(&w->tra, is_applied, w))
		fail_msg("epoch %d isn't applied: state %s, committed %d, nack %d, %s, %d slabs",
		         (int)w->last, mc_state_name(state_now(w)), (int)committed(w),
		         (int)atomic_load(&w->tra.control->nack_epoch),
		         mc_epoch_state_name(mc_journal_state(&w->tra.journal, w->last)),
		         (int)pool_owned(&w->sup.slabs));
	assert_int_equal(committed(w), w->last);
	check_ram(w);
}

/* A first copy of two slabs, and the first epoch. */
static inline void arm(struct world *w)
{
	admit(w, TERM);
	push_sync(w, 0, 0, 50);
	push_sync(w, 1, 50, 50);
	send_epoch(w, 1, 0, 3);
	check_applied(w);
	assert_int_equal(state_now(w), MC_STATE_PROTECTED);
}

#define Q35 STANDBY "q35,memory-backend=ram" OLD_WAY

/* An armed standby whose restore is dead; @as: its arena, as that had it. */
static inline struct world *orphan(struct mc_arena *as)
{
	struct world *w = world_new(Q35);

	arena_as(as, &w->sup, MC_ROLE_RESTORE);
	arm(w);
	proc_kill(&w->restore);
	return w;
}

static inline uint64_t refused(const struct world *w)
{
	return mc_metric_get(&w->sup.metrics[MC_ROLE_RESTORE], MC_M_REFUSED_EPOCHS);
}

static inline bool second_is_released(void *ctx)
{
	struct world *w = ctx;

	return mc_journal_state(&w->tra.journal, 2) == MC_EPOCH_RELEASED;
}

static inline bool second_is_aborted(void *ctx)
{
	struct world *w = ctx;

	return mc_journal_state(&w->tra.journal, 2) == MC_EPOCH_ABORTED;
}

static inline int sweep(void **state)
{
	(void)procs_sweep(state);
	return guests_sweep(state);
}

#endif
