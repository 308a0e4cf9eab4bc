/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a peer may send, and what it may not. */
#include <errno.h>
#include <stdio.h>

#include "decode.h"
#include "test-encoder.h"

#define UNIT   (1ULL << 20)
#define PAGES  512ULL
#define RAM    (PAGES * MC_PAGE_SIZE)
#define BLOCKS 2

struct world {
	struct decoder *d;
	struct mc_enc_limits lim;
	uint64_t size[BLOCKS];
	uint8_t *ram[BLOCKS]; /* the standby's */
	uint8_t *slab, *out;
	uint8_t *got; /* what was decoded, page after page */
	uint32_t n;
	uint64_t at[PAGES];
	int fail_at;
	unsigned seed;
};

static uint32_t pick(struct world *w, uint32_t n)
{
	return (uint32_t)rand_r(&w->seed) % n;
}

static int set_up(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_int_equal(decoder_new(&w->d, UNIT), 0);
	for (int i = 0; i < BLOCKS; i++) {
		w->ram[i] = calloc(1, RAM);
		w->size[i] = RAM / (1 + (unsigned)i);
	}
	w->lim = (struct mc_enc_limits){.unit = UNIT, .nblocks = BLOCKS, .block_size = w->size};
	w->slab = calloc(1, UNIT);
	w->out = calloc(1, UNIT);
	w->got = calloc(1, RAM);
	w->seed = 3;
	w->fail_at = -1;
	*state = w;
	return 0;
}

static int tear_down(void **state)
{
	struct world *w = *state;

	decoder_free(w->d);
	for (int i = 0; i < BLOCKS; i++)
		free(w->ram[i]);
	free(w->slab);
	free(w->out);
	free(w->got);
	free(w);
	return 0;
}

/* Whatever a slab says, only pages within the blocks come out, and in the decoder's limits. */
static int take(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content)
{
	struct world *w = ctx;

	assert_true(block < BLOCKS);
	assert_true(offset % MC_PAGE_SIZE == 0 && offset < w->size[block]);
	assert_true(w->n < mc_copyset_pages_max(UNIT));
	if (w->fail_at == (int)w->n)
		return -ENOSPC;
	w->at[w->n] = offset;
	if (content)
		memcpy(w->got + w->n * MC_PAGE_SIZE, content, MC_PAGE_SIZE);
	else
		memset(w->got + w->n * MC_PAGE_SIZE, 0, MC_PAGE_SIZE);
	w->n++;
	return 0;
}

static int decode(struct world *w, size_t len)
{
	struct mc_enc_view v;
	int r = decoder_open(w->d, w->slab, len, &w->lim, &v);

	w->n = 0;
	if (r < 0)
		return r;
	if (v.h.of_kind == MC_KIND_STATE) {
		r = decode_state(w->d, &v, w->out);
		memcpy(w->got, w->out, v.h.raw_len);
		return r;
	}
	return decode_pages(w->d, &v, w->ram, take, w);
}

static void fill(struct world *w, uint8_t *p, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		p[i] = (uint8_t)pick(w, 256);
}

/* Three pages: zero, full, delta; @content holds them. */
static size_t sample(struct world *w, uint8_t *content, bool zstd)
{
	struct test_page page[3] = {
	        {0, MC_PAGE_ZERO, 0, content, NULL},
	        {1, MC_PAGE_FULL, 5 * MC_PAGE_SIZE, content + MC_PAGE_SIZE, NULL},
	        {0, MC_PAGE_DELTA, 9 * MC_PAGE_SIZE, content + 2 * MC_PAGE_SIZE,
	         w->ram[0] + 9 * MC_PAGE_SIZE},
	};

	memset(content, 0, MC_PAGE_SIZE);
	memset(content + MC_PAGE_SIZE, 7, MC_PAGE_SIZE / 2);
	fill(w, content + MC_PAGE_SIZE, 100);
	fill(w, w->ram[0], MC_PAGE_SIZE); /* a zero page that turns into "no difference" shows */
	fill(w, w->ram[0] + 9 * MC_PAGE_SIZE, MC_PAGE_SIZE);
	memcpy(content + 2 * MC_PAGE_SIZE, w->ram[0] + 9 * MC_PAGE_SIZE, MC_PAGE_SIZE);
	content[2 * MC_PAGE_SIZE + 8]++;
	return test_pages(w->slab, 8, 7, 1, page, 3, zstd);
}

