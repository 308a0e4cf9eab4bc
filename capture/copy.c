/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From bitmaps to slabs. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

/* Slabs that stage and transport need to go on when capture took all it may. */
#define HEADROOM (2 * MC_STAGES_MAX)

uint64_t bitmap_count(const _Atomic uint64_t *b, uint64_t words)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < words; i++)
		n += (uint64_t)__builtin_popcountll(
		        atomic_load_explicit(&b[i], memory_order_relaxed));
	return n;
}

void bitmap_or(_Atomic uint64_t *to, const _Atomic uint64_t *from, uint64_t words)
{
	for (uint64_t i = 0; i < words; i++) {
		uint64_t v = atomic_load_explicit(&from[i], memory_order_relaxed);

		if (v)
			atomic_fetch_or_explicit(&to[i], v, memory_order_relaxed);
	}
}

void bitmap_and_not(_Atomic uint64_t *to, const _Atomic uint64_t *from, uint64_t words)
{
	for (uint64_t i = 0; i < words; i++) {
		uint64_t v = atomic_load_explicit(&from[i], memory_order_relaxed);

		if (v)
			atomic_fetch_and_explicit(&to[i], ~v, memory_order_relaxed);
	}
}

void bitmap_clear(_Atomic uint64_t *b, uint64_t words)
{
	for (uint64_t i = 0; i < words; i++)
		atomic_store_explicit(&b[i], 0, memory_order_relaxed);
}

/* Room for @slabs more raw slabs, with what is needed to encode them. */
bool copy_has_room(const struct capture *c, uint64_t slabs)
{
	const struct mc_pool *p = &c->a->slabs;
	uint64_t used = atomic_load_explicit(&p->shm->in_use, memory_order_relaxed);
	uint64_t keep = mc_min_u64(HEADROOM, p->max / 4);

	return used + slabs + keep <= p->max;
}

void copy_list_init(struct capture *c)
{
	c->list.n = 0;
	c->list.meta = NULL;
	c->list.pages_max = (uint32_t)mc_copyset_pages_max(c->a->slabs.unit);
}

/* Begins the next slab of pages. */
static int next_slab(struct capture *c, uint64_t epoch, bool in_pause)
{
	struct slab_list *l = &c->list;
	mc_handle slab, desc;
	int r;

	if (l->n == MC_EPOCH_SLABS_MAX || !copy_has_room(c, 1))
		return -ENOSPC;
	r = mc_pool_alloc(&c->a->slabs, epoch, in_pause, &slab);
	if (r < 0)
		return r;
	r = mc_pool_alloc(&c->a->descs, epoch, in_pause, &desc);
	if (r < 0) {
		(void)mc_pool_free(&c->a->slabs, slab);
		return r;
	}
	l->slab[l->n++] = slab;
	l->meta = mc_pool_meta(&c->a->slabs, slab);
	l->data = mc_pool_data(&c->a->slabs, slab);
	l->desc = mc_pool_data(&c->a->descs, desc);
	if (!l->meta || !l->data || !l->desc)
		return -ESTALE;
	l->meta->kind = MC_KIND_PAGES;
	l->meta->epoch = epoch;
	l->meta->desc = desc;
	(void)mc_fault(MC_FAULT_CAPTURE_SLAB);
	return 0;
}

unsigned copy_block_of(const struct capture *c, uint64_t page)
{
	unsigned i = 0;

	while (i + 1 < c->vm.nblocks && page >= c->a->control->block[i + 1].first_page)
		i++;
	return i;
}

static bool test_bit(const _Atomic uint64_t *b, uint64_t n)
{
	return atomic_load_explicit(&b[n / 64], memory_order_relaxed) >> n % 64 & 1;
}

static bool is_zero(const uint8_t *page)
{
	uint64_t first;

	memcpy(&first, page, sizeof(first));
	return first == 0 && memcmp(page, page + 8, MC_PAGE_SIZE - 8) == 0;
}

/* @hole: it is zero, and isn't to be read. */
static void copy_page(struct capture *c, uint64_t page, bool hole)
{
	struct slab_list *l = &c->list;
	uint8_t *to;
	unsigned b = copy_block_of(c, page);
	uint64_t off = (page - c->a->control->block[b].first_page) * MC_PAGE_SIZE;
	struct mc_page_desc d;

	if (off >= c->vm.block[b].size)
		return; /* the padding of the last word */
	d = (struct mc_page_desc){.block = b, .offset = off};
	if (test_bit(c->a->bitmap[NOBASE], page))
		d.flags = MC_PAGE_NOBASE;
	/* In the first copy most of a guest may be zero: such a page is named and not moved. */
	if (hole || (!l->meta->epoch && is_zero(c->ram[b] + off))) {
		d.flags = MC_PAGE_ZEROED;
	} else {
		to = l->data + l->meta->used;
		if (c->rdma)
			rdma_copy(c->rdma, b, off, c->ram[b] + off, to, MC_PAGE_SIZE);
		else
			memcpy(to, c->ram[b] + off, MC_PAGE_SIZE);
		l->meta->used += MC_PAGE_SIZE;
	}
	l->desc[l->meta->pages++] = d;
}

