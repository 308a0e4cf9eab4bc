/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Encoded slabs, taken apart again by a decoder of the test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "encode.h"
#include "test-decoder.h"

#define UNIT   (1ULL << 20)
#define RAM    (512 * MC_PAGE_SIZE)
#define BLOCKS 2

static const uint8_t canary[8] = "canary";

struct world {
	struct encoder *e;
	struct mc_shadow shadow;
	struct backup backup;
	uint8_t *raw, *out;
	struct mc_page_desc desc[512];
	struct mc_slab_meta meta;
	struct encode_job job;
	struct encode_stats stats;
	uint32_t seed;
};

static uint32_t next_random(struct world *w)
{
	w->seed = w->seed * 1664525 + 1013904223;
	return w->seed >> 8;
}

static void shadow_new(struct mc_shadow *s, uint64_t sets)
{
	*s = (struct mc_shadow){.shm = calloc(1, sizeof(*s->shm)),
	                        .entry = calloc(sets * MC_SHADOW_WAYS, sizeof(*s->entry)),
	                        .data = calloc(sets * MC_SHADOW_WAYS, MC_PAGE_SIZE),
	                        .sets = sets,
	                        .role = MC_ROLE_STAGE0};
	assert_int_equal(mc_shadow_init(s->shm, sets), 0);
}

static int set_up(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_int_equal(encoder_new(&w->e, UNIT), 0);
	shadow_new(&w->shadow, 64);
	backup_new(&w->backup, UNIT, BLOCKS, RAM);
	w->raw = calloc(1, UNIT);
	w->out = malloc(UNIT + sizeof(canary));
	memcpy(w->out + UNIT, canary, sizeof(canary));
	w->seed = 1;
	w->job = (struct encode_job){.meta = &w->meta,
	                             .raw = w->raw,
	                             .desc = w->desc,
	                             .nblocks = BLOCKS,
	                             .shadow = &w->shadow,
	                             .level = -1};
	*state = w;
	return 0;
}

static int tear_down(void **state)
{
	struct world *w = *state;

	encoder_free(w->e);
	free(w->shadow.shm);
	free(w->shadow.entry);
	free(w->shadow.data);
	backup_free(&w->backup);
	free(w->raw);
	free(w->out);
	free(w);
	return 0;
}

static void begin(struct world *w, uint64_t epoch, uint64_t base)
{
	memset(&w->meta, 0, sizeof(w->meta));
	w->meta.kind = MC_KIND_PAGES;
	w->meta.epoch = epoch;
	w->meta.seq = 1;
	w->job.base = base;
	w->stats = (struct encode_stats){0};
}

static uint8_t *add_page(struct world *w, uint32_t block, uint64_t page, uint32_t flags)
{
	uint32_t n = w->meta.pages++;

	w->desc[n] = (struct mc_page_desc){
	        .block = block, .offset = page * MC_PAGE_SIZE, .flags = flags};
	w->meta.used += MC_PAGE_SIZE;
	return w->raw + n * MC_PAGE_SIZE;
}

static void fill(struct world *w, uint8_t *page)
{
	for (size_t i = 0; i < MC_PAGE_SIZE; i += 4) {
		uint32_t v = next_random(w);

		memcpy(page + i, &v, 4);
	}
}

/* Nothing beyond the unit may be written. */
static size_t encode(struct world *w)
{
	int64_t n = encode_slab(w->e, &w->job, w->out, &w->stats);

	assert_true(n > 0);
	assert_true((uint64_t)n <= UNIT);
	assert_memory_equal(w->out + UNIT, canary, sizeof(canary));
	return (size_t)n;
}

/* What was encoded must now be in the backup's RAM. */
static void check_backup(struct world *w)
{
	for (uint32_t i = 0; i < w->meta.pages; i++)
		if (!(w->desc[i].flags & MC_PAGE_STRUCK))
			assert_memory_equal(w->backup.ram[w->desc[i].block] + w->desc[i].offset,
			                    w->raw + i * MC_PAGE_SIZE, MC_PAGE_SIZE);
}

static size_t round_trip(struct world *w)
{
	struct mc_enc_view v;
	size_t n = encode(w);

	assert_true(backup_decode(&w->backup, w->out, n, &v));
	check_backup(w);
	return n;
}

static void test_zero_full_delta(void **state)
{
	struct world *w = *state;
	uint8_t *p;
	size_t n;

	begin(w, 1, 0);
	memset(add_page(w, 0, 0, 0), 0, MC_PAGE_SIZE);
	fill(w, add_page(w, 0, 1, 0));
	fill(w, add_page(w, 1, 1, 0));
	p = add_page(w, 1, 2, 0);
	memset(p, 0, MC_PAGE_SIZE);
	p[MC_PAGE_SIZE - 1] = 1; /* almost zero is not zero */
	n = round_trip(w);
	assert_int_equal(w->stats.zero, 1);
	assert_int_equal(w->stats.full, 3);
	assert_int_equal(w->stats.delta, 0);
	assert_in_range(n, 2 * MC_PAGE_SIZE, 2 * MC_PAGE_SIZE + 1024);
	/* The same pages with one byte changed: deltas, almost nothing to send. */
	w->meta.epoch = 2;
	w->job.base = 1;
	w->stats = (struct encode_stats){0};
	w->raw[MC_PAGE_SIZE + 77] ^= 0x55;
	n = round_trip(w);
	assert_int_equal(w->stats.delta, 3);
	assert_true(n < 512);
}

