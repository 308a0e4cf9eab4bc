/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What mc-restore tells of the standby's RAM, so that only what differs need be sent. */
#include <sys/stat.h>

#include "test-standby.h"

#define Q35  STANDBY "q35,memory-backend=ram" OLD_WAY
#define SEED 4711
#define HELD 2048ULL /* pages that an older copy left: enough to be kept */

static struct mc_hash_asker asker;

static uint64_t allocated(const struct world *w)
{
	struct stat st;

	assert_int_equal(stat(w->qemu.ram, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void ask(struct world *w, uint64_t epoch, uint64_t first, uint64_t pages)
{
	struct mc_hash_question q = {.seed = SEED, .epoch = epoch, .first = first, .pages = pages};

	assert_int_equal(mc_hash_ask(&asker, &q), 0);
	mc_arena_ring(&w->tra, MC_ROLE_RESTORE);
}

static bool is_answered(void *ctx)
{
	(void)ctx;
	return mc_hash_answer(&asker) != NULL;
}

static struct mc_hash_slot *await(struct world *w)
{
	assert_true(wait_until(&w->tra, is_answered, w));
	return mc_hash_answer(&asker);
}

/* Hashes of what the RAM must be, page by page. */
static void check_answer(struct world *w)
{
	struct mc_hash_slot *s = await(w);

	assert_int_equal(s->known, 1);
	for (uint64_t i = 0; i < s->q.pages; i++) {
		struct mc_page_hash h = {0, 0};
		uint64_t page = s->q.first + i;

		if (page < RAM_SIZE / MC_PAGE_SIZE)
			h = mc_hash_page(w->want + page * MC_PAGE_SIZE, SEED);
		if (!mc_hash_equal(&h, &s->hash[i]))
			fail_msg("page %d has another hash", (int)page);
	}
	mc_hash_taken(&asker);
}

static void check_unknown(struct world *w)
{
	assert_int_equal(await(w)->known, 0);
	mc_hash_taken(&asker);
}

/* A standby that a former protection filled. */
static struct world *filled_world(void)
{
	struct world *w = calloc(1, sizeof(*w));

	w->seed = 11;
	w->want = calloc(1, RAM_SIZE);
	standby_start(w, Q35);
	arena_new(w);
	mc_hash_asker_init(&asker, w->tra.hashes);
	for (uint64_t i = 0; i < HELD; i++)
		memset(w->ram + (i * 3 % 4096) * MC_PAGE_SIZE, (int)i | 1, MC_PAGE_SIZE);
	restore_start(w);
	assert_true(wait_until(&w->tra, is_ready, w));
	assert_int_equal(atomic_load(&w->sup.control->ram_kept), 1);
	return w;
}

/* As the RAM is by now; read from the file, which leaves its holes. */
static void look(struct world *w)
{
	int fd = open(w->qemu.ram, O_RDONLY | O_CLOEXEC);

	assert_int_equal(pread(fd, w->want, RAM_SIZE, 0), RAM_SIZE);
	close(fd);
}

/* A first copy to it: what is asked is answered in order, and no hole is filled by that. */
static void test_filled_before(void **state)
{
	struct world *w = filled_world();
	uint64_t before = allocated(w);

	(void)state;
	admit(w, TERM);
	look(w);
	for (uint64_t first = 0; first < RAM_SIZE / MC_PAGE_SIZE; first += MC_HASH_PAGES) {
		ask(w, 0, first, MC_HASH_PAGES);
		ask(w, 0, first + 64, 70);
		check_answer(w);
		check_answer(w);
	}
	assert_int_equal(allocated(w), before);
	/* What is sent replaces what was there; what is zero, too. */
	for (uint32_t k = 0; k < 10; k++)
		push_sync(w, k, k * 50, 50);
	send_epoch(w, 1, 0, 3);
	check_applied(w);
	world_end(w);
}

/* Asked in the middle of a copy, it is what was applied so far. */
static void test_among_slabs(void **state)
{
	struct world *w = filled_world();
	uint32_t seq = 0;

	(void)state;
	admit(w, TERM);
	look(w);
	for (int i = 0; i < 20; i++, seq++) {
		push_sync(w, seq, pick(w, 900), 40);
		ask(w, 0, 0, MC_HASH_PAGES);
		check_answer(w);
	}
	world_end(w);
}

/* Its predecessor died with questions open. */
static void test_killed(void **state)
{
	struct world *w = filled_world();

	(void)state;
	admit(w, TERM);
	look(w);
	for (int i = 0; i < 10; i++) {
		for (uint64_t k = 0; k < 8; k++)
			ask(w, 0, k * MC_HASH_PAGES, MC_HASH_PAGES);
		for (volatile uint32_t spin = pick(w, 3000000); spin; spin--)
			;
		proc_kill(&w->restore);
		restore_start(w);
		for (uint64_t k = 0; k < 8; k++)
			check_answer(w);
	}
	world_end(w);
}

/* Of an armed standby: as of the epoch that is applied, of no other. */
static void test_armed(void **state)
{
	struct world *w = world_new(Q35);

	(void)state;
	mc_hash_asker_init(&asker, w->tra.hashes);
	arm(w);
	for (uint64_t n = 2; n < 6; n++) {
		send_epoch(w, n, n - 1, 4);
		check_applied(w);
		ask(w, n, 0, MC_HASH_PAGES);
		check_answer(w);
		ask(w, n - 1, 0, MC_HASH_PAGES);
		check_unknown(w);
		ask(w, n + 1, 0, MC_HASH_PAGES);
		check_unknown(w);
		ask(w, 0, 0, MC_HASH_PAGES);
		check_unknown(w);
	}
	check_ram(w);
	world_end(w);
}

/* What no transport asks, from an arena that somebody damaged. */
static void test_bad_questions(void **state)
{
	struct world *w = filled_world();

	(void)state;
	admit(w, TERM);
	look(w);
	ask(w, 0, 0, 0);
	check_unknown(w);
	ask(w, 0, 0, MC_HASH_PAGES + 1);
	check_unknown(w);
	ask(w, 0, UINT64_MAX - 63, 64);
	check_unknown(w);
	ask(w, 0, w->tra.bitmap_words * 64 - 64, 64);
	check_answer(w);
	world_end(w);
}

static bool waits_with(void *ctx)
{
	struct world *w = ctx;

	return state_now(w) == MC_STATE_WAITING &&
	       atomic_load(&w->tra.hashes->answered) == atomic_load(&w->tra.hashes->asked);
}

/* A copy that broke off: what was applied of it is there, and nothing waits for an answer. */
static void test_broken_off(void **state)
{
	struct world *w = filled_world();

	(void)state;
	for (uint64_t i = 0; i < 6; i++) {
		admit(w, TERM + i);
		look(w);
		push_sync(w, 0, 100 * i, 50);
		ask(w, 0, 0, MC_HASH_PAGES);
		check_answer(w);
		for (uint64_t k = 0; k < 6; k++)
			ask(w, 0, k * MC_HASH_PAGES, MC_HASH_PAGES);
		if (i % 2)
			proc_kill(&w->restore);
		link_down(w);
		if (i % 2)
			restore_start(w);
		assert_true(wait_until(&w->tra, waits_with, w));
		assert_int_equal(atomic_load(&w->sup.control->ram_kept), 1);
		mc_hash_asker_init(&asker, w->tra.hashes);
	}
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_filled_before), cmocka_unit_test(test_among_slabs),
	        cmocka_unit_test(test_killed),        cmocka_unit_test(test_armed),
	        cmocka_unit_test(test_bad_questions), cmocka_unit_test(test_broken_off),
	};

	return cmocka_run_group_tests(tests, NULL, sweep);
}
