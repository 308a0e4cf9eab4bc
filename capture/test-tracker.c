/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty trackers on a process that stands for QEMU: every page that it wrote is reported once,
 * nothing is lost when the tracker's owner is killed, and guests are refused whose pages would be.
 * Runs for each way that the kernel has: tests/kernel runs it on one that has soft-dirty bits.
 */
#include "test-tracker.h"

#define KILLS 150

/* All of it, so that both threads have something to do. */
static int setup_two(void **state)
{
	int r = setup(state, MC_TRACKER_UFFD, ALL, ALL);

	((struct fixture *)*state)->two = true;
	return r;
}

static int setup_softdirty(void **state)
{
	return setup(state, MC_TRACKER_SOFT_DIRTY, PAGES, PAGES);
}

/* Exactly what was written since the scan before, by range and by single pages. */
static void test_exact(void **state)
{
	struct fixture *f = *state;
	_Atomic uint64_t also[WORDS] = {0};

	attach(f);
	assert_int_equal(scan(f), f->populated); /* the first scan: all */
	assert_int_equal(scan(f), 0);
	order(f, OP_WRITE, 0, 1);
	order(f, OP_WRITE, 60, 10);
	order(f, OP_WRITE, f->pages - 1, 1);
	order(f, OP_READ, 100, 1000);
	memset((void *)f->bitmap, 0, WORDS * 8);
	assert_int_equal(tracker_scan(&f->t, f->bitmap, also), 12);
	for (uint32_t p = 0; p < f->pages; p++) {
		bool want = p == 0 || (p >= 60 && p < 70) || p == f->pages - 1;

		assert_int_equal(in(f->bitmap, p), want);
		assert_int_equal(in(also, p), want);
	}
	order(f, OP_WRITE, 60, 1);
	assert_int_equal(scan(f), 1);
	assert_true(in(f->bitmap, 60));
	assert_int_equal(scan(f), 0);
	/* The second thread isn't waited for when it wakes up late. */
	for (int i = 0; f->two && !uffd_scan_shared(f->t.scan); i++) {
		assert_true(i < 100000);
		assert_int_equal(scan(f), 0);
	}
	assert_int_equal(tracker_detach(&f->t), 0);
	assert_int_equal(tracker_kind(&f->t), MC_TRACKER_AUTO);
}

/* A successor scans on from where its predecessor stood. */
static void test_successor(void **state)
{
	struct fixture *f = *state;

	attach(f);
	(void)scan(f);
	order(f, OP_WRITE, 7, 1);
	tracker_done(&f->t);
	order(f, OP_WRITE, 9, 1);
	attach(f);
	assert_int_equal(tracker_recover(&f->t, f->bitmap), 0);
	assert_int_equal(scan(f), 2);
	assert_true(in(f->bitmap, 7) && in(f->bitmap, 9));
	assert_int_equal(tracker_detach(&f->t), 0);
}

/* Scans without end, until it is killed. */
static pid_t start_victim(struct fixture *f)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (f->two && uffd_scan_start(f->t.scan, 1) < 0)
			_exit(1);
		while (tracker_scan(&f->t, f->bitmap, NULL) >= 0)
			;
		_exit(1);
	}
	return pid;
}

/* Killed anywhere in a scan: what it reported and what a successor finds hold every write. */
static void test_killed(void **state)
{
	struct fixture *f = *state;
	unsigned seed = 1;

	attach(f);
	(void)scan(f);
	for (int i = 0; i < KILLS; i++) {
		uint32_t page[64];
		pid_t pid;

		memset((void *)f->bitmap, 0, WORDS * 8);
		for (int k = 0; k < 64; k++) {
			page[k] = (uint32_t)rand_r(&seed) % f->pages;
			order(f, OP_WRITE, page[k], 1);
		}
		/* Nobody writes while it scans, as a stopped guest doesn't. */
		pid = start_victim(f);
		usleep((useconds_t)rand_r(&seed) % 1500);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		(void)tracker_recover(&f->t, f->bitmap);
		assert_in_range(tracker_scan(&f->t, f->bitmap, NULL), 0, f->pages);
		for (int k = 0; k < 64; k++)
			if (!in(f->bitmap, page[k]))
				fail_msg("kill %d: page %u was lost", i, page[k]);
	}
	assert_int_equal(tracker_detach(&f->t), 0);
}

/* An entry that the kernel dropped although its page lives on counts as written. */
static void test_dropped_entry(void **state)
{
	struct fixture *f = *state;

	attach(f);
	(void)scan(f);
	order(f, OP_UNLOCK, 0, PAGES);
	order(f, OP_WRITE, 20, 2);
	order(f, OP_DROP, 20, 2);
	assert_int_equal(scan(f), 2);
	assert_true(in(f->bitmap, 20) && in(f->bitmap, 21));
}

