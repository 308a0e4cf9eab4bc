/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Page hashes: what tells pages apart, the box between two processes, the message. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "copyset.h"
#include "util.h"
#include "wire.h"

static bool same(struct mc_page_hash a, struct mc_page_hash b)
{
	return mc_hash_equal(&a, &b);
}

static void test_pages(void **state)
{
	static uint8_t a[MC_PAGE_SIZE], b[MC_PAGE_SIZE];
	struct mc_page_hash zero = mc_hash_page(a, 1);

	(void)state;
	assert_true(mc_hash_is_zero(&zero));
	for (size_t i = 0; i < MC_PAGE_SIZE; i += 7) {
		memcpy(b, a, sizeof(b));
		b[i] ^= 1;
		assert_false(same(mc_hash_page(a, 1), mc_hash_page(b, 1)));
		assert_true(same(mc_hash_page(b, 1), mc_hash_page(b, 1)));
		/* Who doesn't know the seed can't tell the hash. */
		assert_false(same(mc_hash_page(b, 1), mc_hash_page(b, 2)));
		a[i] = (uint8_t)(i * 31 + 1);
	}
}

static struct mc_hash_box *box_new(void)
{
	return calloc(1, sizeof(struct mc_hash_box));
}

static struct mc_hash_question question(uint64_t n)
{
	return (struct mc_hash_question){.seed = 9, .first = n * 64, .pages = 64};
}

static int ask(struct mc_hash_asker *a, uint64_t n)
{
	struct mc_hash_question q = question(n);

	return mc_hash_ask(a, &q);
}

static void answer(struct mc_hash_box *box)
{
	struct mc_hash_slot *s = mc_hash_question(box, atomic_load(&box->answered));

	assert_non_null(s);
	s->hash[0].low = s->q.first + 1;
	mc_hash_answered(box, true);
}

static void expect(struct mc_hash_asker *a, uint64_t n)
{
	struct mc_hash_slot *s = mc_hash_answer(a);

	assert_non_null(s);
	assert_int_equal(s->q.first, n * 64);
	assert_int_equal(s->known, 1);
	assert_int_equal(s->hash[0].low, n * 64 + 1);
	mc_hash_taken(a);
}

/* In order, as many at a time as there are slots, for long. */
static void test_box(void **state)
{
	struct mc_hash_box *box = box_new();
	struct mc_hash_asker a;

	(void)state;
	mc_hash_asker_init(&a, box);
	assert_null(mc_hash_question(box, 0));
	assert_null(mc_hash_answer(&a));
	for (uint64_t n = 0; n < 100; n += MC_HASH_SLOTS) {
		for (uint64_t i = 0; i < MC_HASH_SLOTS; i++) {
			assert_int_equal(mc_hash_room(&a), MC_HASH_SLOTS - i);
			assert_int_equal(ask(&a, n + i), 0);
		}
		assert_int_equal(ask(&a, n), -EBUSY);
		assert_null(mc_hash_answer(&a));
		for (uint64_t i = 0; i < MC_HASH_SLOTS; i++)
			answer(box);
		assert_null(mc_hash_question(box, n + MC_HASH_SLOTS));
		/* Answered, but not taken: their slots are still in use. */
		assert_int_equal(ask(&a, n), -EBUSY);
		for (uint64_t i = 0; i < MC_HASH_SLOTS; i++)
			expect(&a, n + i);
		assert_null(mc_hash_answer(&a));
	}
	free(box);
}

/* One that begins anew hears nothing of what was asked before, however late it is answered. */
static void test_forgotten_questions(void **state)
{
	struct mc_hash_box *box = box_new();
	struct mc_hash_asker a, b;

	(void)state;
	mc_hash_asker_init(&a, box);
	for (uint64_t n = 0; n < 6; n++)
		assert_int_equal(ask(&a, n), 0);
	answer(box);
	answer(box);
	mc_hash_asker_init(&b, box);
	assert_int_equal(mc_hash_room(&b), MC_HASH_SLOTS - 4);
	assert_null(mc_hash_answer(&b));
	assert_int_equal(ask(&b, 50), 0);
	for (int i = 0; i < 4; i++) {
		answer(box);
		assert_null(mc_hash_answer(&b));
	}
	assert_int_equal(mc_hash_room(&b), MC_HASH_SLOTS - 1);
	answer(box);
	expect(&b, 50);
	assert_int_equal(ask(&b, 51), 0);
	answer(box);
	expect(&b, 51);
	free(box);
}

