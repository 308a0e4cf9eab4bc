/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "encode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <zstd.h>

#include "../ipc/fault.h"
#include "../ipc/hash.h"
#include "../ipc/util.h"
#include "diff.h"

#define SKIP_MAX 15

struct encoder {
	uint64_t unit;
	ZSTD_CCtx *cctx;
	uint8_t *stream;        /* content stream of the slab, once it isn't the raw slab's */
	const uint8_t *content; /* where it is */
	uint64_t len;           /* of the stream */
	uint64_t skip, skips; /* chunks that aren't given to zstd; as many as after the last try */
	uint64_t zero_hash;
	bool have_level;
	int level; /* that cctx is set to */
	diff_fn diff;
	struct diff_scratch scratch;
};

int encoder_new(struct encoder **ret, uint64_t unit)
{
	struct encoder *e = calloc(1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	e->unit = unit;
	e->cctx = ZSTD_createCCtx();
	e->stream = calloc(1, unit + DIFF_MAX);
	if (!e->cctx || !e->stream) {
		encoder_free(e);
		return -ENOMEM;
	}
	e->diff = diff_best();
	e->zero_hash = mc_hash(e->stream, MC_PAGE_SIZE);
	*ret = e;
	return 0;
}

struct encoder *encoder_free(struct encoder *e)
{
	if (!e)
		return NULL;
	ZSTD_freeCCtx(e->cctx);
	free(e->stream);
	free(e);
	return NULL;
}

static bool is_zero(const uint8_t *page)
{
	uint64_t first;

	memcpy(&first, page, sizeof(first));
	return first == 0 && memcmp(page, page + 8, MC_PAGE_SIZE - 8) == 0;
}

/*
 * The content stream is a run of the raw slab as long as every page goes in full, one after
 * the other; only then bytes are moved.
 */
static uint8_t *stream_end(struct encoder *e)
{
	if (e->content != e->stream) {
		memcpy(e->stream, e->content, e->len);
		e->content = e->stream;
	}
	return e->stream + e->len;
}

static void add_full(struct encoder *e, const uint8_t *page)
{
	if (!e->len)
		e->content = page;
	if (e->content == e->stream || page != e->content + e->len)
		memcpy(stream_end(e), page, MC_PAGE_SIZE);
	e->len += MC_PAGE_SIZE;
}

/* Appends what may be sent as a difference: its length, or -1. */
static int add_delta(struct encoder *e, const struct encode_job *job, const struct mc_page_desc *d,
                     const uint8_t *page)
{
	struct mc_shadow_entry *entry;
	bool has_base = false;
	uint8_t *shadow = mc_shadow_open(job->shadow, mc_shadow_key(d->block, d->offset),
	                                 job->meta->epoch, &has_base, &entry);
	unsigned len = DIFF_FULL;

	if (!shadow)
		return -1;
	/* What an epoch between the base and this one left was aborted: the backup lacks it. */
	has_base =
	        has_base && atomic_load(&entry->tag) <= job->base && !(d->flags & MC_PAGE_NOBASE);
	mc_shadow_begin_write(entry);
	if (has_base) {
		len = e->diff(stream_end(e), page, shadow, &e->scratch);
	} else {
		memcpy(shadow, page, MC_PAGE_SIZE / 2);
		(void)mc_fault(MC_FAULT_STAGE_SHADOW);
		memcpy(shadow + MC_PAGE_SIZE / 2, page + MC_PAGE_SIZE / 2, MC_PAGE_SIZE / 2);
	}
	(void)mc_fault(MC_FAULT_STAGE_SHADOW_FULL);
	mc_shadow_close(job->shadow, entry, job->meta->epoch);
	return len == DIFF_FULL ? -1 : (int)len;
}

/* Appends one page (NULL: a zero one) to the stream and tells how. */
static void encode_page(struct encoder *e, const struct encode_job *job,
                        const struct mc_page_desc *d, const uint8_t *page, struct mc_enc_page *p,
                        struct encode_stats *stats)
{
	int len = -1;

	*p = (struct mc_enc_page){.page = (uint32_t)(d->offset / MC_PAGE_SIZE),
	                          .block = (uint8_t)d->block,
	                          .hash = page ? mc_hash(page, MC_PAGE_SIZE) : e->zero_hash};
	if (!page || (p->hash == e->zero_hash && is_zero(page))) {
		p->method = MC_PAGE_ZERO;
		if (job->shadow)
			mc_shadow_drop(job->shadow, mc_shadow_key(d->block, d->offset));
		stats->zero++;
		return;
	}
	if (job->shadow)
		len = add_delta(e, job, d, page);
	if (len < 0) {
		p->method = MC_PAGE_FULL;
		p->length = MC_PAGE_SIZE;
		add_full(e, page);
		stats->full++;
		return;
	}
	p->method = MC_PAGE_DELTA;
	p->length = (uint16_t)len;
	e->len += p->length;
	stats->delta++;
}

/*
 * Below level 0 speed is wanted: a small table that stays in the first cache, and no look at
 * matches that save next to nothing.  Measured: docs/benchmarks.md.
 */
static void set_level(struct encoder *e, int level)
{
	if (e->have_level && level == e->level)
		return;
	(void)ZSTD_CCtx_reset(e->cctx, ZSTD_reset_session_and_parameters);
	(void)ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_compressionLevel, level);
	if (level < 0) {
		(void)ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_hashLog, 10);
		(void)ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_minMatch, 7);
	}
	e->level = level;
	e->have_level = true;
}

