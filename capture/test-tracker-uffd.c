/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the uffd tracker makes of RAM that was never touched, and of huge pages. */
#include <inttypes.h>
#include <sched.h>
#include <sys/mount.h>

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

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(test_holes, setup_uffd, teardown),
	        cmocka_unit_test_setup_teardown(test_huge, setup_huge, teardown),
	};

	/* Kernels without it have the other way. */
	return tracker_uffd.supported() ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
