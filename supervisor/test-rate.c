/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How often strangers may call. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "rate.h"

#define MS 1000000ULL

static unsigned taken(struct rate *r, unsigned tries, uint64_t now)
{
	unsigned n = 0;

	while (tries--)
		n += rate_take(r, 20, 100 * MS, now);
	return n;
}

static void test_burst_then_rate(void **state)
{
	struct rate r = {0};
	uint64_t t = 5 * MS;

	(void)state;
	assert_int_equal(taken(&r, 50, t), 20);
	assert_int_equal(taken(&r, 50, t + 99 * MS), 0);
	assert_int_equal(taken(&r, 50, t + 100 * MS), 1);
	/* Ten a second, however the tries fall. */
	for (unsigned n = 0, i = 1; i <= 1000; i++) {
		n += taken(&r, 1, t + 100 * MS + i * MS);
		if (i == 1000)
			assert_int_equal(n, 10);
	}
	/* Never more than a burst. */
	assert_int_equal(taken(&r, 50, t + 3600000 * MS), 20);
}

static void test_callers(void **state)
{
	static struct caller list[CALLERS_MAX];
	struct caller *a, *b;
	char name[CALLER_NAME];

	(void)state;
	assert_null(callers_find(list, ":1.1"));
	a = callers_add(list, ":1.1", 7, 1);
	b = callers_add(list, ":1.11", 8, 2);
	assert_ptr_equal(callers_find(list, ":1.1"), a);
	assert_ptr_equal(callers_find(list, ":1.11"), b);
	assert_int_equal(b->uid, 8);
	/* One's calls don't count for the other. */
	assert_int_equal(taken(&a->rate, 50, MS), 20);
	assert_int_equal(taken(&b->rate, 50, MS), 20);
	/* The one that was heard of longest ago makes room. */
	b->used = 1000;
	for (unsigned i = 0; i < CALLERS_MAX; i++) {
		snprintf(name, sizeof(name), ":2.%u", i);
		callers_add(list, name, 9, 10 + i);
	}
	assert_null(callers_find(list, ":1.1"));
	assert_ptr_equal(callers_find(list, ":1.11"), b);
	assert_non_null(callers_find(list, name));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_burst_then_rate),
	        cmocka_unit_test(test_callers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
