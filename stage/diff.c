/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "diff.h"

#include <stdbool.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define LINES (MC_PAGE_SIZE / MC_LINE_SIZE)
#define ONES  0x0101010101010101ULL /* one in each byte */

/* Where the parts of a difference end so far. */
struct ends {
	uint8_t *line, *map, *byte;
};

static inline bool too_many(uint64_t lines)
{
	return __builtin_popcountll(lines) > DIFF_LINES;
}

/* Map of the lines, maps of their words, maps of the words' bytes, bytes: one after the other. */
static inline unsigned join(uint8_t *to, uint64_t lines, const struct diff_scratch *s,
                            const struct ends *e)
{
	size_t maps = (size_t)(e->map - s->map), bytes = (size_t)(e->byte - s->byte);

	memcpy(to, &lines, sizeof(lines));
	memcpy(e->line, s->map, maps);
	memcpy(e->line + maps, s->byte, bytes);
	return (unsigned)((size_t)(e->line - to) + maps + bytes);
}

static inline bool line_differs(const uint8_t *a, const uint8_t *b)
{
	uint64_t x[8], y[8], any = 0;

	memcpy(x, a, sizeof(x));
	memcpy(y, b, sizeof(y));
	for (unsigned i = 0; i < 8; i++)
		any |= x[i] ^ y[i];
	return any;
}

/* A bit for each byte of @x that isn't 0. */
static inline unsigned byte_map(uint64_t x)
{
	uint64_t high = ((x & 0x7f * ONES) + 0x7f * ONES) | x;

	return (unsigned)((high >> 7 & ONES) * 0x0102040810204080ULL >> 56);
}

static inline void diff_line(struct ends *e, const uint8_t *from, uint8_t *old)
{
	unsigned map = 0;

	for (unsigned i = 0; i < 8; i++) {
		uint64_t x, y;
		unsigned m;

		memcpy(&x, from + i * 8, 8);
		memcpy(&y, old + i * 8, 8);
		m = byte_map(x ^ y);
		if (!m)
			continue;
		map |= 1U << i;
		*e->map++ = (uint8_t)m;
		for (; m; m &= m - 1) {
			unsigned at = i * 8 + (unsigned)__builtin_ctz(m);

			*e->byte++ = from[at] ^ old[at];
		}
	}
	*e->line++ = (uint8_t)map;
	memcpy(old, from, MC_LINE_SIZE);
}

unsigned diff_plain(uint8_t *to, const uint8_t *page, uint8_t *base, struct diff_scratch *s)
{
	struct ends e = {.line = to + sizeof(uint64_t), .map = s->map, .byte = s->byte};
	uint64_t lines = 0;

	for (unsigned i = 0; i < LINES; i++)
		lines |= (uint64_t)line_differs(page + i * MC_LINE_SIZE, base + i * MC_LINE_SIZE)
		         << i;
	if (!lines)
		return 0;
	if (too_many(lines)) {
		memcpy(base, page, MC_PAGE_SIZE);
		return DIFF_FULL;
	}
	for (uint64_t l = lines; l; l &= l - 1) {
		unsigned at = (unsigned)__builtin_ctzll(l) * MC_LINE_SIZE;

		diff_line(&e, page + at, base + at);
	}
	return join(to, lines, s, &e);
}

#ifdef __x86_64__
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vbmi2,bmi2,popcnt")))

/* A line is one register, and nothing depends on what it holds: no branch to be guessed wrong. */
TARGET static inline void diff_line_avx512(struct ends *e, const uint8_t *from, uint8_t *old)
{
	__m512i a = _mm512_loadu_si512(from), x = _mm512_xor_si512(a, _mm512_loadu_si512(old));
	__mmask64 bytes = _mm512_test_epi8_mask(x, x);
	__mmask8 words = _mm512_test_epi64_mask(x, x);
	uint64_t maps = _pext_u64(bytes, _pdep_u64(words, ONES) * 0xff);

	_mm512_storeu_si512(old, a);
	*e->line++ = words;
	memcpy(e->map, &maps, sizeof(maps));
	e->map += __builtin_popcount(words);
	_mm512_storeu_si512(e->byte, _mm512_maskz_compress_epi8(bytes, x));
	e->byte += __builtin_popcountll(bytes);
}

TARGET static unsigned diff_avx512(uint8_t *to, const uint8_t *page, uint8_t *base,
                                   struct diff_scratch *s)
{
	struct ends e = {.line = to + sizeof(uint64_t), .map = s->map, .byte = s->byte};
	uint64_t lines = 0;

	for (unsigned i = 0; i < LINES; i++) {
		__m512i x = _mm512_xor_si512(_mm512_loadu_si512(page + i * MC_LINE_SIZE),
		                             _mm512_loadu_si512(base + i * MC_LINE_SIZE));

		lines |= (uint64_t)(_mm512_test_epi64_mask(x, x) != 0) << i;
	}
	if (!lines)
		return 0;
	if (too_many(lines)) {
		memcpy(base, page, MC_PAGE_SIZE);
		return DIFF_FULL;
	}
	for (uint64_t l = lines; l; l &= l - 1) {
		unsigned at = (unsigned)__builtin_ctzll(l) * MC_LINE_SIZE;

		diff_line_avx512(&e, page + at, base + at);
	}
	return join(to, lines, s, &e);
}

static bool has_avx512(void)
{
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2") &&
	       __builtin_cpu_supports("popcnt");
}
#endif

diff_fn diff_best(void)
{
#ifdef __x86_64__
	if (has_avx512())
		return diff_avx512;
#endif
	return diff_plain;
}