static void test_drain(void **state)
{
	struct mc_hash_box *box = box_new();
	struct mc_hash_asker a;

	(void)state;
	mc_hash_asker_init(&a, box);
	assert_int_equal(mc_hash_drain(box), 0);
	for (uint64_t n = 0; n < 3; n++)
		assert_int_equal(ask(&a, n), 0);
	answer(box);
	assert_int_equal(mc_hash_drain(box), 2);
	expect(&a, 0);
	for (int i = 0; i < 2; i++) {
		assert_non_null(mc_hash_answer(&a));
		assert_int_equal(mc_hash_answer(&a)->known, 0);
		mc_hash_taken(&a);
	}
	/* Numbers that can't be: nobody follows them out of the box. */
	atomic_store(&box->asked, atomic_load(&box->answered) + MC_HASH_SLOTS + 1);
	assert_null(mc_hash_question(box, atomic_load(&box->answered)));
	assert_int_equal(mc_hash_drain(box), 0);
	assert_int_equal(ask(&a, 1), -EBADMSG);
	free(box);
}

static void fill(struct mc_hash_slot *s, uint64_t pages)
{
	memset(s, 0, sizeof(*s));
	s->q = (struct mc_hash_question){.first = 640, .pages = pages};
	s->known = 1;
	for (uint64_t i = 0; i < pages; i += 1 + i % 3)
		s->hash[i] = (struct mc_page_hash){.low = i, .high = i + 1};
}

static void test_message(void **state)
{
	static const uint64_t pages[] = {1, 63, 64, 65, 100, MC_HASH_PAGES};
	static uint8_t buf[MC_WIRE_HASHES_MAX + 1];
	static struct mc_hash_slot s, got;

	(void)state;
	for (size_t k = 0; k < MC_ARRAY_SIZE(pages); k++) {
		size_t len;

		fill(&s, pages[k]);
		len = mc_hashes_pack(&s, buf);
		assert_true(len <= MC_WIRE_HASHES_MAX);
		memset(&got, 0xff, sizeof(got));
		assert_int_equal(mc_hashes_parse(buf, len, &got), 0);
		assert_int_equal(got.q.first, 640);
		assert_int_equal(got.q.pages, pages[k]);
		assert_int_equal(got.known, 1);
		assert_memory_equal(got.hash, s.hash, pages[k] * sizeof(s.hash[0]));
		for (size_t cut = 0; cut < len; cut++)
			assert_int_equal(mc_hashes_parse(buf, cut, &got), -EPROTO);
		assert_int_equal(mc_hashes_parse(buf, len + 1, &got), -EPROTO);
	}
	fill(&s, 100);
	s.known = 0;
	assert_int_equal(mc_hashes_pack(&s, buf), sizeof(struct mc_wire_hashes));
	assert_int_equal(mc_hashes_parse(buf, sizeof(struct mc_wire_hashes), &got), 0);
	assert_int_equal(got.known, 0);
	/* Of a RAM that is all zero there is next to nothing to say. */
	fill(&s, MC_HASH_PAGES);
	memset(s.hash, 0, sizeof(s.hash));
	assert_int_equal(mc_hashes_pack(&s, buf),
	                 sizeof(struct mc_wire_hashes) + MC_HASH_PAGES / 8);
}

/* Counts, bits and lengths that contradict each other. */
static void test_bad_message(void **state)
{
	static uint8_t buf[MC_WIRE_HASHES_MAX], bad[MC_WIRE_HASHES_MAX];
	static struct mc_hash_slot s, got;
	struct mc_wire_hashes w;
	size_t len;

	(void)state;
	fill(&s, 100);
	len = mc_hashes_pack(&s, buf);
#define BAD(change)                                                                                \
	do {                                                                                       \
		memcpy(bad, buf, len);                                                             \
		memcpy(&w, bad, sizeof(w));                                                        \
		change;                                                                            \
		memcpy(bad, &w, sizeof(w));                                                        \
		assert_int_equal(mc_hashes_parse(bad, len, &got), -EPROTO);                        \
	} while (0)
	BAD(w.first++);
	BAD(w.pages = 0);
	BAD(w.pages = 64);
	BAD(w.pages = MC_HASH_PAGES + 64);
	BAD(w.pages = UINT32_MAX);
	BAD(w.hashes++);
	BAD(w.hashes = UINT32_MAX);
	BAD(bad[sizeof(w)] ^= 1);
	BAD(bad[sizeof(w)] ^= 0xff);
	BAD(bad[sizeof(w) + 15] ^= 0x80); /* page 127 of 100 */
	BAD(memset(bad + len - 16, 0, 16));
#undef BAD
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_pages),
	        cmocka_unit_test(test_box),
	        cmocka_unit_test(test_forgotten_questions),
	        cmocka_unit_test(test_drain),
	        cmocka_unit_test(test_message),
	        cmocka_unit_test(test_bad_message),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
