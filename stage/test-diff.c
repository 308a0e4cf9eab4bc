/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Every way to find differences gives the same bytes, and they lead from base to page. */
#include "test-decoder.h"

#include "diff.h"

struct pages {
	uint8_t page[MC_PAGE_SIZE], base[MC_PAGE_SIZE];
	uint8_t out[DIFF_MAX];
	uint64_t words[MC_PAGE_SIZE / 8 + 8];
};

static unsigned run(diff_fn fn, struct pages *p, const struct pages *from)
{
	*p = *from;
	memset(p->out, 0xee, sizeof(p->out));
	return fn(p->out, p->page, p->base, p->words);
}

static void check(const struct pages *from)
{
	static struct pages plain, best;
	uint8_t got[MC_PAGE_SIZE];
	unsigned len = run(diff_plain, &plain, from);

	assert_true(len <= DIFF_MAX);
	assert_int_equal(run(diff_best(), &best, from), len);
	assert_memory_equal(plain.out, best.out, len);
	assert_memory_equal(plain.base, from->page, MC_PAGE_SIZE);
	assert_memory_equal(best.base, from->page, MC_PAGE_SIZE);
	assert_true(backup_undo(got, from->base, plain.out, len));
	assert_memory_equal(got, from->page, MC_PAGE_SIZE);
}

static void test_all_kinds(void **state)
{
	static struct pages p;

	(void)state;
	srand48(5);
	for (size_t i = 0; i < MC_PAGE_SIZE; i++)
		p.page[i] = p.base[i] = (uint8_t)mrand48();
	check(&p); /* equal: nothing */
	assert_int_equal(run(diff_best(), &(struct pages){0}, &p), 0);
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
		check(&p);
	}
	for (size_t i = 0; i < MC_PAGE_SIZE; i++)
		p.page[i] = (uint8_t)~p.base[i];
	check(&p); /* everything */
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_kinds)};

	return cmocka_run_group_tests_name("stage/diff", tests, NULL, NULL);
}
