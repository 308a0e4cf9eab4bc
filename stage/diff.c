/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "diff.h"

#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define LINES (MC_PAGE_SIZE / MC_LINE_SIZE)

/* Head, maps of the lines and words stand one after the other. */
static inline unsigned finish(uint8_t *to, uint8_t *maps_end, uint64_t map, const uint64_t *words,
                              const uint64_t *words_end)
{
	size_t len = (size_t)(words_end - words) * sizeof(*words);

	if (!map)
		return 0;
	memcpy(to, &map, sizeof(map));
	memcpy(maps_end, words, len);
	return (unsigned)((size_t)(maps_end - to) + len);
}

/* The words of one line that differ: XORed to @to, copied to @old. Their map. */
static inline unsigned diff_line(uint64_t *to, const uint8_t *from, uint8_t *old)
{
	uint64_t x[8], y[8], any = 0;
	unsigned map = 0, n = 0;

	memcpy(x, from, sizeof(x));
	memcpy(y, old, sizeof(y));
	for (unsigned i = 0; i < 8; i++) {
		y[i] ^= x[i];
		any |= y[i];
	}
	if (!any)
		return 0;
	memcpy(old, x, sizeof(x));
	for (unsigned i = 0; i < 8; i++) {
		to[n] = y[i];
		map |= (unsigned)(y[i] != 0) << i;
		n += y[i] != 0;
	}
	return map;
}

unsigned diff_plain(uint8_t *to, const uint8_t *page, uint8_t *base, uint64_t *words)
{
	uint8_t *at = to + sizeof(uint64_t);
	uint64_t map = 0, *word = words;

	for (unsigned i = 0; i < LINES; i++) {
		unsigned m = diff_line(word, page + i * MC_LINE_SIZE, base + i * MC_LINE_SIZE);

		*at = (uint8_t)m;
		at += m != 0;
		map |= (uint64_t)(m != 0) << i;
		word += __builtin_popcount(m);
	}
	return finish(to, at, map, words, word);
}

#ifdef __x86_64__
/* A line is one register, and nothing depends on what it holds: no branch to be guessed wrong. */
__attribute__((target("avx512f,popcnt"))) static unsigned diff_avx512(uint8_t *to,
                                                                      const uint8_t *page,
                                                                      uint8_t *base,
                                                                      uint64_t *words)
{
	uint8_t *at = to + sizeof(uint64_t);
	uint64_t map = 0, *word = words;

	for (unsigned i = 0; i < LINES; i++) {
		__m512i a = _mm512_loadu_si512(page + i * MC_LINE_SIZE);
		__m512i x = _mm512_xor_si512(a, _mm512_loadu_si512(base + i * MC_LINE_SIZE));
		__mmask8 m = _mm512_test_epi64_mask(x, x);

		_mm512_storeu_si512(word, _mm512_maskz_compress_epi64(m, x));
		_mm512_mask_storeu_epi64(base + i * MC_LINE_SIZE, m, a);
		*at = m;
		at += m != 0;
		map |= (uint64_t)(m != 0) << i;
		word += __builtin_popcount(m);
	}
	return finish(to, at, map, words, word);
}
#endif

diff_fn diff_best(void)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("popcnt"))
		return diff_avx512;
#endif
	return diff_plain;
}
