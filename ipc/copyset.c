/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "copyset.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "pool.h"

/* Head and chunk table of an encoded slab that holds @raw bytes of content. */
static uint64_t overhead(uint64_t raw)
{
	return sizeof(struct mc_enc_header) +
	       (raw / MC_CHUNK_MAX + 1) * sizeof(struct mc_enc_chunk);
}

uint64_t mc_copyset_pages_max(uint64_t unit)
{
	return (unit - overhead(unit)) / (MC_PAGE_SIZE + sizeof(struct mc_enc_page));
}

uint64_t mc_copyset_state_max(uint64_t unit)
{
	return unit - overhead(unit);
}

static int check_header(const struct mc_enc_header *h, size_t len, const struct mc_enc_limits *lim)
{
	if (h->magic != MC_ENC_MAGIC)
		return -EBADMSG;
	if (h->version != MC_ENC_VERSION)
		return -EPROTONOSUPPORT;
	if (h->reserved || len > lim->unit)
		return -EBADMSG;
	if (h->of_kind == MC_KIND_STATE) {
		if (h->pages || h->base || !h->raw_len ||
		    h->raw_len > mc_copyset_state_max(lim->unit))
			return -EBADMSG;
	} else if (h->of_kind == MC_KIND_PAGES) {
		if (h->pages > mc_copyset_pages_max(lim->unit) || h->hash ||
		    h->raw_len > h->pages * MC_PAGE_SIZE)
			return -EBADMSG;
	} else {
		return -EBADMSG;
	}
	if (h->chunks != (h->raw_len + MC_CHUNK_MAX - 1) / MC_CHUNK_MAX)
		return -EBADMSG;
	return 0;
}

static bool length_fits(const struct mc_enc_page *p)
{
	switch (p->method) {
	case MC_PAGE_ZERO:
		return p->length == 0;
	case MC_PAGE_FULL:
		return p->length == MC_PAGE_SIZE;
	case MC_PAGE_DELTA:
		return p->length <= MC_DELTA_MAX;
	default:
		return false;
	}
}

static int check_pages(const struct mc_enc_view *v, const struct mc_enc_limits *lim)
{
	uint64_t content = 0;

	for (uint32_t i = 0; i < v->h.pages; i++) {
		struct mc_enc_page p = v->page[i];

		if (p.block >= lim->nblocks || mc_enc_page_offset(&p) >= lim->block_size[p.block])
			return -EBADMSG;
		if (!length_fits(&p) || (p.method == MC_PAGE_DELTA && !v->h.base))
			return -EBADMSG;
		content += p.length;
	}
	return v->h.of_kind == MC_KIND_STATE || content == v->h.raw_len ? 0 : -EBADMSG;
}

static int check_chunks(const struct mc_enc_view *v)
{
	uint64_t left = v->h.raw_len, bytes = 0;

	for (uint32_t i = 0; i < v->h.chunks; i++) {
		struct mc_enc_chunk c = v->chunk[i];
		uint64_t want = left < MC_CHUNK_MAX ? left : MC_CHUNK_MAX;

		if (c.reserved || c.raw_len != want || !c.enc_len || c.enc_len > c.raw_len)
			return -EBADMSG;
		if (c.codec == MC_CHUNK_PLAIN ? c.enc_len != c.raw_len
		                              : c.codec != MC_CHUNK_ZSTD || c.enc_len == c.raw_len)
			return -EBADMSG;
		left -= want;
		bytes += c.enc_len;
	}
	return left == 0 && bytes == v->bytes_len ? 0 : -EBADMSG;
}

int mc_enc_parse(const void *buf, size_t len, const struct mc_enc_limits *lim,
                 struct mc_enc_view *ret)
{
	struct mc_enc_view v;
	uint64_t tables;
	int r;

	if (len < sizeof(v.h))
		return -EBADMSG;
	memcpy(&v.h, buf, sizeof(v.h));
	r = check_header(&v.h, len, lim);
	if (r < 0)
		return r;
	tables = (uint64_t)v.h.pages * sizeof(*v.page) + (uint64_t)v.h.chunks * sizeof(*v.chunk);
	if (tables > len - sizeof(v.h))
		return -EBADMSG;
	v.page = (const struct mc_enc_page *)((const uint8_t *)buf + sizeof(v.h));
	v.chunk = (const struct mc_enc_chunk *)(v.page + v.h.pages);
	v.bytes = (const uint8_t *)(v.chunk + v.h.chunks);
	v.bytes_len = len - sizeof(v.h) - tables;
	r = check_pages(&v, lim);
	if (r == 0)
		r = check_chunks(&v);
	if (r == 0)
		*ret = v;
	return r;
}