/* One chunk into @to (at most @room bytes): zstd where that makes it smaller. Its length, 0: no
 * room. */
static size_t pack_chunk(struct encoder *e, int level, const uint8_t *from, uint64_t raw,
                         uint8_t *to, uint64_t room, bool *plain)
{
	size_t n = 0;

	*plain = true;
	if (e->skip) {
		e->skip--;
	} else {
		set_level(e, level);
		n = ZSTD_compress2(e->cctx, to, mc_min_u64(room, raw - 1), from, raw);
		*plain = ZSTD_isError(n) || n >= raw;
		/* What can't be made smaller comes in crowds: look at every 16th, then. */
		e->skips = *plain ? mc_min_u64(2 * e->skips + 1, SKIP_MAX) : 0;
		e->skip = e->skips;
	}
	if (!*plain)
		return n;
	if (raw > room)
		return 0;
	memcpy(to, from, raw);
	return raw;
}

/* Packs the stream behind the tables; returns the slab's length. */
static int64_t pack_stream(struct encoder *e, int level, struct mc_enc_chunk *chunk, uint8_t *to,
                           const uint8_t *end)
{
	for (uint64_t at = 0; at < e->len; chunk++) {
		uint64_t raw = mc_min_u64(MC_CHUNK_MAX, e->len - at);
		bool plain;
		size_t n = pack_chunk(e, level, e->content + at, raw, to, (uint64_t)(end - to),
		                      &plain);

		if (!n)
			return -EBADMSG;
		*chunk = (struct mc_enc_chunk){.raw_len = (uint32_t)raw,
		                               .enc_len = (uint32_t)n,
		                               .codec = plain ? MC_CHUNK_PLAIN : MC_CHUNK_ZSTD};
		to += n;
		at += raw;
	}
	return to - (end - e->unit);
}

/* The next page and its base: in memory both are far, and each lies somewhere else. */
static void prefetch(const struct encode_job *job, uint32_t next, const uint8_t *page)
{
	const struct mc_page_desc *d = job->desc + next;

	if (next + 1 >= job->meta->pages)
		return;
	for (int at = 0; at < MC_NEAR; at += 64)
		__builtin_prefetch(page + at);
	if (!job->shadow || !job->shadow->shm)
		return;
	mc_shadow_near_set(job->shadow, mc_shadow_key(d[1].block, d[1].offset));
	mc_shadow_near_base(job->shadow, mc_shadow_key(d[0].block, d[0].offset));
}

/* Every page that isn't struck out. -EBADMSG for a descriptor that capture can't have made. */
static int encode_pages(struct encoder *e, const struct encode_job *job, struct mc_enc_page *table,
                        uint32_t *pages, struct encode_stats *stats)
{
	const uint8_t *page = job->raw;
	uint32_t n = 0;

	for (uint32_t i = 0; i < job->meta->pages; i++) {
		struct mc_page_desc d = job->desc[i];
		bool zeroed = d.flags & MC_PAGE_ZEROED;

		if (d.block >= job->nblocks || d.offset % MC_PAGE_SIZE ||
		    d.offset / MC_PAGE_SIZE > UINT32_MAX)
			return -EBADMSG;
		prefetch(job, i + 1, page + MC_PAGE_SIZE);
		if (!(d.flags & MC_PAGE_STRUCK))
			encode_page(e, job, &d, zeroed ? NULL : page, &table[n++], stats);
		page += zeroed ? 0 : MC_PAGE_SIZE;
	}
	*pages = n;
	return 0;
}

int64_t encode_slab(struct encoder *e, const struct encode_job *job, void *out,
                    struct encode_stats *stats)
{
	struct mc_enc_header h = {.magic = MC_ENC_MAGIC,
	                          .version = MC_ENC_VERSION,
	                          .of_kind = (uint16_t)job->meta->kind,
	                          .epoch = job->meta->epoch,
	                          .seq = job->meta->seq};
	struct mc_enc_page *table = (struct mc_enc_page *)((uint8_t *)out + sizeof(h));
	struct mc_enc_chunk *chunk;

	e->len = 0;
	e->content = e->stream;
	if (job->meta->kind == MC_KIND_PAGES) {
		if (job->meta->pages > mc_copyset_pages_max(e->unit) ||
		    encode_pages(e, job, table, &h.pages, stats) < 0)
			return -EBADMSG;
		h.base = job->base;
	} else if (job->meta->kind == MC_KIND_STATE) {
		if (!job->meta->used || job->meta->used > mc_copyset_state_max(e->unit))
			return -EBADMSG;
		e->content = job->raw;
		e->len = job->meta->used;
		h.hash = mc_hash(e->content, e->len);
	} else {
		return -EBADMSG;
	}
	h.raw_len = e->len;
	h.chunks = (uint32_t)((e->len + MC_CHUNK_MAX - 1) / MC_CHUNK_MAX);
	memcpy(out, &h, sizeof(h));
	chunk = (struct mc_enc_chunk *)(table + h.pages);
	return pack_stream(e, job->level, chunk, (uint8_t *)(chunk + h.chunks),
	                   (uint8_t *)out + e->unit);
}
