/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "encode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"

struct encoder {
	uint64_t unit;
	ZSTD_CCtx *cctx;
	uint8_t *stream; /* content stream of the slab */
	uint8_t *packed; /* one chunk after zstd */
	uint64_t len;    /* of the stream */
};

int encoder_new(struct encoder **ret, uint64_t unit)
{
	struct encoder *e = calloc(1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	e->unit = unit;
	e->cctx = ZSTD_createCCtx();
	e->stream = malloc(unit);
	e->packed = malloc(ZSTD_compressBound(MC_CHUNK_MAX));
	if (!e->cctx || !e->stream || !e->packed) {
		encoder_free(e);
		return -ENOMEM;
	}
	*ret = e;
	return 0;
}

struct encoder *encoder_free(struct encoder *e)
{
	if (!e)
		return NULL;
	ZSTD_freeCCtx(e->cctx);
	free(e->stream);
	free(e->packed);
	free(e);
	return NULL;
}

static bool is_zero(const uint8_t *page)
{
	uint64_t first;

	memcpy(&first, page, sizeof(first));
	return first == 0 && memcmp(page, page + 8, MC_PAGE_SIZE - 8) == 0;
}

static void xor_page(uint8_t *to, const uint8_t *a, const uint8_t *b)
{
	for (size_t i = 0; i < MC_PAGE_SIZE; i += 8) {
		uint64_t x, y;

		memcpy(&x, a + i, 8);
		memcpy(&y, b + i, 8);
		x ^= y;
		memcpy(to + i, &x, 8);
	}
}

/* Appends one page to the stream and tells how. */
static void encode_page(struct encoder *e, const struct encode_job *job,
                        const struct mc_page_desc *d, const uint8_t *page, struct mc_enc_page *p,
                        struct encode_stats *stats)
{
	uint64_t key = mc_shadow_key(d->block, d->offset);
	struct mc_shadow_entry *entry;
	uint8_t *shadow = NULL;
	bool has_base = false;

	*p = (struct mc_enc_page){.block = (uint16_t)d->block,
	                          .offset = d->offset,
	                          .hash = XXH3_64bits(page, MC_PAGE_SIZE)};
	if (is_zero(page)) {
		p->method = MC_PAGE_ZERO;
		if (job->shadow)
			mc_shadow_drop(job->shadow, key);
		stats->zero++;
		return;
	}
	if (job->shadow)
		shadow = mc_shadow_open(job->shadow, key, job->meta->epoch, &has_base, &entry);
	/* What an epoch between the base and this one left was aborted: the backup lacks it. */
	if (shadow && has_base && atomic_load(&entry->tag) <= job->base &&
	    !(d->flags & MC_PAGE_NOBASE)) {
		p->method = MC_PAGE_DELTA;
		xor_page(e->stream + e->len, page, shadow);
		stats->delta++;
	} else {
		p->method = MC_PAGE_FULL;
		memcpy(e->stream + e->len, page, MC_PAGE_SIZE);
		stats->full++;
	}
	e->len += MC_PAGE_SIZE;
	if (shadow) {
		mc_shadow_begin_write(entry);
		memcpy(shadow, page, MC_PAGE_SIZE / 2);
		(void)mc_fault(MC_FAULT_STAGE_SHADOW);
		memcpy(shadow + MC_PAGE_SIZE / 2, page + MC_PAGE_SIZE / 2, MC_PAGE_SIZE / 2);
		mc_shadow_close(job->shadow, entry, job->meta->epoch);
	}
}

/* Packs the stream behind the tables; returns the slab's length. */
static int64_t pack_stream(struct encoder *e, int level, struct mc_enc_chunk *chunk, uint8_t *to,
                           const uint8_t *end)
{
	for (uint64_t at = 0; at < e->len; chunk++) {
		uint64_t raw = mc_min_u64(MC_CHUNK_MAX, e->len - at);
		size_t n = ZSTD_compressCCtx(e->cctx, e->packed, ZSTD_compressBound(MC_CHUNK_MAX),
		                             e->stream + at, raw, level);
		bool plain = ZSTD_isError(n) || n >= raw;

		*chunk = (struct mc_enc_chunk){.raw_len = (uint32_t)raw,
		                               .enc_len = (uint32_t)(plain ? raw : n),
		                               .codec = plain ? MC_CHUNK_PLAIN : MC_CHUNK_ZSTD};
		if (chunk->enc_len > (uint64_t)(end - to))
			return -EBADMSG;
		memcpy(to, plain ? e->stream + at : e->packed, chunk->enc_len);
		to += chunk->enc_len;
		at += raw;
	}
	return to - (end - e->unit);
}

/* Every page that isn't struck out. -EBADMSG for a descriptor that capture can't have made. */
static int encode_pages(struct encoder *e, const struct encode_job *job, struct mc_enc_page *table,
                        uint32_t *pages, struct encode_stats *stats)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < job->meta->pages; i++) {
		struct mc_page_desc d = job->desc[i];

		if (d.flags & MC_PAGE_STRUCK)
			continue;
		if (d.block >= job->nblocks || d.offset % MC_PAGE_SIZE)
			return -EBADMSG;
		encode_page(e, job, &d, job->raw + i * MC_PAGE_SIZE, &table[n++], stats);
	}
	*pages = n;
	return 0;
}

int64_t encode_slab(struct encoder *e, const struct encode_job *job, void *out,
                    struct encode_stats *stats)
{
	struct mc_enc_header h = {.magic = MC_ENC_MAGIC,
	                          .version = 1,
	                          .of_kind = (uint16_t)job->meta->kind,
	                          .epoch = job->meta->epoch,
	                          .seq = job->meta->seq};
	struct mc_enc_page *table = (struct mc_enc_page *)((uint8_t *)out + sizeof(h));
	struct mc_enc_chunk *chunk;

	e->len = 0;
	if (job->meta->kind == MC_KIND_PAGES) {
		if (job->meta->pages > mc_copyset_pages_max(e->unit) ||
		    encode_pages(e, job, table, &h.pages, stats) < 0)
			return -EBADMSG;
		h.base = job->base;
	} else if (job->meta->kind == MC_KIND_STATE) {
		if (!job->meta->used || job->meta->used > mc_copyset_state_max(e->unit))
			return -EBADMSG;
		memcpy(e->stream, job->raw, job->meta->used);
		e->len = job->meta->used;
		h.hash = XXH3_64bits(e->stream, e->len);
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
