/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "decode.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <zstd.h>

#include "../ipc/hash.h"
#include "../ipc/util.h"

struct decoder {
	uint64_t unit;
	ZSTD_DCtx *dctx;
	uint8_t *slab;   /* private copy of the encoded slab */
	uint8_t *stream; /* its content */
	uint8_t page[MC_PAGE_SIZE];
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
	d->zero_hash = mc_hash(d->stream, MC_PAGE_SIZE);
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

static uint32_t count_bits(const uint8_t *map, uint32_t n)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += (uint32_t)__builtin_popcount(map[i]);
	return sum;
}

/* What a DELTA page consists of. */
struct parts {
	uint64_t lines;
	const uint8_t *line, *word, *byte; /* maps of lines, maps of words, bytes */
};

/* -EBADMSG: the maps contradict @len. */
static int take_apart(const uint8_t *delta, uint32_t len, struct parts *p)
{
	uint32_t lines, words;

	if (len < sizeof(p->lines))
		return -EBADMSG;
	memcpy(&p->lines, delta, sizeof(p->lines));
	lines = (uint32_t)__builtin_popcountll(p->lines);
	len -= (uint32_t)sizeof(p->lines);
	if (!lines || lines > len)
		return -EBADMSG;
	p->line = delta + sizeof(p->lines);
	words = count_bits(p->line, lines);
	len -= lines;
	if (words > len)
		return -EBADMSG;
	p->word = p->line + lines;
	p->byte = p->word + words;
	return count_bits(p->word, words) == len - words ? 0 : -EBADMSG;
}

/* XORs into the line at @to what the next maps and bytes say. */
static void undo_line(uint8_t *to, struct parts *p)
{
	for (unsigned words = *p->line++; words; words &= words - 1) {
		uint8_t *at = to + (unsigned)__builtin_ctz(words) * 8;

		for (unsigned map = *p->word++; map; map &= map - 1)
			at[__builtin_ctz(map)] ^= *p->byte++;
	}
}

/* @base changed as the @len bytes at @delta say, into d->page. -EBADMSG: they contradict @len. */
static int undo_delta(struct decoder *d, const uint8_t *base, const uint8_t *delta, uint32_t len)
{
	struct parts p = {0};
	int r = len ? take_apart(delta, len, &p) : 0;

	if (r < 0)
		return r;
	memcpy(d->page, base, MC_PAGE_SIZE);
	for (; p.lines; p.lines &= p.lines - 1)
		undo_line(d->page + (unsigned)__builtin_ctzll(p.lines) * MC_LINE_SIZE, &p);
	return 0;
}

/* The content of a slab: where it lies if nothing of it was packed, else unpacked. */
static int open_stream(struct decoder *d, const struct mc_enc_view *v, const uint8_t **ret)
{
	bool plain = true;

	for (uint32_t i = 0; i < v->h.chunks; i++)
		plain &= v->chunk[i].codec == MC_CHUNK_PLAIN;
	*ret = plain ? v->bytes : d->stream;
	return plain ? 0 : unpack(d, v, d->stream);
}

int decode_pages(struct decoder *d, const struct mc_enc_view *v, uint8_t *const *ram,
                 decode_page_fn fn, void *ctx)
{
	const uint8_t *at;
	int r;

	if (v->h.raw_len > d->unit)
		return -EBADMSG;
	r = open_stream(d, v, &at);
	for (uint32_t i = 0; r == 0 && i < v->h.pages; i++) {
		struct mc_enc_page p = v->page[i];
		uint64_t offset = mc_enc_page_offset(&p);
		const uint8_t *content = at;

		if (p.method == MC_PAGE_ZERO) {
			r = p.hash == d->zero_hash ? fn(ctx, p.block, offset, NULL) : -EBADMSG;
			continue;
		}
		if (p.method == MC_PAGE_DELTA) {
			r = undo_delta(d, ram[p.block] + offset, at, p.length);
			content = d->page;
		}
		if (r == 0)
			r = mc_hash(content, MC_PAGE_SIZE) == p.hash
			            ? fn(ctx, p.block, offset, content)
			            : -EBADMSG;
		at += p.length;
	}
	return r;
}

int decode_state(struct decoder *d, const struct mc_enc_view *v, void *out)
{
	int r;

	if (v->h.raw_len > d->unit)
		return -EBADMSG;
	r = unpack(d, v, out);
	if (r == 0 && mc_hash(out, v->h.raw_len) != v->h.hash)
		r = -EBADMSG;
	return r;
}
