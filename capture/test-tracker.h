/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A process that stands for QEMU, whose writes are tracked. */
#ifndef MC_CAPTURE_TEST_TRACKER_H
#define MC_CAPTURE_TEST_TRACKER_H

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
#include "uffd-scan.h"

#define PAGES 4096 /* one area of populated.h */
#define AREAS 6
#define ALL   (AREAS * PAGES)
#define WORDS (ALL / 64)

enum op { OP_WRITE, OP_READ, OP_DROP, OP_LOCK, OP_UNLOCK };

struct order {
	enum op op;
	uint32_t page, n;
};

struct fixture {
	enum mc_tracker kind;
	int sock; /* to the process */
	pid_t pid;
	uint32_t pages, populated; /* from the first one on */
	bool two;                  /* threads */
	struct vm_info vm;
	struct mc_arena arena;
	struct tracker t;
	_Atomic uint64_t *bitmap; /* in shared memory, as in the arena */
};

static inline void obey(volatile char *ram, const struct order *o)
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

static inline void be_guest(volatile char *ram, int sock)
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

static inline void order(struct fixture *f, enum op op, uint32_t page, uint32_t n)
{
	struct order o = {.op = op, .page = page, .n = n};
	char done;

	assert_int_equal(write(f->sock, &o, sizeof(o)), sizeof(o));
	assert_int_equal(read(f->sock, &done, 1), 1);
}

static inline void *shared(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static inline void make_arena(struct fixture *f)
{
	f->arena.vector = shared(sizeof(struct mc_region) * MC_VECTOR_REGIONS);
	f->arena.control = shared(sizeof(struct mc_control));
	f->arena.proc = shared(sizeof(struct mc_proc) * MC_ROLE_MAX);
	f->arena.control->block[0].size = f->vm.block[0].size;
	f->bitmap = shared(WORDS * 8);
}

/* @fd: of the RAM; closed. */
static inline int setup_file(void **state, enum mc_tracker kind, int fd, uint32_t pages,
                             uint32_t populated)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int sock[2];
	struct stat st;
	size_t size = (size_t)pages * MC_PAGE_SIZE;
	char *ram;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
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
	                                   .size = size,
	                                   .hva = (uint64_t)ram,
	                                   .page_size = MC_PAGE_SIZE,
	                                   .dev = st.st_dev,
	                                   .ino = st.st_ino,
	                                   .shared = true};
	munmap(ram, size);
	close(fd);
	make_arena(f);
	tracker_init(&f->t);
	order(f, OP_WRITE, 0, populated);
	order(f, OP_LOCK, 0, populated);
	f->pages = pages;
	f->populated = populated;
	*state = f;
	return 0;
}

static inline int setup(void **state, enum mc_tracker kind, uint32_t pages, uint32_t populated)
{
	return setup_file(state, kind, memfd_create("ram", MFD_CLOEXEC), pages, populated);
}

static inline int setup_uffd(void **state)
{
	return setup(state, MC_TRACKER_UFFD, ALL, PAGES);
}

static inline int teardown(void **state)
{
	struct fixture *f = *state;

	if (!f)
		return 0;

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

static inline void start_second(struct fixture *f)
{
	if (f->two)
		assert_int_equal(uffd_scan_start(f->t.scan, 1), 0);
}

static inline void attach(struct fixture *f)
{
	char why[512] = "";
	int r = tracker_attach(&f->t, f->kind, &f->vm, &f->arena, why, sizeof(why));

	if (r < 0)
		fail_msg("%s", why);
	assert_int_equal(tracker_kind(&f->t), f->kind);
	start_second(f);
}

static inline int64_t scan(struct fixture *f)
{
	memset((void *)f->bitmap, 0, WORDS * 8);
	return tracker_scan(&f->t, f->bitmap, NULL);
}

static inline bool in(const _Atomic uint64_t *bitmap, uint32_t page)
{
	return atomic_load(&bitmap[page / 64]) >> page % 64 & 1;
}

#endif
