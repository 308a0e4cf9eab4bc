/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty trackers on a process that stands for QEMU: every page that it wrote is reported once,
 * nothing is lost when the tracker's owner is killed, and guests are refused whose pages would be.
 * Runs for each way that the kernel has: tests/kernel runs it on one that has soft-dirty bits.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "tracker-private.h"

#define PAGES 4096
#define WORDS (PAGES / 64)
#define KILLS 150

enum op { OP_WRITE, OP_READ, OP_DROP, OP_LOCK, OP_UNLOCK };

struct order {
	enum op op;
	uint32_t page, n;
};

struct fixture {
	enum mc_tracker kind;
	int sock; /* to the process */
	pid_t pid;
	struct vm_info vm;
	struct mc_arena arena;
	struct tracker t;
	_Atomic uint64_t *bitmap; /* in shared memory, as in the arena */
};

static void obey(volatile char *ram, const struct order *o)
{
	char *from = (char *)ram + (size_t)o->page * MC_PAGE_SIZE;
	size_t len = (size_t)o->n * MC_PAGE_SIZE;

	for (uint32_t i = 0; i < o->n && o->op == OP_WRITE; i++)
		ram[((size_t)o->page + i) * MC_PAGE_SIZE + 8]++;
	for (uint32_t i = 0; i < o->n && o->op == OP_READ; i++)
		(void)ram[((size_t)o->page + i) * MC_PAGE_SIZE];
	if (o->op == OP_DROP)
		(void)madvise(from, len, MADV_DONTNEED);
	if (o->op == OP_LOCK)
		(void)mlock(from, len);
	if (o->op == OP_UNLOCK)
		(void)munlock(from, len);
}

static void be_guest(volatile char *ram, int sock)
{
	struct order o;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(sock, &o, sizeof(o)) == sizeof(o)) {
		obey(ram, &o);
		if (write(sock, &o, 1) != 1)
			break;
	}
	_exit(0);
}

static void order(struct fixture *f, enum op op, uint32_t page, uint32_t n)
{
	struct order o = {.op = op, .page = page, .n = n};
	char done;

	assert_int_equal(write(f->sock, &o, sizeof(o)), sizeof(o));
	assert_int_equal(read(f->sock, &done, 1), 1);
}

static void *shared(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static void make_arena(struct fixture *f)
{
	f->arena.vector = shared(sizeof(struct mc_region) * MC_VECTOR_REGIONS);
	f->arena.control = shared(sizeof(struct mc_control));
	f->arena.proc = shared(sizeof(struct mc_proc) * MC_ROLE_MAX);
	f->arena.control->block[0].size = f->vm.block[0].size;
	f->bitmap = shared(WORDS * 8);
}

static int setup(void **state, enum mc_tracker kind)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int sock[2], fd = memfd_create("ram", MFD_CLOEXEC);
	struct stat st;
	char *ram;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	assert_int_equal(ftruncate(fd, PAGES * MC_PAGE_SIZE), 0);
	ram = mmap(NULL, PAGES * MC_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(ram, MAP_FAILED);
	f->pid = fork();
	if (f->pid == 0)
		be_guest(ram, sock[1]);
	close(sock[1]);
	assert_int_equal(fstat(fd, &st), 0);
	f->kind = kind;
	f->sock = sock[0];
	f->vm = (struct vm_info){.pid = f->pid, .nblocks = 1};
	f->vm.block[0] = (struct vm_block){.name = "ram",
	                                   .size = PAGES * MC_PAGE_SIZE,
	                                   .hva = (uint64_t)ram,
	                                   .page_size = MC_PAGE_SIZE,
	                                   .dev = st.st_dev,
	                                   .ino = st.st_ino,
	                                   .shared = true};
	munmap(ram, PAGES * MC_PAGE_SIZE);
	close(fd);
	make_arena(f);
	tracker_init(&f->t);
	order(f, OP_LOCK, 0, PAGES);
	*state = f;
	return 0;
}

static int setup_uffd(void **state)
{
	return setup(state, MC_TRACKER_UFFD);
}

static int setup_softdirty(void **state)
{
	return setup(state, MC_TRACKER_SOFT_DIRTY);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	tracker_done(&f->t);
	kill(f->pid, SIGKILL);
	waitpid(f->pid, NULL, 0);
	close(f->sock);
	munmap(f->arena.vector, sizeof(struct mc_region) * MC_VECTOR_REGIONS);
	munmap(f->arena.control, sizeof(struct mc_control));
	munmap(f->arena.proc, sizeof(struct mc_proc) * MC_ROLE_MAX);
	munmap((void *)f->bitmap, WORDS * 8);
	free(f);
	return 0;
}

static void attach(struct fixture *f)
{
	char why[512] = "";
	int r = tracker_attach(&f->t, f->kind, &f->vm, &f->arena, why, sizeof(why));

	if (r < 0)
		fail_msg("%s", why);
	assert_int_equal(tracker_kind(&f->t), f->kind);
}

static int64_t scan(struct fixture *f)
{
	memset((void *)f->bitmap, 0, WORDS * 8);
	return tracker_scan(&f->t, f->bitmap, NULL);
}

static bool in(const _Atomic uint64_t *bitmap, uint32_t page)
{
	return atomic_load(&bitmap[page / 64]) >> page % 64 & 1;
}

/* Exactly what was written since the scan before, by range and by single pages. */
static void test_exact(void **state)
{
	struct fixture *f = *state;
	_Atomic uint64_t also[WORDS] = {0};

	attach(f);
	assert_int_equal(scan(f), PAGES); /* the first scan: all */
	assert_int_equal(scan(f), 0);
	order(f, OP_WRITE, 0, 1);
	order(f, OP_WRITE, 60, 10);
	order(f, OP_WRITE, PAGES - 1, 1);
	order(f, OP_READ, 100, 1000);
	memset((void *)f->bitmap, 0, WORDS * 8);
	assert_int_equal(tracker_scan(&f->t, f->bitmap, also), 12);
	for (uint32_t p = 0; p < PAGES; p++) {
		bool want = p == 0 || (p >= 60 && p < 70) || p == PAGES - 1;

		assert_int_equal(in(f->bitmap, p), want);
		assert_int_equal(in(also, p), want);
	}
	order(f, OP_WRITE, 60, 1);
	assert_int_equal(scan(f), 1);
	assert_true(in(f->bitmap, 60));
	assert_int_equal(scan(f), 0);
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
			page[k] = (uint32_t)rand_r(&seed) % PAGES;
			order(f, OP_WRITE, page[k], 1);
		}
		/* Nobody writes while it scans, as a stopped guest doesn't. */
		pid = start_victim(f);
		usleep((useconds_t)rand_r(&seed) % 1500);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		(void)tracker_recover(&f->t, f->bitmap);
		assert_true(tracker_scan(&f->t, f->bitmap, NULL) >= 0);
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
#define SOFT(fn)                                                                                   \
	{                                                                                          \
#fn "_softdirty", fn, setup_softdirty, teardown, NULL                              \
	}

int main(void)
{
	const struct CMUnitTest uffd[] = {UFFD(test_exact), UFFD(test_successor),
	                                  UFFD(test_killed)};
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
