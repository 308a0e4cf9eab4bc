/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Slab pool and arena. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "arena.h"
#include "util.h"

static const struct mc_arena_params params = {.slab_size = 1 << 20,
                                              .max_memory = 16 << 20,
                                              .delta_cache = 1 << 20,
                                              .ram_pages = 65536,
                                              .side = MC_SIDE_PRIMARY};

static int setup(void **state)
{
	struct mc_arena *a = calloc(1, sizeof(*a));

	assert_int_equal(mc_arena_create(a, NULL, &params), 0);
	strcpy(a->config->guest, "vm");
	a->config->side = MC_SIDE_PRIMARY;
	*state = a;
	return 0;
}

static int teardown(void **state)
{
	mc_arena_done(*state);
	free(*state);
	return 0;
}

static struct mc_pool as(struct mc_arena *a, enum mc_role role)
{
	struct mc_pool p = a->slabs;

	p.role = role;
	return p;
}

static uint64_t blocks_of(const struct mc_arena *a)
{
	struct stat st;

	assert_int_equal(fstat(a->fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void test_ownership(void **state)
{
	struct mc_pool cap = as(*state, MC_ROLE_CAPTURE), stg = as(*state, MC_ROLE_STAGE0);
	mc_handle h, again;

	assert_int_equal(mc_pool_alloc(&cap, 1, false, &h), 0);
	memset(mc_pool_data(&cap, h), 7, cap.unit);
	assert_null(mc_pool_data(&stg, h));
	assert_int_equal(mc_pool_free(&stg, h), -ESTALE);
	assert_int_equal(mc_pool_claim(&stg, h, MC_ROLE_TRANSPORT), -ESTALE);
	assert_int_equal(mc_pool_claim(&stg, h, MC_ROLE_CAPTURE), 0);
	assert_int_equal(mc_pool_claim(&stg, h, MC_ROLE_CAPTURE), 0);
	assert_null(mc_pool_data(&cap, h));
	assert_int_equal(((uint8_t *)mc_pool_data(&stg, h))[4096], 7);
	assert_int_equal(mc_pool_free(&cap, h), -ESTALE);
	assert_int_equal(mc_pool_free(&stg, h), 0);
	assert_int_equal(mc_pool_free(&stg, h), -ESTALE);
	/* The next owner of the same place has another handle. */
	assert_int_equal(mc_pool_alloc(&stg, 2, false, &again), 0);
	assert_int_equal((uint32_t)again, (uint32_t)h);
	assert_int_not_equal(again, h);
	assert_null(mc_pool_data(&stg, h));
	assert_null(mc_pool_data(&stg, MC_HANDLE_NONE));
	assert_null(mc_pool_data(&stg, UINT64_MAX));
	assert_int_equal(mc_pool_free(&stg, again), 0);
}

static void test_limit(void **state)
{
	struct mc_pool p = as(*state, MC_ROLE_CAPTURE);
	mc_handle h[17];

	for (int i = 0; i < 16; i++)
		assert_int_equal(mc_pool_alloc(&p, 1, i > 8, &h[i]), 0);
	assert_int_equal(mc_pool_alloc(&p, 1, false, &h[16]), -ENOSPC);
	assert_int_equal(atomic_load(&p.shm->failed), 1);
	assert_int_equal(atomic_load(&p.shm->grown), 16);
	assert_int_equal(atomic_load(&p.shm->grown_in_pause), 7);
	assert_int_equal(mc_pool_reserve(&p, 4), 0);
	mc_pool_free(&p, h[3]);
	assert_int_equal(mc_pool_alloc(&p, 1, false, &h[16]), 0);
}

/* Epochs that need less than is held give half back, in the end all but one. */
static void test_strikes(void **state)
{
	struct mc_arena *a = *state;
	struct mc_pool p = as(a, MC_ROLE_CAPTURE);
	uint64_t before = blocks_of(a);
	mc_handle h;

	assert_int_equal(mc_pool_reserve(&p, 8), 8);
	assert_true(blocks_of(a) >= before + (8 << 20));
	mc_pool_set_strikes(&p, 1, 250);
	assert_int_equal(atomic_load(&p.shm->strikes_max), 4);
	for (int want = 4; want >= 1; want /= 2) {
		for (int i = 0; i < 3; i++)
			assert_int_equal(mc_pool_epoch_done(&p), 0);
		assert_int_equal(mc_pool_epoch_done(&p), want);
	}
	assert_int_equal(atomic_load(&p.shm->held), 1);
	for (int i = 0; i < 10; i++)
		assert_int_equal(mc_pool_epoch_done(&p), 0);
	assert_true(blocks_of(a) <= before + (1 << 20));
	/* An epoch that uses all that is held is no strike. */
	assert_int_equal(mc_pool_alloc(&p, 1, false, &h), 0);
	assert_int_equal(mc_pool_epoch_done(&p), 0);
	assert_int_equal(atomic_load(&p.shm->strikes), 0);
}

static bool all(void *ctx, mc_handle h)
{
	(void)ctx;
	(void)h;
	return true;
}

/* What a dead process owned, and what it left half grown, comes back. */
static void test_reclaim(void **state)
{
	struct mc_pool cap = as(*state, MC_ROLE_CAPTURE), tra = as(*state, MC_ROLE_TRANSPORT);
	mc_handle h[3], kept;

	for (int i = 0; i < 3; i++)
		assert_int_equal(mc_pool_alloc(&cap, 1, false, &h[i]), 0);
	assert_int_equal(mc_pool_alloc(&tra, 1, false, &kept), 0);
	atomic_store(&cap.word[9], mc_slab_word(MC_SLAB_GROWING, MC_ROLE_CAPTURE, 3, 0));
	atomic_store(&cap.shm->in_use, 99);
	assert_int_equal(mc_pool_reclaim(&cap, all, NULL), 3);
	assert_int_equal(atomic_load(&cap.shm->in_use), 1);
	assert_int_equal(mc_slab_word_state(atomic_load(&cap.word[9])), MC_SLAB_ABSENT);
	assert_non_null(mc_pool_data(&tra, kept));
}

/* Two processes allocate and free, one is killed over and over: no slab is owned twice or lost. */
static void test_killed_user(void **state)
{
	struct mc_arena *a = *state;
	struct mc_pool cap = as(a, MC_ROLE_CAPTURE);
	uint64_t used = 0;

	for (int round = 0; round < 30; round++) {
		pid_t pid = fork();

		if (pid == 0) {
			struct mc_pool stg = as(a, MC_ROLE_STAGE0);
			mc_handle h[4];

			for (;;) {
				for (int i = 0; i < 4; i++)
					if (mc_pool_alloc(&stg, 1, false, &h[i]) < 0)
						_exit(1);
				for (int i = 0; i < 4; i++)
					if (mc_pool_free(&stg, h[i]) < 0)
						_exit(2);
			}
		}
		for (int i = 0; i < 200; i++) {
			mc_handle h;
			uint8_t *p;

			assert_int_equal(mc_pool_alloc(&cap, 1, false, &h), 0);
			p = mc_pool_data(&cap, h);
			assert_non_null(p);
			assert_int_equal(mc_pool_free(&cap, h), 0);
		}
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &(int){0}, 0), pid);
		cap.role = MC_ROLE_STAGE0;
		(void)mc_pool_reclaim(&cap, all, NULL);
		cap.role = MC_ROLE_CAPTURE;
	}
	for (uint64_t i = 0; i < cap.max; i++)
		used += mc_slab_word_state(atomic_load(&cap.word[i])) == MC_SLAB_OWNED;
	assert_int_equal(used, 0);
	assert_int_equal(atomic_load(&cap.shm->in_use), 0);
}

/* --- arena ------------------------------------------------------------------------------- */

static int attach_copy(const struct mc_arena *a, enum mc_role role)
{
	struct mc_arena b;
	int fd = dup(a->fd), config = dup(a->config_fd), bells[MC_ROLE_MAX], r;

	for (int i = 0; i < MC_ROLE_MAX; i++)
		bells[i] = dup(a->bell_fd[i]);
	r = mc_arena_attach(&b, fd, config, bells, MC_ROLE_MAX, role);
	if (r == 0) {
		mc_arena_done(&b);
		return 0;
	}
	close(fd);
	close(config);
	for (int i = 0; i < MC_ROLE_MAX; i++)
		close(bells[i]);
	return r;
}

static void test_attach(void **state)
{
	struct mc_arena *a = *state;

	assert_int_equal(attach_copy(a, MC_ROLE_CAPTURE), 0);
	a->header->abi++;
	assert_int_equal(attach_copy(a, MC_ROLE_CAPTURE), -EPROTONOSUPPORT);
	a->header->abi--;
	atomic_store(&a->config->interval_us, 0);
	assert_int_equal(attach_copy(a, MC_ROLE_CAPTURE), -EBADMSG);
	assert_int_equal(attach_copy(a, MC_ROLE_SUPERVISOR), 0);
}

/* Every byte of the header flipped: refused, or harmless; never a crash. */
static void test_header_flips(void **state)
{
	struct mc_arena *a = *state;
	uint8_t *h = (uint8_t *)a->header;
	unsigned refused = 0;

	for (size_t i = 0; i < sizeof(*a->header); i++) {
		h[i] ^= 0xff;
		refused += attach_copy(a, MC_ROLE_STAGE0) < 0;
		h[i] ^= 0xff;
	}
	/* All but the build id's bytes and the upper ones of `ready` matter. */
	assert_in_range(refused, 60, sizeof(*a->header));
	assert_int_equal(attach_copy(a, MC_ROLE_STAGE0), 0);
}

static void test_not_an_arena(void **state)
{
	struct mc_arena *a = *state, b;
	int bells[MC_ROLE_MAX], fd = memfd_create("other", 0);

	memcpy(bells, a->bell_fd, sizeof(bells));
	assert_int_equal(mc_arena_attach(&b, fd, a->config_fd, bells, MC_ROLE_MAX, MC_ROLE_STAGE0),
	                 -EBADMSG);
	bells[3] = fd;
	assert_int_equal(
	        mc_arena_attach(&b, a->fd, a->config_fd, bells, MC_ROLE_MAX, MC_ROLE_STAGE0),
	        -EBADMSG);
	assert_int_equal(mc_arena_attach(&b, a->fd, a->config_fd, bells, 3, MC_ROLE_STAGE0),
	                 -EINVAL);
	close(fd);
}

static void test_bad_params(void **state)
{
	const struct mc_arena_params bad[] = {
	        {.slab_size = 5000, .max_memory = 1 << 24, .ram_pages = 1, .side = 1},
	        {.slab_size = 1 << 20, .max_memory = 1 << 20, .ram_pages = 1, .side = 1},
	        {.slab_size = 1 << 20, .max_memory = 1 << 24, .ram_pages = 0, .side = 1},
	        {.slab_size = 1 << 20, .max_memory = 1 << 24, .ram_pages = 1, .side = 3},
	        {.slab_size = 0, .max_memory = 1 << 24, .ram_pages = 1, .side = 1},
	};
	struct mc_arena a;

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(bad); i++)
		assert_int_equal(mc_arena_create(&a, NULL, &bad[i]), -EINVAL);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        T(test_ownership),    T(test_limit),        T(test_strikes),
	        T(test_reclaim),      T(test_killed_user),  T(test_attach),
	        T(test_header_flips), T(test_not_an_arena), T(test_bad_params),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