static void test_all_methods(void **state)
{
	uint8_t content[3 * MC_PAGE_SIZE] = {0};
	struct world *w = *state;

	for (int zstd = 0; zstd < 2; zstd++) {
		size_t len = sample(w, content, zstd);

		assert_int_equal(decode(w, len), 0);
		assert_int_equal(w->n, 3);
		assert_memory_equal(w->got, content, sizeof(content));
		assert_int_equal(w->at[2], 9 * MC_PAGE_SIZE);
	}
}

/* The maps of a difference say how long it is: three of them and a byte. */
static void test_delta_of_another_length(void **state)
{
	const size_t table = sizeof(struct mc_enc_header), in = table + sizeof(struct mc_enc_page);
	uint8_t content[MC_PAGE_SIZE] = {0};
	struct test_page page = {0, MC_PAGE_DELTA, 0, content, NULL};
	struct world *w = *state;

	page.base = w->ram[0];
	memcpy(content, w->ram[0], MC_PAGE_SIZE);
	content[4000] ^= 1;
	for (uint32_t n = 1; n < 20; n++) {
		size_t len = test_pages(w->slab, 8, 7, 1, &page, 1, false);
		uint64_t raw = n;
		uint16_t length = (uint16_t)n;

		memcpy(w->slab + table + offsetof(struct mc_enc_page, length), &length, 2);
		memcpy(w->slab + offsetof(struct mc_enc_header, raw_len), &raw, 8);
		memcpy(w->slab + in, &n, 4); /* of the chunk, raw and packed */
		memcpy(w->slab + in + 4, &n, 4);
		memset(w->slab + len, 0, 20);
		assert_int_equal(decode(w, len - 11 + n), n == 11 ? 0 : -EBADMSG);
	}
}

static void test_full_slab(void **state)
{
	struct world *w = *state;
	uint32_t n = (uint32_t)mc_copyset_pages_max(UNIT);
	mc_autofree struct test_page *page = calloc(n, sizeof(*page));
	mc_autofree uint8_t *content = malloc(n * MC_PAGE_SIZE);
	size_t len;

	for (int noise = 0; noise < 2; noise++) {
		memset(content, 1, n * MC_PAGE_SIZE);
		if (noise)
			fill(w, content, n * MC_PAGE_SIZE);
		for (uint32_t i = 0; i < n; i++)
			page[i] = (struct test_page){0, MC_PAGE_FULL, i * MC_PAGE_SIZE,
			                             content + i * MC_PAGE_SIZE, NULL};
		len = test_pages(w->slab, 1, 0, 1, page, n, true);
		assert_true(len <= UNIT);
		assert_int_equal(decode(w, len), 0);
		assert_int_equal(w->n, n);
		assert_memory_equal(w->got, content, n * MC_PAGE_SIZE);
	}
	/* Pages that were all struck out. */
	len = test_pages(w->slab, 1, 0, 1, page, 0, true);
	assert_int_equal(decode(w, len), 0);
	assert_int_equal(w->n, 0);
}

static void test_device_state(void **state)
{
	struct world *w = *state;
	uint64_t max = mc_copyset_state_max(UNIT);
	mc_autofree uint8_t *text = malloc(max + MC_PAGE_SIZE);
	const uint64_t size[] = {1, 40000, MC_CHUNK_MAX + 1, max};
	size_t len;

	fill(w, text, max);
	for (size_t i = 0; i < MC_ARRAY_SIZE(size); i++) {
		len = test_state(w->slab, 5, 0, text, size[i]);
		assert_int_equal(decode(w, len), 0);
		assert_memory_equal(w->got, text, size[i]);
	}
	len = test_state(w->slab, 5, 0, text, 40000);
	w->slab[offsetof(struct mc_enc_header, hash)] ^= 1;
	assert_int_equal(decode(w, len), -EBADMSG);
}

static void test_wrong_base(void **state)
{
	uint8_t content[3 * MC_PAGE_SIZE] = {0};
	struct world *w = *state;
	size_t len = sample(w, content, true);

	w->ram[0][9 * MC_PAGE_SIZE + 4000] ^= 1;
	assert_int_equal(decode(w, len), -EBADMSG);
	w->ram[0][9 * MC_PAGE_SIZE + 4000] ^= 1;
	assert_int_equal(decode(w, len), 0);
}

/* The epoch, its base and the sequence are checked by others. */
static bool is_free_field(size_t at)
{
	return (at >= offsetof(struct mc_enc_header, epoch) &&
	        at < offsetof(struct mc_enc_header, pages));
}

