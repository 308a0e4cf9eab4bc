/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An encoder of the tests' own: slabs as a primary would send them. */
#ifndef MC_RESTORE_TEST_ENCODER_H
#define MC_RESTORE_TEST_ENCODER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>
#include <zstd.h>

#include "../ipc/copyset.h"
#include "../ipc/pool.h"
#include "../ipc/util.h"

struct test_page {
	uint16_t block, method;
	uint64_t offset;
	const uint8_t *content, *base; /* base: DELTA only */
};

/* Chunks of @stream behind the tables; the slab's length. */
static inline size_t test_pack(uint8_t *out, struct mc_enc_header *h, const uint8_t *stream,
                               bool zstd)
{
	struct mc_enc_chunk *chunk =
	        (struct mc_enc_chunk *)(out + sizeof(*h) + h->pages * sizeof(struct mc_enc_page));
	uint8_t *to;

	h->chunks = (uint32_t)((h->raw_len + MC_CHUNK_MAX - 1) / MC_CHUNK_MAX);
	memcpy(out, h, sizeof(*h));
	to = (uint8_t *)(chunk + h->chunks);
	for (uint64_t at = 0; at < h->raw_len; chunk++) {
		uint64_t raw = mc_min_u64(MC_CHUNK_MAX, h->raw_len - at);
		size_t bound = ZSTD_compressBound(raw);
		mc_autofree uint8_t *packed = malloc(bound);
		size_t n = ZSTD_compress(packed, bound, stream + at, raw, 1);
		bool plain = !zstd || ZSTD_isError(n) || n >= raw;

		*chunk = (struct mc_enc_chunk){.raw_len = (uint32_t)raw,
		                               .enc_len = (uint32_t)(plain ? raw : n),
		                               .codec = plain ? MC_CHUNK_PLAIN : MC_CHUNK_ZSTD};
		memcpy(to, plain ? stream + at : packed, chunk->enc_len);
		to += chunk->enc_len;
		at += raw;
	}
	return (size_t)(to - out);
}

/* What @page and its base differ in, in the form of a DELTA page, a part after the other. */
static inline uint16_t test_delta(uint8_t *to, const uint8_t *page, const uint8_t *base)
{
	uint8_t lines[8] = {0}, words[64] = {0}, bytes[512] = {0}, *at = to + 8;

	for (unsigned i = 0; i < MC_PAGE_SIZE; i++)
		if (page[i] != base[i]) {
			lines[i / 512] |= (uint8_t)(1 << i / 64 % 8);
			words[i / 64] |= (uint8_t)(1 << i / 8 % 8);
			bytes[i / 8] |= (uint8_t)(1 << i % 8);
		}
	memcpy(to, lines, 8);
	for (unsigned i = 0; i < 64; i++)
		if (words[i])
			*at++ = words[i];
	for (unsigned i = 0; i < 512; i++)
		if (bytes[i])
			*at++ = bytes[i];
	for (unsigned i = 0; i < MC_PAGE_SIZE; i++)
		if (page[i] != base[i])
			*at++ = page[i] ^ base[i];
	return at - to == 8 ? 0 : (uint16_t)(at - to);
}

/* A page that differs everywhere can't be a DELTA: it becomes FULL. */
static inline size_t test_pages(uint8_t *out, uint64_t epoch, uint64_t base, uint32_t seq,
                                const struct test_page *page, uint32_t n, bool zstd)
{
	struct mc_enc_header h = {.magic = MC_ENC_MAGIC,
	                          .version = MC_ENC_VERSION,
	                          .of_kind = MC_KIND_PAGES,
	                          .epoch = epoch,
	                          .base = base,
	                          .seq = seq,
	                          .pages = n};
	mc_autofree uint8_t *stream = malloc((n + 2) * MC_PAGE_SIZE);

	for (uint32_t i = 0; i < n; i++) {
		struct mc_enc_page p = {.block = (uint8_t)page[i].block,
		                        .method = (uint8_t)page[i].method,
		                        .page = (uint32_t)(page[i].offset / MC_PAGE_SIZE),
		                        .hash = XXH3_64bits(page[i].content, MC_PAGE_SIZE)};
		uint8_t *to = stream + h.raw_len;

		if (p.method == MC_PAGE_DELTA)
			p.length = test_delta(to, page[i].content, page[i].base);
		if (p.method == MC_PAGE_FULL || p.length > MC_DELTA_MAX) {
			memcpy(to, page[i].content, MC_PAGE_SIZE);
			p.method = MC_PAGE_FULL;
			p.length = MC_PAGE_SIZE;
		}
		memcpy(out + sizeof(h) + i * sizeof(p), &p, sizeof(p));
		h.raw_len += p.length;
	}
	return test_pack(out, &h, stream, zstd);
}

static inline size_t test_state(uint8_t *out, uint64_t epoch, uint32_t seq, const uint8_t *state,
                                uint64_t len)
{
	struct mc_enc_header h = {.magic = MC_ENC_MAGIC,
	                          .version = MC_ENC_VERSION,
	                          .of_kind = MC_KIND_STATE,
	                          .epoch = epoch,
	                          .seq = seq,
	                          .raw_len = len,
	                          .hash = XXH3_64bits(state, len)};

	return test_pack(out, &h, state, true);
}

#endif
