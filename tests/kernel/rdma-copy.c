/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * capture's copy by RDMA, on memory that stands for a guest's.
 *
 *   rdma-copy check           content after each way to copy; prints one line with counters
 *   rdma-copy lose            reads a line when the device is ready, copies until it fails
 *   rdma-copy time PAGES RUN  ns to copy PAGES pages in runs of RUN, by the device and by memcpy
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "../../capture/rdma-copy.h"
#include "../../ipc/arena.h"
#include "../../ipc/util.h"

#define PAGE  4096ULL
#define RAM   (64ULL << 20)
#define UNIT  (5ULL << 20)
#define HOLES (16ULL << 20) /* from here on every other chunk of 2 MiB has holes */

struct bed {
	struct mc_arena a;
	int fd;
	uint8_t *ram;
	struct rdma_copy *c;
	mc_handle slab[8];
	unsigned slabs;
	uint64_t pages; /* in the slabs */
};

static uint64_t step = 1;

static void dirty(struct bed *b, uint64_t page)
{
	for (uint64_t i = 0; i < PAGE; i += 8) {
		uint64_t v = (page << 32 | i) * 0x9e3779b97f4a7c15ULL + step;

		memcpy(b->ram + page * PAGE + i, &v, 8);
	}
}

static bool may_dirty(uint64_t page)
{
	uint64_t chunk = page * PAGE / (2 << 20);

	return page * PAGE < HOLES || chunk % 2 || page % 512 == 7;
}

static void open_bed(struct bed *b)
{
	struct mc_arena_params p = {.slab_size = UNIT,
	                            .max_memory = 16 * UNIT,
	                            .ram_pages = RAM / PAGE,
	                            .side = MC_SIDE_PRIMARY};
	int e;

	assert_int_equal(mc_arena_create(&b->a, NULL, &p), 0);
	b->a.slabs.role = MC_ROLE_CAPTURE;
	b->fd = memfd_create("ram", MFD_CLOEXEC);
	assert_int_equal(ftruncate(b->fd, RAM), 0);
	b->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	assert_true(b->ram != MAP_FAILED);
	for (uint64_t i = 0; i < RAM / PAGE; i++)
		if (may_dirty(i))
			dirty(b, i);
	e = rdma_copy_new(&b->c, &b->a.slabs, 200 << 20);
	if (e < 0)
		fail_msg("no copy by RDMA: %s", strerror(-e));
	assert_int_equal(rdma_copy_add_block(b->c, 0, b->fd, RAM), 0);
	assert_true(mc_pool_reserve(&b->a.slabs, 8) >= 8);
}

/* The place of the next page in the slabs. */
static uint8_t *place(struct bed *b)
{
	uint64_t per = UNIT / PAGE;

	if (b->pages == b->slabs * per)
		assert_int_equal(mc_pool_alloc(&b->a.slabs, 1, false, &b->slab[b->slabs++]), 0);
	return (uint8_t *)mc_pool_data(&b->a.slabs, b->slab[b->slabs - 1]) +
	       b->pages++ % per * PAGE;
}

/* Copies every @nth run of @run pages, compares, gives the slabs back. Returns ns, @cpu: memcpy. */
static uint64_t copy(struct bed *b, uint64_t pages, uint64_t run, uint64_t nth, bool cpu,
                     int *error)
{
	static uint8_t *to[RAM / PAGE];
	static uint64_t from[RAM / PAGE];
	uint64_t n = 0, began;

	b->slabs = 0;
	b->pages = 0;
	for (uint64_t at = 0; at < RAM / PAGE && n < pages; at += run * nth)
		for (uint64_t i = at; i < at + run && i < RAM / PAGE && n < pages; i++)
			if (may_dirty(i)) {
				from[n] = i;
				to[n++] = place(b);
			}
	began = mc_now_ns();
	for (uint64_t i = 0; i < n; i++)
		if (cpu)
			memcpy(to[i], b->ram + from[i] * PAGE, PAGE);
		else
			rdma_copy(b->c, 0, from[i] * PAGE, b->ram + from[i] * PAGE, to[i], PAGE);
	*error = cpu ? 0 : rdma_copy_finish(b->c);
	began = mc_now_ns() - began;
	for (uint64_t i = 0; i < n; i++)
		if (memcmp(to[i], b->ram + from[i] * PAGE, PAGE) != 0)
			fail_msg("page %llu differs", (unsigned long long)from[i]);
	for (unsigned i = 0; i < b->slabs; i++)
		assert_int_equal(mc_pool_free(&b->a.slabs, b->slab[i]), 0);
	return began;
}

