/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tracking by the kernel's soft-dirty bits, for kernels before 6.7.
 *
 * Bits are read and cleared in two steps, and clearing is for the whole process.  So nothing
 * may write between the two (the guest is stopped and drained, the device state is saved
 * before), and what was read stands in the arena before anything is cleared: whoever dies in
 * between leaves bits that are reported twice, never bits that nobody reports.
 *
 * A bit lives in a page table entry and is lost when the kernel drops the entry of a page that
 * stays in its file: softdirty-check.c sees to it that this can't happen.  An entry that is
 * missing all the same counts as written when its file holds the page.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"
#include "tracker-private.h"

/* Entries of /proc/PID/pagemap: Documentation/admin-guide/mm/pagemap.rst. */
#define PM_SOFT_DIRTY (1ULL << 55)
#define PM_PRESENT    (1ULL << 63)

#define CHUNK_PAGES 65536 /* one read: the entries of 256 MiB */

static int clear_bits(int fd)
{
	ssize_t n = pwrite(fd, "4", 1, 0);

	return n == 1 ? 0 : n < 0 ? -errno : -EIO;
}

static int read_entries(int fd, uint64_t address, uint64_t *entry, uint64_t n)
{
	char *to = (char *)entry;
	size_t left = n * sizeof(*entry);
	off_t at = (off_t)(address / MC_PAGE_SIZE * sizeof(*entry));

	while (left) {
		ssize_t r = pread(fd, to, left, at);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return r < 0 ? -errno : -EIO;
		to += r;
		at += r;
		left -= (size_t)r;
	}
	return 0;
}

