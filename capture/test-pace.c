/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Epochs keep to their interval although every wake-up is late; pre-scans that pay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "pace.h"

#define INTERVAL (5 * MC_NS_PER_MS)
#define START    (1000 * MC_NS_PER_S)

/* Epochs that begin within @ns when each begins @late after it was due. */
static unsigned begun(uint64_t ns, uint64_t late)
{
	uint64_t due = START;
	unsigned n = 0;

	for (; due + late < START + ns; n++)
		due = pace_next(due, due + late, INTERVAL);
	return n;
}

static void test_lateness_does_not_add_up(void **state)
{
	(void)state;
	assert_int_equal(begun(60 * MC_NS_PER_S, 0), 12000);
	assert_int_equal(begun(60 * MC_NS_PER_S, 40 * MC_NS_PER_US), 12000);
	assert_int_equal(begun(60 * MC_NS_PER_S, 3 * MC_NS_PER_MS), 12000);
}

/* A guest that couldn't be stopped for long isn't stopped over and over for it. */
static void test_no_burst_after_a_gap(void **state)
{
	uint64_t due = START, began = START + 3 * INTERVAL + 7;

	(void)state;
	for (int i = 0; i < 5; i++) {
		uint64_t next = pace_next(due, began, INTERVAL);

		assert_int_equal(next, began + INTERVAL);
		due = began = next;
	}
}

/* One that was asked for between two others takes the next one's place. */
static void test_asked_for(void **state)
{
	(void)state;
	assert_int_equal(pace_next(START, START - MC_NS_PER_MS, INTERVAL),
	                 START - MC_NS_PER_MS + INTERVAL);
}

/* Pre-scans in @n epochs: of @pages @struck are written again before they are copied. */
static unsigned tried(struct pace_prescan *p, unsigned n, uint64_t pages, uint64_t struck)
{
	unsigned scans = 0;

	for (unsigned i = 0; i < n; i++) {
		struct pace_tried t = {.pages = pages,
		                       .struck = struck,
		                       .copy_ns = pages * 400,
		                       .stop_ns = 800 * MC_NS_PER_US};

		if (!pace_wants_prescan(p, pages))
			continue;
		scans++;
		pace_prescan_done(p, &t);
	}
	return scans;
}

static void test_prescan_that_pays(void **state)
{
	struct pace_prescan p = {0};

	(void)state;
	assert_int_equal(tried(&p, 100, 16000, 1500), 100);
	assert_int_equal(tried(&p, 100, 2300, 100), 100);
	assert_int_equal(tried(&p, 100, PACE_PRESCAN, 0), 0);
}

/* Most pages are written again before they are copied: hardly tried any more. */
static void test_prescan_in_vain(void **state)
{
	struct pace_prescan p = {0};

	(void)state;
	assert_in_range(tried(&p, 1000, 2300, 1200), 15, 25);
	/* It writes elsewhere now, or much more. */
	assert_in_range(tried(&p, 200, 4000, 100), 130, 200);
	assert_in_range(tried(&p, 1000, 2300, 1200), 15, 25);
	assert_int_equal(tried(&p, 10, 16000, 1500), 10);
	/* It wrote little for a while. */
	assert_in_range(tried(&p, 1000, 2300, 1200), 15, 25);
	assert_int_equal(tried(&p, 64, 100, 0), 0);
	assert_int_equal(tried(&p, 1, 2300, 1200), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_lateness_does_not_add_up),
	        cmocka_unit_test(test_no_burst_after_a_gap),
	        cmocka_unit_test(test_asked_for),
	        cmocka_unit_test(test_prescan_that_pays),
	        cmocka_unit_test(test_prescan_in_vain),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
