/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Metrics and configuration: names, histograms against the sorted truth, every bad field. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config.h"
#include "metrics.h"
#include "util.h"

static void test_names(void **state)
{
	(void)state;
	for (int i = 0; i < MC_METRIC_COUNT; i++) {
		const struct mc_metric_info *info = mc_metric_info((enum mc_metric)i);

		assert_non_null(info);
		assert_true(info->name && info->name[0] && info->unit[0]);
		assert_true(strspn(info->name, "abcdefghijklmnopqrstuvwxyz0123456789_") ==
		            strlen(info->name));
		for (int k = 0; k < i; k++)
			assert_false(mc_metric_info((enum mc_metric)k)->role == info->role &&
			             strcmp(mc_metric_info((enum mc_metric)k)->name, info->name) ==
			                     0);
	}
	assert_null(mc_metric_info(MC_METRIC_COUNT));
	for (int h = 0; h < MC_HISTOGRAMS; h++)
		assert_string_not_equal(mc_histogram_name((enum mc_histogram_id)h), "?");
	assert_string_equal(mc_histogram_name(MC_HISTOGRAMS), "?");
	assert_int_equal(mc_histogram_role(MC_HISTOGRAMS), MC_ROLE_NONE);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Quantiles are at most a sixteenth above the true ones, never below. */
static void test_quantiles(void **state)
{
	static struct mc_histogram h;
	enum { N = 20000 };
	static uint64_t v[N];
	unsigned seed = 3;

	(void)state;
	assert_int_equal(mc_histogram_quantile(&h, 0.5), 0);
	for (int i = 0; i < N; i++) {
		v[i] = (uint64_t)rand_r(&seed) << (rand_r(&seed) % 12);
		mc_histogram_add(&h, v[i]);
	}
	qsort(v, N, sizeof(v[0]), by_value);
	for (double q = 0; q < 1; q += 0.01) {
		uint64_t got = mc_histogram_quantile(&h, q), want = v[(size_t)(q * N)];

		assert_true(got >= want && got <= want + want / 16 + 1);
	}
	assert_int_equal(mc_histogram_quantile(&h, 1), v[N - 1]);
	assert_int_equal(atomic_load(&h.count), N);
}

static void test_extremes(void **state)
{
	static struct mc_histogram h;

	(void)state;
	mc_histogram_add(&h, 0);
	assert_int_equal(mc_histogram_quantile(&h, 0.5), 0);
	mc_histogram_add(&h, UINT64_MAX);
	assert_true(mc_histogram_quantile(&h, 1) > 1ULL << 42);
	for (uint64_t n = 1; n < 16; n++) {
		static struct mc_histogram small;

		memset(&small, 0, sizeof(small));
		mc_histogram_add(&small, n);
		assert_int_equal(mc_histogram_quantile(&small, 0.5), n);
	}
}

static struct mc_config good(void)
{
	struct mc_config c;

	mc_config_defaults(&c);
	c.side = MC_SIDE_PRIMARY;
	strcpy(c.guest, "vm");
	return c;
}

static void test_config(void **state)
{
	struct mc_config c = good();
	char why[128];

	(void)state;
	assert_int_equal(mc_config_validate(&c, why, sizeof(why)), 0);
#define BAD(set)                                                                                   \
	do {                                                                                       \
		c = good();                                                                        \
		why[0] = '\0';                                                                     \
		set;                                                                               \
		assert_int_equal(mc_config_validate(&c, why, sizeof(why)), -EINVAL);               \
		assert_true(why[0]);                                                               \
	} while (0)
	BAD(atomic_store(&c.interval_us, 0));
	BAD(atomic_store(&c.interval_us, UINT32_MAX));
	BAD(atomic_store(&c.max_in_flight, 9));
	BAD(atomic_store(&c.failure_timeout_ms, 0));
	BAD(atomic_store(&c.lease_margin_ms, 500));
	BAD(atomic_store(&c.stage_workers, MC_STAGES_MAX + 1));
	BAD(atomic_store(&c.zstd_level, 20));
	BAD(atomic_store(&c.gate_limit, 1));
	BAD(c.side = 3);
	BAD(c.nnics = MC_NICS_MAX + 1);
	BAD(c.insecure = 2);
	BAD(c.term.number = 1 << 20);
	BAD(memset(c.guest, 'x', sizeof(c.guest)));
	BAD(memset(c.qmp, 'x', sizeof(c.qmp)));
	BAD(memset(c.peer, 'x', sizeof(c.peer)));
	BAD(strcpy(c.guest, "../etc"));
	BAD(c.nnics = 1);
	BAD((c.nnics = 1, c.nic[0].kind = 7));
	BAD((c.nnics = 1, memset(&c.nic[0], 'x', sizeof(c.nic[0]))));
#undef BAD
}

static void test_guest_names(void **state)
{
	static const char *const ok[] = {"vm", "a", "9lives", "web-01.example_com"};
	static const char *const not_ok[] = {"",         ".",   "-a", "a/b", "a b",
	                                     "\xc3\xa4", "a\n", "..", "a:b"};
	char long_name[MC_NAME_MAX + 1];

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(ok); i++)
		assert_int_equal(mc_guest_name_check(ok[i]), 0);
	for (size_t i = 0; i < MC_ARRAY_SIZE(not_ok); i++)
		assert_int_equal(mc_guest_name_check(not_ok[i]), -EINVAL);
	memset(long_name, 'a', sizeof(long_name));
	long_name[MC_NAME_MAX] = '\0';
	assert_int_equal(mc_guest_name_check(long_name), -EINVAL);
	long_name[MC_NAME_MAX - 1] = '\0';
	assert_int_equal(mc_guest_name_check(long_name), 0);
}

/* A damaged value in shared memory is clamped where it is used. */
static void test_interval_is_clamped(void **state)
{
	struct mc_config c = good();

	(void)state;
	atomic_store(&c.interval_us, 0);
	assert_int_equal(mc_config_interval_ns(&c), MC_NS_PER_MS);
	atomic_store(&c.interval_us, UINT32_MAX);
	assert_int_equal(mc_config_interval_ns(&c), 60 * MC_NS_PER_S);
	atomic_store(&c.interval_us, 25000);
	assert_int_equal(mc_config_interval_ns(&c), 25 * MC_NS_PER_MS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_names),       cmocka_unit_test(test_quantiles),
	        cmocka_unit_test(test_extremes),    cmocka_unit_test(test_config),
	        cmocka_unit_test(test_guest_names), cmocka_unit_test(test_interval_is_clamped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