/* Written, cleared, written again: does a shared page of our own tell so? */
static bool bits_work(int pagemap, int clear_refs)
{
	volatile char *page =
	        mmap(NULL, MC_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t before = 0, cleared = 0, after = 0;
	bool ok;

	if (page == MAP_FAILED)
		return false;
	page[0] = 1;
	ok = read_entries(pagemap, (uint64_t)page, &before, 1) == 0 &&
	     clear_bits(clear_refs) == 0 && read_entries(pagemap, (uint64_t)page, &cleared, 1) == 0;
	page[0] = 2;
	ok = ok && read_entries(pagemap, (uint64_t)page, &after, 1) == 0;
	munmap((void *)page, MC_PAGE_SIZE);
	return ok && before & PM_SOFT_DIRTY && !(cleared & PM_SOFT_DIRTY) && after & PM_SOFT_DIRTY;
}

static bool softdirty_supported(void)
{
	int mc_autoclose pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int mc_autoclose clear_refs = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

	return pagemap >= 0 && clear_refs >= 0 && bits_work(pagemap, clear_refs);
}

static int read_policy(int fd, char *buf, size_t len)
{
	ssize_t n = fd < 0 ? 0 : pread(fd, buf, len - 1, 0);

	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return 0;
}

static int softdirty_attach(struct tracker *t, char *why, size_t why_len)
{
	char path[64];
	int r;

	t->policy_fd = open(SOFTDIRTY_THP, O_RDONLY | O_CLOEXEC);
	r = read_policy(t->policy_fd, t->policy, sizeof(t->policy));
	if (r < 0) {
		snprintf(why, why_len, "%s: %s", SOFTDIRTY_THP, strerror(-r));
		return r;
	}
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", (int)t->vm->pid);
	t->clear_refs = open(path, O_WRONLY | O_CLOEXEC);
	if (t->clear_refs < 0) {
		r = -errno;
		snprintf(why, why_len, "%s: %s; CAP_DAC_OVERRIDE is needed", path, strerror(-r));
		return r;
	}
	for (unsigned i = 0; i < t->vm->nblocks; i++) {
		t->ram_fd[i] = vm_open_block(t->vm, i);
		if (t->ram_fd[i] < 0) {
			snprintf(why, why_len,
			         "can't open RAM block %s: %s; is QEMU's file still there, and may "
			         "root read it?",
			         t->vm->block[i].name, strerror(-t->ram_fd[i]));
			return t->ram_fd[i];
		}
	}
	t->entries = calloc(CHUNK_PAGES, sizeof(*t->entries));
	return t->entries ? 0 : -ENOMEM;
}

struct scan {
	struct tracker *t;
	unsigned block;
	_Atomic uint64_t *bitmap, *also;
	int64_t pages;
};

static void report(struct scan *s, uint64_t page, uint64_t n)
{
	uint64_t first = s->t->arena->control->block[s->block].first_page + page;

	tracker_set_bits(s->bitmap, first, n);
	if (s->also)
		tracker_set_bits(s->also, first, n);
	s->pages += (int64_t)n;
}

/* Pages [page, page + n) are not in the page table: those that the file holds lost their bit. */
static int report_lost(struct scan *s, uint64_t page, uint64_t n)
{
	int fd = s->t->ram_fd[s->block];
	off_t at = (off_t)(page * MC_PAGE_SIZE), end = at + (off_t)(n * MC_PAGE_SIZE);

	while (at < end) {
		off_t data = lseek(fd, at, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			return 0;
		hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		if (data >= end)
			return 0;
		at = hole < end ? hole : end;
		report(s, (uint64_t)data / MC_PAGE_SIZE,
		       (uint64_t)(at - data + MC_PAGE_SIZE - 1) / MC_PAGE_SIZE);
	}
	return 0;
}

/* What the entries [0, n) say of the pages from @page on, run by run. */
static int take_entries(struct scan *s, uint64_t page, uint64_t n)
{
	const uint64_t *e = s->t->entries, mask = PM_SOFT_DIRTY | PM_PRESENT;
	int r = 0;

	for (uint64_t i = 0, to; r == 0 && i < n; i = to) {
		uint64_t is = e[i] & mask;

		for (to = i + 1; to < n && (e[to] & mask) == is; to++)
			;
		if (!(is & PM_PRESENT))
			r = report_lost(s, page + i, to - i);
		else if (is & PM_SOFT_DIRTY)
			report(s, page + i, to - i);
	}
	return r;
}

static int read_block(struct scan *s)
{
	const struct vm_block *b = &s->t->vm->block[s->block];
	uint64_t pages = b->size / MC_PAGE_SIZE;
	int r = 0;

	for (uint64_t at = 0; r == 0 && at < pages; at += CHUNK_PAGES) {
		uint64_t n = mc_min_u64(pages - at, CHUNK_PAGES);

		r = read_entries(s->t->pagemap, b->hva + at * MC_PAGE_SIZE, s->t->entries, n);
		(void)mc_fault(MC_FAULT_CAPTURE_VECTOR);
		if (r == 0)
			r = take_entries(s, at, n);
	}
	return r;
}

/* A policy that changed is looked at again: huge pages would take bits with them. */
static int check_policy(struct tracker *t)
{
	char now[sizeof(t->policy)], why[256];
	int r = read_policy(t->policy_fd, now, sizeof(now));

	if (r < 0 || strcmp(now, t->policy) == 0)
		return r;
	if (softdirty_check_mapping(t->vm, why, sizeof(why)) < 0)
		return -EUCLEAN;
	strcpy(t->policy, now);
	return 0;
}

static int64_t softdirty_scan(struct tracker *t, _Atomic uint64_t *bitmap, _Atomic uint64_t *also)
{
	struct scan s = {.t = t, .bitmap = bitmap, .also = also};
	int r = check_policy(t);

	for (; r == 0 && s.block < t->vm->nblocks; s.block++)
		r = read_block(&s);
	/* The bitmap is in the arena before the first bit goes: partner of no load, but of death.
	 */
	atomic_thread_fence(memory_order_seq_cst);
	(void)mc_fault(MC_FAULT_CAPTURE_VECTOR_TAKEN);
	if (r == 0)
		r = clear_bits(t->clear_refs);
	if (r == 0)
		r = mc_fault(MC_FAULT_CAPTURE_SCAN);
	return r < 0 ? r : s.pages;
}

const struct tracker_ops tracker_softdirty = {
        .kind = MC_TRACKER_SOFT_DIRTY,
        .needs = "soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)",
        .quiet = true,
        .supported = softdirty_supported,
        .check = softdirty_check,
        .attach = softdirty_attach,
        .scan = softdirty_scan,
};
