/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the uffd tracker makes of RAM that was never touched, of huge pages, and of hot ones. */
#include <inttypes.h>
#include <sched.h>
#include <sys/mount.h>

#include "hot.h"
#include "test-tracker.h"

/* RAM of huge pages, whatever this machine's policy is; none where that can't be mounted. */
static int setup_huge(void **state)
{
	char dir[] = "/tmp/mc-huge-XXXXXX", path[64];
	int fd = -1;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/ram", dir);
	if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
	    mount("none", dir, "tmpfs", 0, "huge=always") == 0) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		(void)umount2(dir, MNT_DETACH);
	}
	(void)rmdir(dir);
	return fd < 0 ? 0 : setup_file(state, MC_TRACKER_UFFD, fd, ALL, ALL);
}

/* A page of a huge one is one page, after its first write. */
static void test_huge(void **state)
{
	struct fixture *f = *state;

	if (!f) {
		print_message("no tmpfs with huge pages here\n");
		skip();
	}
	attach(f);
	(void)scan(f);
	for (int round = 0; round < 3; round++) {
		for (uint32_t p = 5; p < f->pages; p += 512)
			order(f, OP_WRITE, p, 1);
		if (round)
			assert_int_equal(scan(f), f->pages / 512);
		else
			(void)scan(f);
	}
	assert_int_equal(tracker_detach(&f->t), 0);
}

static uint64_t page_tables(pid_t pid)
{
	char path[64], line[256];
	uint64_t kb = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		(void)sscanf(line, "VmPTE: %" SCNu64, &kb);
	fclose(f);
	return kb;
}

/* RAM that was never touched costs nothing, and is seen as soon as it is. */
static void test_holes(void **state)
{
	struct fixture *f = *state;
	uint64_t before;

	attach(f);
	before = page_tables(f->pid);
	assert_int_equal(scan(f), PAGES);
	assert_true(page_tables(f->pid) - before < 16); /* markers for all would be 4 for 2 MiB */
	order(f, OP_WRITE, 3 * PAGES + 100, 2);
	order(f, OP_READ, 5 * PAGES, 1);
	assert_int_equal(scan(f), 3); /* a page that was read is there as well */
	assert_true(in(f->bitmap, 3 * PAGES + 100) && in(f->bitmap, 3 * PAGES + 101));
	assert_int_equal(scan(f), 0);
	order(f, OP_WRITE, 3 * PAGES + 101, 2);
	order(f, OP_WRITE, 2 * PAGES - 1, 2);
	assert_int_equal(scan(f), 4);
	for (uint32_t p = 0; p < f->pages; p++)
		assert_int_equal(in(f->bitmap, p), p == 3 * PAGES + 101 || p == 3 * PAGES + 102 ||
		                                           p == 2 * PAGES - 1 || p == 2 * PAGES);
	assert_int_equal(tracker_detach(&f->t), 0);
}

/* Faults of a process that needed no disk: field 10 of its stat. */
static uint64_t faults(pid_t pid)
{
	char path[64], line[512], *p;
	uint64_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_non_null(fgets(line, sizeof(line), f));
	fclose(f);
	p = strrchr(line, ')');
	assert_non_null(p);
	assert_int_equal(sscanf(p, ") %*c %*d %*d %*d %*d %*d %*u %" SCNu64, &n), 1);
	return n;
}

#define UNIT   512 /* pages: one unit of hot.h */
#define HOT    600 /* pages: of two units, neither of them all */
#define FIRST  700
#define ROUNDS 60

/* What is written all the time is always reported, at few faults; and no more soon after. */
static void test_hot(void **state)
{
	struct fixture *f = *state;
	uint64_t before = 0, over = 0;

	attach(f);
	(void)scan(f);
	for (int i = 0; i < ROUNDS; i++) {
		if (i == ROUNDS / 2)
			before = faults(f->pid);
		order(f, OP_WRITE, FIRST, HOT);
		assert_int_equal(scan(f), HOT);
		for (uint32_t p = FIRST; p < FIRST + HOT; p++)
			assert_true(in(f->bitmap, p));
	}
	assert_in_range(faults(f->pid) - before, HOT, HOT * ROUNDS / 2 / 4);
	for (int i = 0; i < 2 * HOT_REST_MAX; i++)
		over += (uint64_t)scan(f);
	assert_in_range(over, 0, HOT * HOT_REST_MAX);
	assert_int_equal(scan(f), 0);
	order(f, OP_WRITE, FIRST + 5, 1);
	assert_int_equal(scan(f), 1);
	assert_int_equal(tracker_detach(&f->t), 0);
}

/* A burst is over before much is copied in vain. */
static void test_burst(void **state)
{
	struct fixture *f = *state;
	uint64_t over = 0;

	attach(f);
	(void)scan(f);
	for (int i = 0; i < 4; i++) {
		order(f, OP_WRITE, FIRST, HOT);
		assert_int_equal(scan(f), HOT);
	}
	for (int i = 0; i < 8; i++)
		over += (uint64_t)scan(f);
	assert_in_range(over, 0, 2 * HOT);
	assert_int_equal(scan(f), 0);
	assert_int_equal(tracker_detach(&f->t), 0);
}

/* Other pages each time: no more is reported than a few scans with some of the ones before. */
static void test_scattered(void **state)
{
	struct fixture *f = *state;
	uint64_t written = 0, reported = 0;
	unsigned seed = 1;

	attach(f);
	(void)scan(f);
	for (int i = 0; i < 2 * ROUNDS; i++) {
		bool now[UNIT] = {false};

		for (int n = 0; n < UNIT / 4; n++) {
			uint32_t p = (uint32_t)rand_r(&seed) % UNIT;

			written += !now[p];
			now[p] = true;
			order(f, OP_WRITE, UNIT + p, 1);
		}
		reported += (uint64_t)scan(f);
		for (uint32_t p = 0; p < UNIT; p++)
			assert_true(!now[p] || in(f->bitmap, UNIT + p));
	}
	assert_in_range(reported, written, written * 21 / 20);
	assert_int_equal(tracker_detach(&f->t), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(test_holes, setup_uffd, teardown),
	        cmocka_unit_test_setup_teardown(test_hot, setup_uffd, teardown),
	        cmocka_unit_test_setup_teardown(test_burst, setup_uffd, teardown),
	        cmocka_unit_test_setup_teardown(test_scattered, setup_uffd, teardown),
	        cmocka_unit_test_setup_teardown(test_huge, setup_huge, teardown),
	};

	/* Kernels without it have the other way. */
	return tracker_uffd.supported() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
