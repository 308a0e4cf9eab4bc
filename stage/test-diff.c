/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Every way to find differences gives the same bytes, and they lead from base to page. */
#include "test-decoder.h"

#include "diff.h"

struct pages {
	uint8_t page[MC_PAGE_SIZE], base[MC_PAGE_SIZE];
	uint8_t out[DIFF_MAX];
	struct diff_scratch scratch;
};

static unsigned run(diff_fn fn, struct pages *p, const struct pages *from)
{
	*p = *from;
	memset(p->out, 0xee, sizeof(p->out));
	return fn(p->out, p->page, p->base, &p->scratch);
}

static unsigned check(const struct pages *from)
{
	static struct pages plain, best;
	uint8_t got[MC_PAGE_SIZE];
	unsigned len = run(diff_plain, &plain, from);

	assert_int_equal(run(diff_best(), &best, from), len);
	assert_memory_equal(plain.base, from->page, MC_PAGE_SIZE);
	assert_memory_equal(best.base, from->page, MC_PAGE_SIZE);
	if (len == DIFF_FULL)
		return len;
	assert_true(len <= DIFF_MAX);
	assert_memory_equal(plain.out, best.out, len);
	assert_true(backup_undo(got, from->base, plain.out, len));
	assert_memory_equal(got, from->page, MC_PAGE_SIZE);
	return len;
}

static void test_all_kinds(void **state)
{
	static struct pages p;

	(void)state;
	srand48(5);
	for (size_t i = 0; i < MC_PAGE_SIZE; i++)
		p.page[i] = p.base[i] = (uint8_t)mrand48();
	assert_int_equal(check(&p), 0); /* equal: nothing */
	for (int n = 1; n < 1000; n++) {
		p.page[(size_t)lrand48() % MC_PAGE_SIZE] ^= (uint8_t)(1 << n % 8);
		if (n % 10 == 0)
			check(&p);
	}
	/* Each single bit of the first and the last line. */
	for (size_t bit = 0; bit < 1024; bit++) {
		size_t at = bit < 512 ? bit / 8 : MC_PAGE_SIZE - 64 + bit / 8 % 64;

		memcpy(p.page, p.base, MC_PAGE_SIZE);
		p.page[at] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(check(&p), 8 + 1 + 1 + 1); /* three maps and a byte */
	}
}

/* All bytes of so many lines: the longest difference, and one line more. */
static void test_too_much(void **state)
{
	static struct pages p;

	(void)state;
	for (size_t i = 0; i < MC_PAGE_SIZE; i++)
		p.page[i] = p.base[i] = (uint8_t)i;
	for (size_t i = 0; i < MC_PAGE_SIZE; i++) {
		p.page[i] = (uint8_t)~p.base[i];
		if (i + 1 == DIFF_LINES * MC_LINE_SIZE)
			assert_int_equal(check(&p), DIFF_MAX);
		if (i == DIFF_LINES * MC_LINE_SIZE)
			assert_int_equal(check(&p), DIFF_FULL);
	}
	assert_int_equal(check(&p), DIFF_FULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_kinds),
	                                   cmocka_unit_test(test_too_much)};

	return cmocka_run_group_tests_name("stage/diff", tests, NULL, NULL);
}