static void test_incompressible_fits(void **state)
{
	struct world *w = *state;
	struct mc_enc_limits lim = {.unit = UNIT, .nblocks = BLOCKS, .block_size = w->backup.size};
	struct mc_enc_view v;
	size_t n;

	begin(w, 1, 0);
	for (uint64_t i = 0; i < mc_copyset_pages_max(UNIT); i++)
		fill(w, add_page(w, 0, i, 0));
	n = round_trip(w);
	assert_int_equal(mc_enc_parse(w->out, n, &lim, &v), 0);
	for (uint32_t i = 0; i < v.h.chunks; i++) {
		assert_int_equal(v.chunk[i].codec, MC_CHUNK_PLAIN);
		assert_int_equal(v.chunk[i].enc_len, v.chunk[i].raw_len);
	}
	/* One page more is refused before anything is written. */
	fill(w, add_page(w, 0, 300, 0));
	assert_int_equal(encode_slab(w->e, &w->job, w->out, &w->stats), -EBADMSG);
}

static void test_first_copy_has_no_shadow(void **state)
{
	struct world *w = *state;

	w->job.shadow = NULL;
	for (int round = 0; round < 2; round++) {
		begin(w, 0, 0);
		fill(w, add_page(w, 0, 5, 0));
		round_trip(w);
		assert_int_equal(w->stats.full, 1);
	}
}

static void test_nobase_goes_in_full(void **state)
{
	struct world *w = *state;

	begin(w, 1, 0);
	fill(w, add_page(w, 0, 9, 0));
	round_trip(w);
	begin(w, 2, 1);
	w->raw[0]++;
	add_page(w, 0, 9, MC_PAGE_NOBASE);
	round_trip(w);
	assert_int_equal(w->stats.full, 1);
	/* From then on it has a base again. */
	begin(w, 3, 2);
	w->raw[0]++;
	add_page(w, 0, 9, 0);
	round_trip(w);
	assert_int_equal(w->stats.delta, 1);
}

/* A successor encodes the slab of its dead predecessor again: no page against itself. */
static void test_repeat_of_an_epoch(void **state)
{
	struct world *w = *state;

	begin(w, 1, 0);
	fill(w, add_page(w, 0, 3, 0));
	round_trip(w);
	begin(w, 2, 1);
	w->raw[8]++;
	add_page(w, 0, 3, 0);
	(void)encode(w); /* lost with its worker */
	assert_int_equal(w->stats.delta, 1);
	w->stats = (struct encode_stats){0};
	round_trip(w);
	assert_int_equal(w->stats.delta, 0);
	assert_int_equal(w->stats.full, 1);
}

/* A page of an aborted epoch that capture forgot to mark: the shadow holds what never arrived. */
static void test_aborted_epoch_is_no_base(void **state)
{
	struct world *w = *state;

	begin(w, 1, 0);
	fill(w, add_page(w, 0, 3, 0));
	round_trip(w);
	begin(w, 2, 1);
	w->raw[8]++;
	add_page(w, 0, 3, 0);
	(void)encode(w); /* aborted */
	begin(w, 3, 1);
	w->raw[8]++;
	add_page(w, 0, 3, 0);
	round_trip(w);
	assert_int_equal(w->stats.full, 1);
}

static void test_page_that_became_zero(void **state)
{
	struct world *w = *state;

	begin(w, 1, 0);
	fill(w, add_page(w, 1, 7, 0));
	round_trip(w);
	begin(w, 2, 1);
	memset(add_page(w, 1, 7, 0), 0, MC_PAGE_SIZE);
	round_trip(w);
	assert_int_equal(w->stats.zero, 1);
	begin(w, 3, 2);
	fill(w, add_page(w, 1, 7, 0));
	round_trip(w);
	assert_int_equal(w->stats.full, 1); /* its base was dropped */
}

static void test_struck_out(void **state)
{
	struct world *w = *state;
	struct mc_enc_view v;
	size_t n;

	begin(w, 1, 0);
	fill(w, add_page(w, 0, 1, MC_PAGE_STRUCK));
	fill(w, add_page(w, 0, 2, 0));
	n = encode(w);
	assert_true(backup_decode(&w->backup, w->out, n, &v));
	assert_int_equal(v.h.pages, 1);
	assert_int_equal(v.page[0].page, 2);
	assert_int_equal(w->backup.ram[0][MC_PAGE_SIZE], 0);
	check_backup(w);
	/* All of them: a slab that says nothing, but counts. */
	begin(w, 2, 1);
	fill(w, add_page(w, 0, 1, MC_PAGE_STRUCK));
	n = encode(w);
	assert_true(backup_decode(&w->backup, w->out, n, &v));
	assert_int_equal(v.h.pages, 0);
	assert_int_equal(n, sizeof(v.h));
}

