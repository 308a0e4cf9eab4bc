/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The shadow: what may serve as a base, and what never does, whoever died while writing it. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "copyset.h"
#include "shadow.h"
#include "util.h"

#define SETS  8
#define PAGES 48 /* more than some sets can hold */

static struct mc_shadow_shm *shm;

static struct mc_shadow view(enum mc_role role)
{
	return (struct mc_shadow){.shm = shm,
	                          .entry = (struct mc_shadow_entry *)(shm + 1),
	                          .data = (uint8_t *)shm + 8192,
	                          .sets = SETS,
	                          .role = role};
}

static int set_up(void **state)
{
	(void)state;
	shm = mmap(NULL, 8192 + SETS * MC_SHADOW_WAYS * MC_PAGE_SIZE, PROT_READ | PROT_WRITE,
	           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return shm == MAP_FAILED ? -1 : mc_shadow_init(shm, SETS);
}

static int tear_down(void **state)
{
	(void)state;
	return munmap(shm, 8192 + SETS * MC_SHADOW_WAYS * MC_PAGE_SIZE);
}

static void fill(uint8_t *page, uint64_t key, uint64_t epoch)
{
	for (size_t i = 0; i < MC_PAGE_SIZE / 8; i++) {
		uint64_t v = (key * 1000003 + epoch) * 0x9e3779b97f4a7c15ULL + i;

		memcpy(page + i * 8, &v, sizeof(v));
	}
}

static bool holds(const uint8_t *page, uint64_t key, uint64_t epoch)
{
	uint8_t want[MC_PAGE_SIZE];

	fill(want, key, epoch);
	return memcmp(page, want, MC_PAGE_SIZE) == 0;
}

/* Stores a page as a stage worker does; 1 when there was a base, -1 when there was no room. */
static int store(struct mc_shadow *s, uint64_t key, uint64_t epoch)
{
	struct mc_shadow_entry *e;
	bool base;
	uint8_t *p = mc_shadow_open(s, key, epoch, &base, &e);

	if (!p)
		return -1;
	mc_shadow_begin_write(e);
	fill(p, key, epoch);
	mc_shadow_close(s, e, epoch);
	return base;
}

static void test_sizes(void **state)
{
	uint64_t per_set = MC_SHADOW_WAYS * (MC_PAGE_SIZE + sizeof(struct mc_shadow_entry));

	(void)state;
	assert_int_equal(mc_shadow_sets(0), 0);
	assert_int_equal(mc_shadow_sets(per_set - 1), 0);
	assert_int_equal(mc_shadow_sets(per_set), 1);
	assert_int_equal(mc_shadow_sets(per_set * 7), 4);
	assert_int_equal(mc_shadow_init(shm, 0), -EINVAL);
	assert_int_equal(mc_shadow_init(shm, 3), -EINVAL);
	assert_int_not_equal(mc_shadow_key(1, 4096), mc_shadow_key(2, 4096));
	assert_int_not_equal(mc_shadow_key(1, 4096), mc_shadow_key(1, 8192));
}

static void test_base_is_of_an_earlier_epoch(void **state)
{
	struct mc_shadow s = view(mc_role_stage(0));
	struct mc_shadow_entry *e;
	bool base;
	uint8_t *p;

	(void)state;
	assert_int_equal(store(&s, 5, 3), 0);
	assert_int_equal(store(&s, 5, 3), 0); /* encoded again: not its own base */
	p = mc_shadow_open(&s, 5, 4, &base, &e);
	assert_true(p && base && holds(p, 5, 3));
	mc_shadow_begin_write(e);
	mc_shadow_close(&s, e, 4);
	p = mc_shadow_open(&s, 5, 2, &base, &e); /* an epoch from before: neither */
	assert_true(p && !base);
	mc_shadow_close(&s, e, 0);
	p = mc_shadow_open(&s, 5, 9, &base, &e); /* tag 0 is nobody's base */
	assert_true(p && !base);
	mc_shadow_close(&s, e, 9);
}

static void test_drop(void **state)
{
	struct mc_shadow s = view(mc_role_stage(0));

	(void)state;
	(void)store(&s, 5, 3);
	mc_shadow_drop(&s, 6);
	assert_int_equal(store(&s, 5, 4), 1);
	mc_shadow_drop(&s, 5);
	assert_int_equal(store(&s, 5, 5), 0);
	mc_shadow_clear(&s);
	assert_int_equal(store(&s, 5, 6), 0);
}

static void test_without_a_shadow(void **state)
{
	struct mc_shadow none = {0};
	struct mc_shadow_entry *e;
	bool base;

	(void)state;
	assert_null(mc_shadow_open(&none, 1, 1, &base, &e));
	assert_false(base);
	mc_shadow_drop(&none, 1);
	mc_shadow_unlock(&none);
	mc_shadow_clear(&none);
}

/* The oldest content of a set gives way, and its successor has no base. */
static void test_least_recently_used_gives_way(void **state)
{
	struct mc_shadow s = view(mc_role_stage(0));
	uint64_t kept = 0;

	(void)state;
	for (uint64_t e = 1; e <= 20; e++)
		for (uint64_t k = 0; k < PAGES * 4; k++)
			if (k < 4 || e == 1 + k % 20)
				(void)store(&s, k, e);
	assert_true(atomic_load(&shm->evictions) > 0);
	for (uint64_t k = 0; k < 4; k++)
		kept += store(&s, k, 30) == 1;
	assert_int_equal(kept, 4); /* used in every epoch */
}

/* A way that another worker has open is left alone. */
static void test_busy_way(void **state)
{
	struct mc_shadow one = view(mc_role_stage(0)), two = view(mc_role_stage(1));
	struct mc_shadow_entry *e, *f;
	bool base;

	(void)state;
	(void)store(&one, 5, 3);
	assert_non_null(mc_shadow_open(&one, 5, 4, &base, &e));
	assert_null(mc_shadow_open(&two, 5, 4, &base, &f));
	mc_shadow_unlock(&two); /* not its own */
	assert_null(mc_shadow_open(&two, 5, 4, &base, &f));
	mc_shadow_unlock(&one); /* the successor of a dead one: its content counts for nothing */
	assert_non_null(mc_shadow_open(&two, 5, 4, &base, &f));
	assert_false(base);
	mc_shadow_close(&two, f, 4);
}

/*
 * One epoch's pages of a worker; every base must hold what the epoch before it stored.  It dies
 * with page @last half written.
 */
static void encode_epoch(struct mc_shadow *s, uint64_t epoch, unsigned worker, uint64_t last)
{
	for (uint64_t k = worker; k < PAGES; k += 2) {
		struct mc_shadow_entry *e;
		bool base;
		uint8_t *p = mc_shadow_open(s, k, epoch, &base, &e);

		if (!p)
			continue;
		if (base && !holds(p, k, epoch - 1))
			_exit(1);
		mc_shadow_begin_write(e);
		if (k >= last) {
			memset(p, 0xee, MC_PAGE_SIZE / 2);
			kill(getpid(), SIGKILL);
		}
		fill(p, k, epoch);
		mc_shadow_close(s, e, epoch);
	}
}

static pid_t start_worker(unsigned worker, uint64_t epoch, bool successor, uint64_t last)
{
	pid_t pid = fork();

	if (!pid) {
		struct mc_shadow s = view(mc_role_stage(worker));

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (successor)
			mc_shadow_unlock(&s);
		encode_epoch(&s, epoch, worker, last);
		_exit(0);
	}
	return pid;
}

/* Two workers, killed at any moment; their successors encode the same epoch again. */
static void test_killed_workers(void **state)
{
	unsigned seed = 5, killed = 0;

	(void)state;
	for (uint64_t epoch = 1; epoch < 300; epoch++) {
		bool again[2] = {false, false};
		pid_t pid[2];
		int status;

		for (;;) {
			for (unsigned i = 0; i < 2; i++)
				pid[i] = start_worker(i, epoch, again[i],
				                      rand_r(&seed) % (4 * PAGES));
			for (unsigned i = 0; i < 2; i++) {
				assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
				again[i] = WIFSIGNALED(status);
				killed += again[i];
				if (WIFEXITED(status) && WEXITSTATUS(status))
					fail_msg("epoch %d: a base held something else",
					         (int)epoch);
			}
			if (!again[0] && !again[1])
				break;
		}
	}
	assert_true(killed > 20);
	assert_true(atomic_load(&shm->hits) > 1000);
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        T(test_sizes),
	        T(test_base_is_of_an_earlier_epoch),
	        T(test_drop),
	        T(test_without_a_shadow),
	        T(test_least_recently_used_gives_way),
	        T(test_busy_way),
	        T(test_killed_workers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