static void change(struct bed *b)
{
	step++;
	for (uint64_t i = 0; i < RAM / PAGE; i++)
		if (may_dirty(i))
			dirty(b, i);
}

static uint64_t blocks_of(const struct bed *b)
{
	struct stat st;

	assert_int_equal(fstat(b->fd, &st), 0);
	return (uint64_t)st.st_blocks;
}

static void check_all(struct bed *b)
{
	struct rdma_copy_stats s, first;
	uint64_t had = blocks_of(b);
	int e;

	(void)copy(b, 8000, 1, 1, false, &e);
	rdma_copy_get_stats(b->c, &first);
	assert_int_equal(first.by_device, 0); /* nothing was registered */
	for (int i = 0; i < 4; i++) {
		rdma_copy_prepare(b->c);
		change(b);
		(void)copy(b, 8000, 1 + (uint64_t)i, 1 + (uint64_t)i % 3, false, &e);
		assert_int_equal(e, 0);
	}
	rdma_copy_get_stats(b->c, &s);
	assert_true(s.by_device > 2 * (8000 * PAGE));
	/* Chunks with holes stay unregistered: registering would fill them. */
	assert_int_equal(blocks_of(b), had);
	/* The pool gives slabs back and gets others: they are registered anew. */
	atomic_store(&b->a.slabs.shm->strikes_max, 1);
	for (int i = 0; i < 20; i++)
		(void)mc_pool_epoch_done(&b->a.slabs);
	assert_true(atomic_load(&b->a.slabs.shm->shrunk) > 0);
	for (int i = 0; i < 2; i++) {
		assert_true(mc_pool_reserve(&b->a.slabs, 8) >= 8);
		rdma_copy_prepare(b->c);
		change(b);
		(void)copy(b, 8000, 3, 1, false, &e);
		assert_int_equal(e, 0);
	}
	rdma_copy_get_stats(b->c, &s);
	printf("ok device=%llu cpu=%llu pinned=%llu registrations=%llu\n",
	       (unsigned long long)s.by_device, (unsigned long long)s.by_cpu,
	       (unsigned long long)s.pinned, (unsigned long long)s.registrations);
}

static void lose_device(struct bed *b)
{
	struct rdma_copy_stats s;
	char line[16];
	int e = 0;

	for (int i = 0; i < 3; i++) {
		(void)copy(b, 1000, 1, 1, false, &e);
		rdma_copy_prepare(b->c);
	}
	printf("ready\n");
	fflush(stdout);
	(void)!fgets(line, sizeof(line), stdin);
	for (int i = 0; i < 100 && e == 0; i++) {
		(void)copy(b, 1000, 1, 1, false, &e);
	}
	assert_true(e < 0);
	change(b);
	(void)copy(b, 1000, 1, 1, false, &e);
	assert_int_equal(e, 0); /* said once */
	rdma_copy_get_stats(b->c, &s);
	printf("ok failed, device=%llu cpu=%llu\n", (unsigned long long)s.by_device,
	       (unsigned long long)s.by_cpu);
}

static void time_both(struct bed *b, uint64_t pages, uint64_t run)
{
	uint64_t best[2] = {UINT64_MAX, UINT64_MAX};
	int e;

	for (int i = 0; i < 12; i++) {
		uint64_t ns = copy(b, pages, run, 2, i % 2, &e);

		assert_int_equal(e, 0);
		rdma_copy_prepare(b->c);
		if (i > 3)
			best[i % 2] = mc_min_u64(best[i % 2], ns);
	}
	printf("ok device_ns=%llu memcpy_ns=%llu\n", (unsigned long long)best[0],
	       (unsigned long long)best[1]);
}

int main(int argc, char **argv)
{
	struct bed b = {.fd = -1};

	if (argc < 2)
		return 2;
	open_bed(&b);
	if (strcmp(argv[1], "check") == 0)
		check_all(&b);
	else if (strcmp(argv[1], "lose") == 0)
		lose_device(&b);
	else if (argc == 4)
		time_both(&b, strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10));
	b.c = rdma_copy_free(b.c);
	mc_arena_done(&b.a);
	munmap(b.ram, RAM);
	close(b.fd);
	return 0;
}