static void refused(struct fixture *f, int want, const char *word, const char *remedy)
{
	char why[512] = "";
	int r = tracker_check(&f->vm, f->kind, why, sizeof(why));

	assert_int_equal(r, want);
	if (!strstr(why, word) || !strstr(why, remedy))
		fail_msg("no '%s' or '%s' in: %s", word, remedy, why);
	assert_true(strlen(why) < sizeof(why) - 1);
	assert_int_equal(tracker_attach(&f->t, f->kind, &f->vm, &f->arena, why, sizeof(why)), want);
	assert_int_equal(tracker_kind(&f->t), MC_TRACKER_AUTO);
}

static void test_unlocked_is_refused(void **state)
{
	struct fixture *f = *state;

	order(f, OP_UNLOCK, PAGES - 1, 1);
	refused(f, -EPERM, "ram isn't locked", "mem-lock=on");
}

static int set_policy(const char *word)
{
	mc_autoclose int fd = open(SOFTDIRTY_THP, O_WRONLY | O_CLOEXEC);

	return fd >= 0 && write(fd, word, strlen(word)) > 0 ? 0 : -1;
}

/* Huge pages: refused before, noticed when they are turned on later. */
static void test_huge_pages(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(set_policy("always"), 0);
	refused(f, -EPERM, "huge pages for shared memory are on", "echo never");
	assert_int_equal(set_policy("never"), 0);
	attach(f);
	assert_int_equal(scan(f), PAGES);
	/* Only the word changed, not what it means for this guest. */
	assert_int_equal(set_policy("advise"), 0);
	assert_int_equal(scan(f), 0);
	assert_int_equal(set_policy("always"), 0);
	assert_int_equal(scan(f), -EUCLEAN);
	assert_int_equal(set_policy("never"), 0);
}

/* Asked for by name, a way that the kernel lacks is refused; auto takes one that it has. */
static void test_choice(void **state)
{
	struct fixture *f = *state;
	bool has[MC_TRACKERS] = {[MC_TRACKER_UFFD] = tracker_uffd.supported(),
	                         [MC_TRACKER_SOFT_DIRTY] = tracker_softdirty.supported()};
	char why[512];

	assert_true(has[MC_TRACKER_UFFD] || has[MC_TRACKER_SOFT_DIRTY]);
	assert_int_equal(tracker_check(&f->vm, MC_TRACKER_AUTO, why, sizeof(why)),
	                 has[MC_TRACKER_UFFD] ? MC_TRACKER_UFFD : MC_TRACKER_SOFT_DIRTY);
	for (int k = MC_TRACKER_UFFD; k < MC_TRACKERS; k++) {
		f->kind = (enum mc_tracker)k;
		if (!has[k])
			refused(f, -EOPNOTSUPP, mc_tracker_name(f->kind), "tracker=auto");
	}
}

#define UFFD(fn)                                                                                   \
	{                                                                                          \
#fn "_uffd", fn, setup_uffd, teardown, NULL                                        \
	}
#define TWO(fn)                                                                                    \
	{                                                                                          \
#fn "_two_threads", fn, setup_two, teardown, NULL                                  \
	}
#define SOFT(fn)                                                                                   \
	{                                                                                          \
#fn "_softdirty", fn, setup_softdirty, teardown, NULL                              \
	}

int main(void)
{
	const struct CMUnitTest uffd[] = {UFFD(test_exact), UFFD(test_successor), UFFD(test_killed),
	                                  TWO(test_exact),  TWO(test_successor),  TWO(test_killed)};
	const struct CMUnitTest soft[] = {SOFT(test_exact), SOFT(test_successor), SOFT(test_killed),
	                                  SOFT(test_dropped_entry), SOFT(test_unlocked_is_refused)};
	/* The policy is the whole machine's: only in a machine of our own. */
	const struct CMUnitTest machine[] = {SOFT(test_huge_pages)};
	const struct CMUnitTest choice[] = {SOFT(test_choice)};
	int failed = cmocka_run_group_tests(choice, NULL, NULL);

	if (tracker_uffd.supported())
		failed += cmocka_run_group_tests(uffd, NULL, NULL);
	if (tracker_softdirty.supported())
		failed += cmocka_run_group_tests(soft, NULL, NULL);
	if (tracker_softdirty.supported() && getenv("MC_TEST_MACHINE"))
		failed += cmocka_run_group_tests(machine, NULL, NULL);
	return failed;
}