/* Where a full page goes can't be told by its hash: the checksum of the message covers it. */
static bool is_place(size_t at)
{
	size_t in = (at - sizeof(struct mc_enc_header)) % sizeof(struct mc_enc_page);

	return at >= sizeof(struct mc_enc_header) &&
	       at < sizeof(struct mc_enc_header) + 2 * sizeof(struct mc_enc_page) && in < 5;
}

static void test_every_corruption(void **state)
{
	uint8_t content[3 * MC_PAGE_SIZE] = {0};
	struct world *w = *state;

	for (int zstd = 0; zstd < 2; zstd++) {
		size_t len = sample(w, content, zstd);

		for (size_t i = 0; i < len * 8; i++) {
			int r;

			w->slab[i / 8] ^= (uint8_t)(1 << i % 8);
			r = decode(w, len);
			/* zstd leaves a few bits of its frames unused. */
			if (r == 0 && w->n == 3 && !memcmp(w->got, content, sizeof(content)) &&
			    i / 8 >= sizeof(struct mc_enc_header) + 3 * sizeof(struct mc_enc_page))
				r = -EBADMSG;
			if (r == 0 && !is_free_field(i / 8) && !is_place(i / 8))
				fail_msg("bit %zu of byte %zu turned, and accepted", i % 8, i / 8);
			w->slab[i / 8] ^= (uint8_t)(1 << i % 8);
		}
	}
}

static void test_every_truncation(void **state)
{
	uint8_t content[3 * MC_PAGE_SIZE] = {0};
	struct world *w = *state;
	size_t len = sample(w, content, true);

	for (size_t i = 0; i < len; i++)
		assert_int_equal(decode(w, i), -EBADMSG);
	for (size_t i = len + 1; i < len + 100; i++)
		assert_int_equal(decode(w, i), -EBADMSG);
	assert_int_equal(decode(w, UNIT), -EBADMSG);
	assert_int_equal(decode(w, UNIT + 1), -EBADMSG);
	assert_int_equal(decode(w, SIZE_MAX), -EBADMSG);
	assert_int_equal(decode(w, len), 0);
}

static void put8(struct world *w, size_t at, uint8_t v)
{
	w->slab[at] = v;
}

static void put16(struct world *w, size_t at, uint16_t v)
{
	memcpy(w->slab + at, &v, sizeof(v));
}

static void put32(struct world *w, size_t at, uint32_t v)
{
	memcpy(w->slab + at, &v, sizeof(v));
}

static void put64(struct world *w, size_t at, uint64_t v)
{
	memcpy(w->slab + at, &v, sizeof(v));
}

static void test_fields(void **state)
{
	const size_t page = sizeof(struct mc_enc_header) + sizeof(struct mc_enc_page);
	const size_t chunk = sizeof(struct mc_enc_header) + 3 * sizeof(struct mc_enc_page);
	uint8_t content[3 * MC_PAGE_SIZE] = {0};
	struct world *w = *state;
	size_t len;
	int want = -EBADMSG;

#define BAD(put, at, v)                                                                            \
	do {                                                                                       \
		len = sample(w, content, true);                                                    \
		put(w, at, v);                                                                     \
		assert_int_equal(decode(w, len), want);                                            \
	} while (0)
	BAD(put32, offsetof(struct mc_enc_header, magic), 0);
	BAD(put16, offsetof(struct mc_enc_header, of_kind), MC_KIND_ENCODED);
	BAD(put16, offsetof(struct mc_enc_header, of_kind), MC_KIND_STATE);
	BAD(put64, offsetof(struct mc_enc_header, base), 0); /* but there is a delta */
	BAD(put32, offsetof(struct mc_enc_header, pages), 0);
	BAD(put32, offsetof(struct mc_enc_header, pages), UINT32_MAX);
	BAD(put32, offsetof(struct mc_enc_header, chunks), UINT32_MAX);
	BAD(put32, offsetof(struct mc_enc_header, reserved), 1);
	BAD(put64, offsetof(struct mc_enc_header, raw_len), UINT64_MAX);
	BAD(put64, offsetof(struct mc_enc_header, raw_len), 0);
	BAD(put8, page + 4, BLOCKS);
	BAD(put8, page + 5, 3);
	BAD(put16, page + 6, 0); /* FULL is 4096 bytes, no more and no less */
	BAD(put16, page + 6, MC_PAGE_SIZE + 1);
	BAD(put32, page,
	    (uint32_t)(w->size[1] / MC_PAGE_SIZE)); /* the first one behind the block */
	BAD(put32, page, UINT32_MAX);
	BAD(put16, page + sizeof(struct mc_enc_page) + 6, MC_DELTA_MAX + 1);
	BAD(put32, chunk, 0);
	BAD(put32, chunk, UINT32_MAX);
	BAD(put32, chunk + 4, 0);
	BAD(put32, chunk + 4, UINT32_MAX);
	BAD(put32, chunk + 8, 2);
	BAD(put32, chunk + 12, 1);
	want = -EPROTONOSUPPORT;
	BAD(put16, offsetof(struct mc_enc_header, version), MC_ENC_VERSION - 1);
	BAD(put16, offsetof(struct mc_enc_header, version), MC_ENC_VERSION + 1);
#undef BAD
}

