/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "uffd-scan.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"
#include "hot.h"
#include "pagemap-scan.h"
#include "populated.h"
#include "tracker-private.h"

#define LANES      2
#define LANE_SLOTS (MC_VECTOR_REGIONS / LANES)
#define CHUNKS     16 /* of the smallest scan that two threads share */

struct chunk {
	unsigned block;
	struct populated_run run;
	bool protects; /* what is reported; else it stays written */
};

/* Whether the second thread takes part in a scan. */
enum offer { NONE, OFFERED, TAKEN };

/* One thread's share of a scan. */
struct lane {
	int64_t pages;
	int error; /* negative errno */
};

struct uffd_scan {
	struct tracker *t;
	struct populated populated[VM_BLOCKS_MAX];
	struct hot hot[VM_BLOCKS_MAX];
	struct chunk *chunk; /* of the scan that is on; owned */
	uint64_t chunk_size; /* at most */
	size_t chunks;
	uint64_t bytes;
	_Atomic size_t next; /* chunk that nobody has taken */
	_Atomic uint64_t *bitmap, *also;
	struct lane lane[LANES];

	/* the second thread */
	bool started;
	pthread_t thread;
	uint64_t parallel, shared;
	sem_t go, done;
	_Atomic int offer; /* enum offer; the store of OFFERED publishes the scan */
	_Atomic bool quit;
};

/* Of one region of a vector: pages that are the guest's. */
static int64_t take_region(struct uffd_scan *s, const struct mc_region *r)
{
	const struct mc_control *c = s->t->arena->control;
	int64_t pages = 0;

	for (unsigned i = 0; i < s->t->vm->nblocks; i++) {
		const struct vm_block *b = &s->t->vm->block[i];
		uint64_t from = mc_max_u64(r->start, b->hva);
		uint64_t to = mc_min_u64(r->end, b->hva + b->size);
		uint64_t first;

		if (from >= to)
			continue;
		hot_count(&s->hot[i], from - b->hva, to - b->hva);
		first = c->block[i].first_page + (from - b->hva) / MC_PAGE_SIZE;
		tracker_set_bits(s->bitmap, first, (to - from) / MC_PAGE_SIZE);
		if (s->also)
			tracker_set_bits(s->also, first, (to - from) / MC_PAGE_SIZE);
		pages += (int64_t)((to - from) / MC_PAGE_SIZE);
	}
	return pages;
}

/*
 * Moves one thread's half of the vector into the bitmaps and zeroes it, last region first:
 * whoever dies in here leaves a half whose first zero region ends what isn't in the bitmap for
 * sure.
 */
static int64_t take_vector(struct uffd_scan *s, struct mc_region *v)
{
	int64_t pages = 0;
	size_t n = 0;

	(void)mc_fault(MC_FAULT_CAPTURE_VECTOR);
	for (; n < LANE_SLOTS && v[n].end; n++)
		pages += take_region(s, &v[n]);
	atomic_thread_fence(memory_order_seq_cst);
	(void)mc_fault(MC_FAULT_CAPTURE_VECTOR_TAKEN);
	while (n-- > 0)
		v[n] = (struct mc_region){0};
	return pages;
}

int64_t uffd_scan_recover(struct uffd_scan *s, _Atomic uint64_t *bitmap)
{
	int64_t pages = 0;

	s->bitmap = bitmap;
	s->also = NULL;
	for (int i = 0; i < LANES; i++)
		pages += take_vector(s, s->t->arena->vector + (size_t)i * LANE_SLOTS);
	return pages;
}

static int scan_chunk(struct uffd_scan *s, const struct chunk *c, int lane)
{
	uint64_t hva = s->t->vm->block[c->block].hva, at = hva + c->run.from;
	uint64_t end = hva + c->run.to;
	struct mc_region *v = s->t->arena->vector + (size_t)lane * LANE_SLOTS;

	while (at < end) {
		struct pm_scan p = {.size = sizeof(p),
		                    .flags = (c->protects ? PM_SCAN_WP : 0) | PM_SCAN_WPASYNC,
		                    .start = at,
		                    .end = end,
		                    .vec = (uint64_t)v,
		                    .vec_len = LANE_SLOTS,
		                    .category_mask = PM_PAGE_WRITTEN,
		                    .return_mask = PM_PAGE_WRITTEN};
		int n = ioctl(s->t->pagemap, PM_SCAN_IOCTL, &p);
		int r = n < 0 ? -errno : 0;

		/* What the kernel has written before an error counts. */
		s->lane[lane].pages += take_vector(s, v);
		if (r < 0)
			return r;
		if (p.walk_end <= at)
			return -EIO;
		at = p.walk_end;
	}
	return 0;
}

static void scan_chunks(struct uffd_scan *s, int lane)
{
	size_t i;

	s->lane[lane] = (struct lane){0};
	while (s->lane[lane].error == 0 && (i = atomic_fetch_add(&s->next, 1)) < s->chunks)
		s->lane[lane].error = scan_chunk(s, &s->chunk[i], lane);
}

static void *second(void *arg)
{
	struct uffd_scan *s = arg;

	for (;;) {
		int offered = OFFERED;

		while (sem_wait(&s->go) < 0)
			;
		if (atomic_load(&s->quit))
			return NULL;
		/* The other one may be through already. */
		if (!atomic_compare_exchange_strong(&s->offer, &offered, TAKEN))
			continue;
		scan_chunks(s, 1);
		(void)sem_post(&s->done);
	}
}

