/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "decode.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>

#include "../ipc/util.h"

struct decoder {
	uint64_t unit;
	ZSTD_DCtx *dctx;
	uint8_t *slab;   /* private copy of the encoded slab */
	uint8_t *stream; /* its content */
	uint64_t zero_hash;
};

int decoder_new(struct decoder **ret, uint64_t unit)
{
	struct decoder *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	d->unit = unit;
	d->dctx = ZSTD_createDCtx();
	d->slab = malloc(unit);
	d->stream = calloc(1, unit);
	if (!d->dctx || !d->slab || !d->stream) {
		decoder_free(d);
		return -ENOMEM;
	}
	d->zero_hash = XXH3_64bits(d->stream, MC_PAGE_SIZE);
	*ret = d;
	return 0;
}

struct decoder *decoder_free(struct decoder *d)
{
	if (!d)
		return NULL;
	ZSTD_freeDCtx(d->dctx);
	free(d->slab);
	free(d->stream);
	free(d);
	return NULL;
}

int decoder_open(struct decoder *d, const void *slab, uint64_t len, const struct mc_enc_limits *lim,
                 struct mc_enc_view *ret)
{
	if (!slab || len > d->unit)
		return -EBADMSG;
	memcpy(d->slab, slab, len);
	return mc_enc_parse(d->slab, len, lim, ret);
}

/* Unpacks all chunks into @to (h.raw_len bytes; mc_enc_parse() checked the sums). */
static int unpack(struct decoder *d, const struct mc_enc_view *v, uint8_t *to)
{
	const uint8_t *from = v->bytes;

	for (uint32_t i = 0; i < v->h.chunks; i++) {
		struct mc_enc_chunk c = v->chunk[i];

		if (c.codec == MC_CHUNK_PLAIN) {
			memcpy(to, from, c.raw_len);
		} else {
			size_t n = ZSTD_decompressDCtx(d->dctx, to, c.raw_len, from, c.enc_len);

			if (ZSTD_isError(n) || n != c.raw_len)
				return -EBADMSG;
		}
		to += c.raw_len;
		from += c.enc_len;
	}
	return 0;
}

static void xor_into(uint8_t *page, const uint8_t *base)
{
	for (size_t i = 0; i < MC_PAGE_SIZE; i += 8) {
		uint64_t x, y;

		memcpy(&x, page + i, 8);
		memcpy(&y, base + i, 8);
		x ^= y;
		memcpy(page + i, &x, 8);
	}
}

int decode_pages(struct decoder *d, const struct mc_enc_view *v, uint8_t *const *ram,
                 decode_page_fn fn, void *ctx)
{
	uint8_t *at = d->stream;
	int r;

	if (v->h.raw_len > d->unit)
		return -EBADMSG;
	r = unpack(d, v, at);
	for (uint32_t i = 0; r == 0 && i < v->h.pages; i++) {
		struct mc_enc_page p = v->page[i];

		if (p.method == MC_PAGE_ZERO) {
			r = p.hash == d->zero_hash ? fn(ctx, p.block, p.offset, NULL) : -EBADMSG;
			continue;
		}
		if (p.method == MC_PAGE_DELTA)
			xor_into(at, ram[p.block] + p.offset);
		r = XXH3_64bits(at, MC_PAGE_SIZE) == p.hash ? fn(ctx, p.block, p.offset, at)
		                                            : -EBADMSG;
		at += MC_PAGE_SIZE;
	}
	return r;
}

int decode_state(struct decoder *d, const struct mc_enc_view *v, void *out)
{
	int r;

	if (v->h.raw_len > d->unit)
		return -EBADMSG;
	r = unpack(d, v, out);
	if (r == 0 && XXH3_64bits(out, v->h.raw_len) != v->h.hash)
		r = -EBADMSG;
	return r;
}