/* A compressed chunk that holds more, or less, than it says. */
static void test_chunk_that_lies(void **state)
{
	const size_t chunk = sizeof(struct mc_enc_header) + sizeof(struct mc_enc_page);
	static uint8_t big[64 * MC_PAGE_SIZE];
	struct mc_enc_chunk c = {.raw_len = MC_PAGE_SIZE, .codec = MC_CHUNK_ZSTD};
	const size_t sizes[] = {sizeof(big), MC_PAGE_SIZE + 1, MC_PAGE_SIZE - 1};
	struct test_page page = {0, MC_PAGE_FULL, 0, big, NULL};
	struct world *w = *state;

	for (size_t i = 0; i < MC_ARRAY_SIZE(sizes); i++) {
		(void)test_pages(w->slab, 1, 0, 1, &page, 1, true);
		c.enc_len = (uint32_t)ZSTD_compress(w->slab + chunk + sizeof(c), 4096, big,
		                                    sizes[i], 1);
		memcpy(w->slab + chunk, &c, sizeof(c));
		assert_int_equal(decode(w, chunk + sizeof(c) + c.enc_len), -EBADMSG);
	}
}

/* Once opened, a slab can't be changed under the decoder. */
static void test_private_copy(void **state)
{
	uint8_t content[3 * MC_PAGE_SIZE] = {0};
	struct world *w = *state;
	struct mc_enc_view v;
	size_t len = sample(w, content, false);

	assert_int_equal(decoder_open(w->d, w->slab, len, &w->lim, &v), 0);
	memset(w->slab, 0xff, len);
	w->n = 0;
	assert_int_equal(decode_pages(w->d, &v, w->ram, take, w), 0);
	assert_memory_equal(w->got, content, sizeof(content));
	assert_int_equal(decoder_open(w->d, NULL, 100, &w->lim, &v), -EBADMSG);
}

static void test_taker_fails(void **state)
{
	uint8_t content[3 * MC_PAGE_SIZE] = {0};
	struct world *w = *state;
	size_t len = sample(w, content, true);

	for (int i = 0; i < 3; i++) {
		w->fail_at = i;
		assert_int_equal(decode(w, len), -ENOSPC);
		assert_int_equal(w->n, i);
	}
}

/* Nonsense of all kinds; what it does to memory is the sanitizers' to tell. */
static void test_fuzz(void **state)
{
	uint8_t content[3 * MC_PAGE_SIZE] = {0}, text[2000];
	struct world *w = *state;
	mc_autofree uint8_t *good = malloc(UNIT);
	uint32_t refused = 0;

	fill(w, text, sizeof(text));
	for (int i = 0; i < 60000; i++) {
		size_t len = 0;

		if (i % 1000 == 0)
			len = i % 3000 ? sample(w, content, i % 2000)
			               : test_state(w->slab, 4, 0, text, sizeof(text));
		if (i % 1000 == 0) {
			memcpy(good, w->slab, len);
			memcpy(good + UNIT - sizeof(len), &len, sizeof(len));
		}
		memcpy(&len, good + UNIT - sizeof(len), sizeof(len));
		memcpy(w->slab, good, len);
		for (uint32_t k = 1 + pick(w, 6); k; k--) {
			size_t at = pick(w, 2) ? pick(w, (uint32_t)len) : pick(w, 200) % len;

			w->slab[at] = (uint8_t)(pick(w, 3) ? pick(w, 256) : pick(w, 2) * 255);
		}
		if (pick(w, 8) == 0)
			len = pick(w, (uint32_t)len + 50);
		refused += decode(w, len) < 0;
	}
	assert_true(refused > 50000);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
	        TEST(test_all_methods),
	        TEST(test_full_slab),
	        TEST(test_delta_of_another_length),
	        TEST(test_device_state),
	        TEST(test_wrong_base),
	        TEST(test_every_corruption),
	        TEST(test_every_truncation),
	        TEST(test_fields),
	        TEST(test_chunk_that_lies),
	        TEST(test_private_copy),
	        TEST(test_taker_fails),
	        TEST(test_fuzz),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
