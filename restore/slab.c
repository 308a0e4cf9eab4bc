/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One slab: opened, decoded into a slab of our own, applied. */
#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"
#include "restore.h"

void slab_free(struct restore *r, mc_handle h)
{
	struct mc_slab_meta *m = mc_pool_meta(&r->a->slabs, h);

	if (m && m->desc)
		(void)mc_pool_free(&r->a->descs, m->desc);
	(void)mc_pool_free(&r->a->slabs, h);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
}

int slab_open(struct restore *r, struct decoder *d, mc_handle h, struct mc_enc_view *v)
{
	struct mc_enc_limits lim = {
	        .unit = r->a->slabs.unit, .nblocks = r->vm.nblocks, .block_size = r->block_size};
	const struct mc_slab_meta *m = mc_pool_meta(&r->a->slabs, h);
	int e;

	if (!m)
		return -ESTALE;
	e = decoder_open(d, mc_pool_data(&r->a->slabs, h), m->used, &lim, v);
	if (e == 0 && (v->h.epoch != m->epoch || v->h.seq != m->seq))
		e = -EBADMSG;
	return e;
}

/* What a slab decodes to; counted here and not in the arena, where others might write. */
struct sink {
	uint8_t *data;
	struct mc_page_desc *desc;
	uint32_t pages;
	uint64_t used;
};

static int keep_page(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content)
{
	struct sink *s = ctx;

	s->desc[s->pages++] = (struct mc_page_desc){
	        .block = block, .offset = offset, .flags = content ? 0 : MC_PAGE_ZEROED};
	if (content) {
		memcpy(s->data + s->used, content, MC_PAGE_SIZE);
		s->used += MC_PAGE_SIZE;
	}
	return 0;
}

/* A slab of our own for what @v decodes to. */
static int new_slab(struct restore *r, const struct mc_enc_view *v, mc_handle *ret, struct sink *s)
{
	mc_handle desc = MC_HANDLE_NONE;
	struct mc_slab_meta *m;
	int e = mc_pool_alloc(&r->a->slabs, v->h.epoch, false, ret);

	if (e < 0)
		return e;
	m = mc_pool_meta(&r->a->slabs, *ret);
	if (m && v->h.of_kind == MC_KIND_PAGES)
		e = mc_pool_alloc(&r->a->descs, v->h.epoch, false, &desc);
	*s = (struct sink){.data = mc_pool_data(&r->a->slabs, *ret),
	                   .desc = desc ? mc_pool_data(&r->a->descs, desc) : NULL};
	if (e == 0 && (!m || !s->data || (desc && !s->desc)))
		e = -ESTALE;
	if (e < 0) {
		(void)mc_pool_free(&r->a->slabs, *ret);
		return e;
	}
	m->seq = v->h.seq;
	m->desc = desc;
	return 0;
}

int slab_decode(struct restore *r, struct decoder *d, mc_handle h, mc_handle *ret, bool *is_state)
{
	struct mc_metrics_block *metrics = mc_worker_metrics(r->w);
	uint64_t t = mc_now_ns();
	struct mc_slab_meta *m;
	struct mc_enc_view v;
	struct sink s;
	int e = slab_open(r, d, h, &v);

	if (e == 0)
		e = new_slab(r, &v, ret, &s);
	if (e < 0)
		return e;
	*is_state = v.h.of_kind == MC_KIND_STATE;
	if (*is_state) {
		e = decode_state(d, &v, s.data);
		s.used = v.h.raw_len;
	} else {
		e = decode_pages(d, &v, r->ram, keep_page, &s);
	}
	m = mc_pool_meta(&r->a->slabs, *ret);
	if (e < 0 || !m) {
		slab_free(r, *ret);
		return e < 0 ? e : -ESTALE;
	}
	m->used = s.used;
	m->pages = s.pages;
	/*
	 * Last: without a kind a successor takes it for half done.  One that was allocated only has
	 * what its last user left there, but for its own name, which no other slab ever had.
	 */
	m->stamp = *ret;
	atomic_thread_fence(memory_order_release);
	m->kind = v.h.of_kind;
	mc_metric_add(metrics, MC_M_DECODED_PAGES, v.h.pages);
	mc_metric_add(metrics, MC_M_DECODE_TIME, mc_now_ns() - t);
	return 0;
}

int slab_put_page(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content)
{
	struct restore *r = ctx;

	if (content)
		memcpy(r->ram[block] + offset, content, MC_PAGE_SIZE);
	else
		memset(r->ram[block] + offset, 0, MC_PAGE_SIZE);
	return 0;
}

int slab_apply(struct restore *r, mc_handle h)
{
	const struct mc_slab_meta *shared = mc_pool_meta(&r->a->slabs, h);
	const uint8_t *data = mc_pool_data(&r->a->slabs, h);
	const struct mc_page_desc *d;
	struct mc_slab_meta m;
	uint64_t at = 0;

	if (!shared || !data)
		return -EBADMSG;
	m = *shared;
	if (m.kind == MC_KIND_STATE)
		return 0;
	d = mc_pool_data(&r->a->descs, m.desc);
	if (m.kind != MC_KIND_PAGES || !d || m.pages > mc_copyset_pages_max(r->a->slabs.unit))
		return -EBADMSG;
	for (uint32_t i = 0; i < m.pages; i++) {
		struct mc_page_desc p = d[i];
		bool zero = p.flags & MC_PAGE_ZEROED;

		if (p.block >= r->vm.nblocks || p.offset % MC_PAGE_SIZE ||
		    p.offset >= r->block_size[p.block])
			return -EBADMSG;
		(void)slab_put_page(r, p.block, p.offset, zero ? NULL : data + at);
		(void)mc_fault(MC_FAULT_RESTORE_APPLY);
		at += zero ? 0 : MC_PAGE_SIZE;
	}
	return at == m.used ? 0 : -EBADMSG;
}