/* More pages than a set has ways, and every way taken by others: content stays right. */
static void test_shadow_collisions(void **state)
{
	struct world *w = *state;
	struct mc_shadow small;
	uint32_t deltas = 0;

	shadow_new(&small, 1);
	w->job.shadow = &small;
	for (uint64_t epoch = 1; epoch < 200; epoch++) {
		begin(w, epoch, epoch - 1);
		for (int i = 0; i < 12; i++) {
			uint8_t *p = add_page(w, next_random(w) % BLOCKS, (uint64_t)i, 0);

			if (next_random(w) % 8 == 0)
				memset(p, 0, MC_PAGE_SIZE);
			else
				p[next_random(w) % MC_PAGE_SIZE] ^= (uint8_t)next_random(w);
		}
		/* A worker of another role died in the middle of some ways. */
		if (epoch == 50)
			for (int i = 0; i < 5; i++)
				atomic_fetch_or(&small.entry[i].word, MC_ROLE_STAGE0 + 1);
		round_trip(w);
		deltas += w->stats.delta;
	}
	assert_true(deltas > 100);
	assert_true(atomic_load(&small.shm->evictions) > 100);
	free(small.shm);
	free(small.entry);
	free(small.data);
}

static void test_device_state(void **state)
{
	struct world *w = *state;
	struct mc_enc_limits lim = {.unit = UNIT, .nblocks = BLOCKS, .block_size = w->backup.size};
	uint64_t max = mc_copyset_state_max(UNIT);
	static const uint64_t odd[] = {1, 4095, MC_CHUNK_MAX, MC_CHUNK_MAX + 1};
	struct mc_enc_view v;

	for (size_t i = 0; i <= MC_ARRAY_SIZE(odd); i++) {
		uint64_t len = i < MC_ARRAY_SIZE(odd) ? odd[i] : max;
		size_t n;

		for (uint64_t b = 0; b < len; b++)
			w->raw[b] = (uint8_t)next_random(w);
		begin(w, 4, 3);
		w->meta.kind = MC_KIND_STATE;
		w->meta.used = len;
		n = encode(w);
		assert_int_equal(mc_enc_parse(w->out, n, &lim, &v), 0);
		assert_int_equal(v.h.of_kind, MC_KIND_STATE);
		assert_int_equal(v.h.raw_len, len);
		assert_int_equal(v.h.base, 0);
		backup_unpack(&w->backup, &v);
		assert_memory_equal(w->backup.stream, w->raw, len);
		assert_int_equal(v.h.hash, XXH3_64bits(w->raw, len));
	}
	w->meta.used = max + 1;
	assert_int_equal(encode_slab(w->e, &w->job, w->out, &w->stats), -EBADMSG);
	w->meta.used = 0;
	assert_int_equal(encode_slab(w->e, &w->job, w->out, &w->stats), -EBADMSG);
}

static void test_refuses_nonsense(void **state)
{
	struct world *w = *state;

	begin(w, 1, 0);
	add_page(w, BLOCKS, 0, 0);
	assert_int_equal(encode_slab(w->e, &w->job, w->out, &w->stats), -EBADMSG);
	begin(w, 1, 0);
	add_page(w, 0, 0, 0);
	w->desc[0].offset = 100;
	assert_int_equal(encode_slab(w->e, &w->job, w->out, &w->stats), -EBADMSG);
	begin(w, 1, 0);
	w->meta.kind = MC_KIND_ENCODED;
	assert_int_equal(encode_slab(w->e, &w->job, w->out, &w->stats), -EBADMSG);
}

/* A guest's life: random pages of all kinds over many epochs, every level. */
static void test_many_epochs(void **state)
{
	struct world *w = *state;

	for (uint64_t epoch = 1; epoch < 120; epoch++) {
		uint64_t first = next_random(w) % 300;

		begin(w, epoch, epoch - 1);
		w->job.level = (int)(next_random(w) % 8) - 5;
		for (uint64_t i = 0; i < 1 + next_random(w) % 200; i++) {
			uint8_t *p = add_page(w, next_random(w) % BLOCKS, first + i, 0);

			switch (next_random(w) % 4) {
			case 0:
				memset(p, 0, MC_PAGE_SIZE);
				break;
			case 1:
				fill(w, p);
				break;
			default:
				memcpy(p, w->backup.ram[w->desc[i].block] + w->desc[i].offset,
				       MC_PAGE_SIZE);
				p[next_random(w) % MC_PAGE_SIZE]++;
			}
		}
		round_trip(w);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
	        TEST(test_zero_full_delta),          TEST(test_incompressible_fits),
	        TEST(test_first_copy_has_no_shadow), TEST(test_nobase_goes_in_full),
	        TEST(test_repeat_of_an_epoch),       TEST(test_aborted_epoch_is_no_base),
	        TEST(test_page_that_became_zero),    TEST(test_struck_out),
	        TEST(test_shadow_collisions),        TEST(test_device_state),
	        TEST(test_refuses_nonsense),         TEST(test_many_epochs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