/* @pages more pages fit the slab that is being filled. */
static bool fits(const struct capture *c, uint32_t pages)
{
	const struct mc_slab_meta *m = c->list.meta;

	return m && m->kind == MC_KIND_PAGES && m->pages + pages <= c->list.pages_max;
}

static int copy_words(struct capture *c, const _Atomic uint64_t *bitmap, uint64_t *word,
                      uint64_t to, uint64_t epoch, bool in_pause, uint32_t max, uint64_t *pages)
{
	bool compare = c->hash.on && !epoch;

	for (; *word < to; (*word)++) {
		uint64_t bits = atomic_load_explicit(&bitmap[*word], memory_order_relaxed);
		uint64_t holes = 0;
		uint32_t need;
		int r;

		if (compare && c->list.n >= max && !fits(c, 64))
			return 0;
		if (compare)
			bits = hashes_differ(c, *word, bits, &holes);
		need = (uint32_t)__builtin_popcountll(bits);
		if (!bits)
			continue;
		if (!fits(c, need)) {
			if (c->list.n >= max)
				return 0;
			r = next_slab(c, epoch, in_pause);
			if (r < 0)
				return r;
		}
		*pages += need;
		for (; bits; bits &= bits - 1) {
			/* Small slabs hold less than a word's pages. */
			r = fits(c, 1) ? 0 : next_slab(c, epoch, in_pause);
			if (r < 0)
				return r;
			copy_page(c, *word * 64 + (uint64_t)__builtin_ctzll(bits),
			          holes >> __builtin_ctzll(bits) & 1);
		}
	}
	return 0;
}

/* All that was begun is in its slab, by the device or not. */
static void finish_rdma(struct capture *c)
{
	struct mc_metrics_block *m = mc_worker_metrics(c->w);
	struct rdma_copy_stats s;
	int r = rdma_copy_finish(c->rdma);

	rdma_copy_get_stats(c->rdma, &s);
	mc_metric_set(m, MC_M_RDMA_COPIED, s.by_device);
	mc_metric_set(m, MC_M_RDMA_COPY_PINNED, s.pinned);
	if (r == 0)
		return;
	mc_worker_event(c->w, "rdma-copy", 0,
	                "the RDMA device failed: %s; pages are copied by memcpy", strerror(-r));
	mc_warn("rdma-copy: the device failed: %s; memcpy is used from now on, which costs no "
	        "protection; look at the device (mcctl doctor)",
	        strerror(-r));
}

int copy_pages(struct capture *c, const _Atomic uint64_t *bitmap, uint64_t *word, uint64_t to,
               uint64_t epoch, bool in_pause, uint32_t max, uint64_t *pages)
{
	int r = copy_words(c, bitmap, word, to, epoch, in_pause, max, pages);

	if (c->rdma)
		finish_rdma(c);
	return r;
}

int copy_state(struct capture *c, uint64_t epoch, uint64_t bytes)
{
	struct slab_list *l = &c->list;
	mc_handle slab;
	int r;

	if (!bytes)
		return -ENODATA;
	if (bytes > mc_copyset_state_max(c->a->slabs.unit))
		return -EMSGSIZE;
	if (l->n == MC_EPOCH_SLABS_MAX)
		return -ENOSPC;
	r = mc_pool_alloc(&c->a->slabs, epoch, false, &slab);
	if (r < 0)
		return r;
	l->slab[l->n++] = slab;
	l->meta = mc_pool_meta(&c->a->slabs, slab);
	l->data = mc_pool_data(&c->a->slabs, slab);
	if (!l->meta || !l->data)
		return -ESTALE;
	l->meta->kind = MC_KIND_STATE;
	l->meta->epoch = epoch;
	l->meta->used = bytes;
	if (pread(c->state_fd, l->data, bytes, 0) != (ssize_t)bytes)
		return -EIO;
	return 0;
}

void copy_list_free(struct capture *c)
{
	for (uint32_t i = 0; i < c->list.n; i++) {
		struct mc_slab_meta *m = mc_pool_meta(&c->a->slabs, c->list.slab[i]);

		if (m && m->desc)
			(void)mc_pool_free(&c->a->descs, m->desc);
		(void)mc_pool_free(&c->a->slabs, c->list.slab[i]);
	}
	copy_list_init(c);
}

int copy_list_push(struct capture *c, uint32_t seq)
{
	unsigned workers = atomic_load(&c->a->config->stage_workers);
	uint64_t now = mc_now_ns();

	if (!workers || workers > MC_STAGES_MAX)
		workers = 1;
	for (uint32_t i = 0; i < c->list.n; i++) {
		struct mc_slab_meta *m = mc_pool_meta(&c->a->slabs, c->list.slab[i]);
		unsigned ring = c->next_ring++ % workers;
		int r;

		if (!m)
			return -ESTALE;
		m->seq = seq + i;
		m->stamp = now;
		r = mc_ring_push(&c->ring[ring], c->list.slab[i]);
		if (r < 0)
			return r;
		mc_arena_ring(c->a, mc_role_stage(ring));
		(void)mc_fault(MC_FAULT_CAPTURE_PUSHED_SOME);
	}
	copy_list_init(c);
	return 0;
}
