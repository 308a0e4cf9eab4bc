/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A decoder of the tests' own: what the backup would make of an encoded slab. */
#ifndef MC_STAGE_TEST_DECODER_H
#define MC_STAGE_TEST_DECODER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>
#include <zstd.h>

#include "../ipc/copyset.h"

#define BACKUP_BLOCKS 2

struct backup {
	uint64_t unit;
	uint32_t blocks;
	uint8_t *ram[BACKUP_BLOCKS];
	uint64_t size[BACKUP_BLOCKS];
	uint8_t *stream;
};

static inline void backup_new(struct backup *b, uint64_t unit, uint32_t blocks, uint64_t size)
{
	*b = (struct backup){.unit = unit, .blocks = blocks, .stream = malloc(unit)};
	for (uint32_t i = 0; i < blocks; i++) {
		b->ram[i] = calloc(1, size);
		b->size[i] = size;
	}
}

static inline void backup_free(struct backup *b)
{
	for (uint32_t i = 0; i < b->blocks; i++)
		free(b->ram[i]);
	free(b->stream);
}

static inline void backup_unpack(struct backup *b, const struct mc_enc_view *v)
{
	const uint8_t *from = v->bytes;
	uint8_t *to = b->stream;

	for (uint32_t i = 0; i < v->h.chunks; i++) {
		struct mc_enc_chunk c = v->chunk[i];

		if (c.codec == MC_CHUNK_PLAIN)
			memcpy(to, from, c.raw_len);
		else
			assert_int_equal(ZSTD_decompress(to, c.raw_len, from, c.enc_len),
			                 c.raw_len);
		to += c.raw_len;
		from += c.enc_len;
	}
}

/* A DELTA page, a byte after the other; false when its maps contradict its length. */
static inline bool backup_undo(uint8_t *page, const uint8_t *ram, const uint8_t *delta,
                               unsigned len)
{
	const uint8_t *line = delta + 8, *word, *byte;
	uint64_t lines = 0;

	memcpy(page, ram, MC_PAGE_SIZE);
	if (!len)
		return true;
	memcpy(&lines, delta, 8);
	word = byte = line + __builtin_popcountll(lines);
	for (const uint8_t *l = line; l < word; l++)
		byte += __builtin_popcount(*l);
	for (unsigned i = 0; i < MC_PAGE_SIZE; i++) {
		bool last = i % 8 == 7;

		if (!(lines >> i / 64 & 1))
			continue;
		if (*line >> i / 8 % 8 & 1) {
			page[i] ^= *word >> i % 8 & 1 ? *byte++ : 0;
			word += last;
		}
		line += i % 64 == 63;
	}
	return byte == delta + len;
}

/* False when a hash doesn't fit: then nothing is applied. */
static inline bool backup_decode(struct backup *b, const void *slab, size_t len,
                                 struct mc_enc_view *v)
{
	struct mc_enc_limits lim = {.unit = b->unit, .nblocks = b->blocks, .block_size = b->size};
	uint8_t page[MC_PAGE_SIZE];

	assert_int_equal(mc_enc_parse(slab, len, &lim, v), 0);
	backup_unpack(b, v);
	for (int apply = 0; apply < 2; apply++) {
		uint8_t *at = b->stream;

		for (uint32_t i = 0; i < v->h.pages; i++) {
			struct mc_enc_page p = v->page[i];
			uint8_t *ram = b->ram[p.block] + mc_enc_page_offset(&p);

			memset(page, 0, sizeof(page));
			if (p.method == MC_PAGE_FULL)
				memcpy(page, at, sizeof(page));
			if (p.method == MC_PAGE_DELTA && !backup_undo(page, ram, at, p.length))
				return false;
			if (XXH3_64bits(page, MC_PAGE_SIZE) != p.hash)
				return false;
			if (apply)
				memcpy(ram, page, MC_PAGE_SIZE);
			at += p.length;
		}
	}
	return true;
}

#endif