int uffd_scan_start(struct uffd_scan *s, uint64_t parallel)
{
	sigset_t all, was;
	uint64_t size = 0;
	int e;

	for (unsigned i = 0; i < s->t->vm->nblocks; i++)
		size += s->t->vm->block[i].size;
	if (size < parallel || s->started)
		return 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &was);
	e = pthread_create(&s->thread, NULL, second, s);
	pthread_sigmask(SIG_SETMASK, &was, NULL);
	s->started = e == 0;
	s->parallel = parallel;
	if (s->started)
		s->chunk_size = mc_max_u64(parallel / CHUNKS, POPULATED_AREA);
	return -e;
}

/* A run of a block, in chunks. */
static void list_run(struct uffd_scan *s, unsigned block, const struct populated_run *r)
{
	struct chunk c = {.block = block, .run = {.to = r->from, .fresh = r->fresh}};

	s->bytes += r->to - r->from;
	while (c.run.to < r->to) {
		uint64_t most = mc_min_u64(r->to - c.run.to, s->chunk_size);

		c.run.from = c.run.to;
		c.run.to = hot_stretch(&s->hot[block], c.run.from, c.run.from + most, &c.protects);
		s->chunk[s->chunks++] = c;
	}
}

/* What is populated of a block. */
static int list_chunks(struct uffd_scan *s, unsigned block)
{
	struct populated_run r = {0};
	int more;

	while ((more = populated_next(&s->populated[block], &r)) > 0)
		list_run(s, block, &r);
	return more;
}

/* Of an area that was a hole before, the scan reports what still is one as well. */
static int strike_holes(struct uffd_scan *s, int64_t *pages)
{
	for (size_t i = 0; i < s->chunks; i++) {
		const struct chunk *c = &s->chunk[i];
		int64_t n;

		if (!c->run.fresh)
			continue;
		n = populated_strike_holes(&s->populated[c->block], &c->run,
		                           s->t->arena->control->block[c->block].first_page,
		                           s->bitmap, s->also);
		if (n < 0)
			return (int)n;
		/* More than this scan reported, when a predecessor had reported it. */
		*pages -= n < *pages ? n : *pages;
	}
	return 0;
}

/* The second thread has ended its part, or never began it. */
static void await_second(struct uffd_scan *s)
{
	int offered = OFFERED;

	if (atomic_compare_exchange_strong(&s->offer, &offered, NONE))
		return;
	while (sem_wait(&s->done) < 0)
		;
	atomic_store(&s->offer, NONE);
	s->shared++;
}

static void scan_all(struct uffd_scan *s)
{
	bool both = s->started && s->bytes >= s->parallel;

	s->lane[1] = (struct lane){0};
	atomic_store(&s->next, 0);
	if (both) {
		atomic_store(&s->offer, OFFERED);
		(void)sem_post(&s->go);
	}
	scan_chunks(s, 0);
	if (both)
		await_second(s);
}

int64_t uffd_scan_run(struct uffd_scan *s, _Atomic uint64_t *bitmap, _Atomic uint64_t *also)
{
	int64_t pages = 0;
	int r = 0;

	s->bitmap = bitmap;
	s->also = also;
	s->chunks = 0;
	s->bytes = 0;
	for (unsigned i = 0; i < s->t->vm->nblocks && r == 0; i++)
		r = list_chunks(s, i);
	if (r < 0)
		return r;
	scan_all(s);
	for (int i = 0; i < LANES; i++) {
		pages += s->lane[i].pages;
		r = r < 0 ? r : s->lane[i].error;
	}
	if (r == 0)
		r = strike_holes(s, &pages);
	for (unsigned i = 0; i < s->t->vm->nblocks && r == 0; i++)
		hot_scanned(&s->hot[i]);
	if (r == 0 && mc_fault(MC_FAULT_CAPTURE_SCAN) < 0)
		r = -EIO;
	return r < 0 ? r : pages;
}

uint64_t uffd_scan_shared(const struct uffd_scan *s)
{
	return s->shared;
}

int uffd_scan_new(struct uffd_scan **ret, struct tracker *t)
{
	struct uffd_scan *s = calloc(1, sizeof(*s));
	size_t chunks = 0;
	int r = 0;

	if (!s)
		return -ENOMEM;
	s->t = t;
	s->chunk_size = UINT64_MAX;
	for (int i = 0; i < VM_BLOCKS_MAX; i++)
		s->populated[i].fd = -1;
	(void)sem_init(&s->go, 0, 0);
	(void)sem_init(&s->done, 0, 0);
	for (unsigned i = 0; i < t->vm->nblocks && r == 0; i++) {
		int fd = vm_open_block(t->vm, i);

		r = fd < 0 ? fd : populated_init(&s->populated[i], fd, t->vm->block[i].size);
		if (r == 0)
			r = hot_init(&s->hot[i], t->vm->block[i].size);
		chunks += s->hot[i].units; /* no chunk is smaller */
	}
	s->chunk = calloc(chunks, sizeof(*s->chunk));
	if (r == 0 && !s->chunk)
		r = -ENOMEM;
	if (r == 0)
		*ret = s;
	else
		(void)uffd_scan_free(s);
	return r;
}

struct uffd_scan *uffd_scan_free(struct uffd_scan *s)
{
	if (!s)
		return NULL;
	if (s->started) {
		atomic_store(&s->quit, true);
		(void)sem_post(&s->go);
		(void)pthread_join(s->thread, NULL);
	}
	(void)sem_destroy(&s->go);
	(void)sem_destroy(&s->done);
	for (int i = 0; i < VM_BLOCKS_MAX; i++) {
		populated_done(&s->populated[i]);
		hot_done(&s->hot[i]);
	}
	free(s->chunk);
	free(s);
	return NULL;
}
