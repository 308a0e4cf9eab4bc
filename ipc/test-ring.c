/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "bell.h"
#include "ring.h"
#include "util.h"

#define ITEMS 100000ULL
#define START (UINT64_MAX - 9) /* of the indices of two processes */

static struct mc_ring *shared_ring(uint64_t nslots, uint64_t start)
{
	struct mc_ring *r = mmap(NULL, mc_ring_size(nslots), PROT_READ | PROT_WRITE,
	                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(r, MAP_FAILED);
	assert_int_equal(mc_ring_init(r, nslots), 0);
	atomic_store(&r->head, start);
	atomic_store(&r->tail, start);
	/* As the round before left it. */
	for (uint64_t i = start; i - start < nslots; i++)
		atomic_store(&r->slot[i & (nslots - 1)], i & nslots ? MC_RING_LAP : 0);
	return r;
}

static void test_refuses_bad_sizes(void **state)
{
	struct mc_ring *r = shared_ring(4, 0);
	struct mc_ring_end e;

	(void)state;
	assert_int_equal(mc_ring_init(r, 3), -EINVAL);
	assert_int_equal(mc_ring_init(r, 0), -EINVAL);
	assert_int_equal(mc_ring_attach_producer(&e, r, 8), -EBADMSG);
	r->magic = 1;
	assert_int_equal(mc_ring_attach_consumer(&e, r, 4), -EBADMSG);
	munmap(r, mc_ring_size(4));
}

/* Full, empty, order and wrap, with indices that pass 2^64. */
static void test_fills_and_wraps(void **state)
{
	struct mc_ring *r = shared_ring(4, UINT64_MAX - 5);
	struct mc_ring_end p, c;
	uint64_t h, burst[4];

	(void)state;
	assert_int_equal(mc_ring_attach_producer(&p, r, 4), 0);
	assert_int_equal(mc_ring_attach_consumer(&c, r, 4), 0);
	for (uint64_t n = 0; n < 100; n += 4) {
		assert_int_equal(mc_ring_peek(&c, 0, &h), 0);
		for (uint64_t i = 0; i < 4; i++)
			assert_int_equal(mc_ring_push(&p, n + i), 0);
		assert_int_equal(mc_ring_push(&p, 0), -ENOSPC);
		assert_int_equal(mc_ring_depth(r), 4);
		assert_true(mc_ring_contains(r, 4, n + 3));
		assert_int_equal(mc_ring_peek(&c, 2, &h), 1);
		assert_int_equal(h, n + 2);
		assert_int_equal(mc_ring_peek_burst(&c, burst, 4), 4);
		assert_int_equal(burst[3], n + 3);
		mc_ring_advance(&c, 4);
		assert_false(mc_ring_contains(r, 4, n + 3));
	}
	munmap(r, mc_ring_size(4));
}

/* From the last slots over to the first ones. */
static void test_burst_is_all_or_none(void **state)
{
	struct mc_ring *r = shared_ring(4, 2);
	const uint64_t h[5] = {1, 2, 3, 4, MC_RING_LAP};
	struct mc_ring_end p, c;
	uint64_t got[4];

	(void)state;
	assert_int_equal(mc_ring_attach_producer(&p, r, 4), 0);
	assert_int_equal(mc_ring_attach_consumer(&c, r, 4), 0);
	assert_int_equal(mc_ring_push_burst(&p, h + 3, 2), -EINVAL);
	assert_int_equal(mc_ring_peek_burst(&c, got, 4), 0);
	assert_int_equal(mc_ring_push_burst(&p, h, 3), 0);
	assert_int_equal(mc_ring_push_burst(&p, h, 2), -ENOSPC);
	assert_int_equal(mc_ring_depth(r), 3);
	assert_int_equal(mc_ring_push_burst(&p, h, 5), -ENOSPC);
	assert_int_equal(mc_ring_peek_burst(&c, got, 4), 3);
	assert_memory_equal(got, h, 3 * sizeof(h[0]));
	mc_ring_advance(&c, 3);
	assert_int_equal(mc_ring_peek_burst(&c, got, 4), 0);
	munmap(r, mc_ring_size(4));
}

/* A peer that writes nonsense into its slots or its index is found out before that is used. */
static void test_corrupt_peer(void **state)
{
	struct mc_ring *r = shared_ring(4, 0);
	struct mc_ring_end p, c;
	uint64_t h;

	(void)state;
	assert_int_equal(mc_ring_attach_producer(&p, r, 4), 0);
	assert_int_equal(mc_ring_attach_consumer(&c, r, 4), 0);
	assert_int_equal(mc_ring_push(&p, MC_RING_HANDLE + 1), -EINVAL);
	assert_int_equal(mc_ring_peek(&c, 0, &h), 0);
	atomic_store(&r->slot[0], UINT64_MAX);
	assert_int_equal(mc_ring_peek(&c, 0, &h), -EBADMSG);
	assert_int_equal(mc_ring_peek_burst(&c, &h, 1), -EBADMSG);
	atomic_store(&r->slot[0], 0);
	atomic_store(&r->head, 5);
	assert_int_equal(mc_ring_peek_burst(&c, &h, 1), -EBADMSG);
	atomic_store(&r->head, 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(mc_ring_push(&p, 1), 0);
	atomic_store(&r->tail, 7);
	assert_int_equal(mc_ring_push(&p, 1), -EBADMSG);
	atomic_store(&r->tail, 9);
	assert_int_equal(mc_ring_attach_producer(&p, r, 4), -EBADMSG);
	assert_int_equal(mc_ring_attach_consumer(&c, r, 4), -EBADMSG);
	munmap(r, mc_ring_size(4));
}

/* A producer that died between its pushes and their count; they may be taken already. */
static void test_uncounted(void **state)
{
	struct mc_ring *r = shared_ring(4, 2);
	struct mc_ring_end p, c;
	uint64_t h;

	(void)state;
	assert_int_equal(mc_ring_attach_producer(&p, r, 4), 0);
	assert_int_equal(mc_ring_attach_consumer(&c, r, 4), 0);
	for (uint64_t n = 1; n < 20; n += 3) {
		uint64_t before = atomic_load(&r->head);

		for (uint64_t i = 0; i < 3; i++)
			assert_int_equal(mc_ring_push(&p, n + i), 0);
		atomic_store(&r->head, before + n / 3 % 3);
		assert_true(mc_ring_contains(r, 4, n + 2));
		assert_true(mc_ring_peek_burst(&c, &h, 1) == 1 && h == n);
		for (uint64_t i = 0; i < 2; i++) {
			assert_int_equal(mc_ring_peek(&c, 0, &h), 1);
			assert_int_equal(h, n + i);
			mc_ring_advance(&c, 1);
		}
		assert_int_equal(mc_ring_attach_producer(&p, r, 4), 0);
		assert_int_equal(mc_ring_depth(r), 1);
		assert_int_equal(mc_ring_peek(&c, 0, &h), 1);
		assert_int_equal(h, n + 2);
		mc_ring_advance(&c, 1);
		assert_int_equal(mc_ring_peek(&c, 0, &h), 0);
	}
	munmap(r, mc_ring_size(4));
}

/* --- two processes, sleeping on their bells ---------------------------------------------- */

struct pair {
	struct mc_ring *ring;
	struct mc_bell *bell; /* [0] producer's, [1] consumer's */
	int fd[2];
};

/* Waits on a bell until @ready; false after 5 s: a wake-up was lost. */
static bool sleep_on(struct pair *p, int who, bool (*ready)(void *), void *arg)
{
	for (;;) {
		struct pollfd f = {.fd = p->fd[who], .events = POLLIN};

		mc_bell_sleep(&p->bell[who]);
		if (ready(arg))
			break;
		if (poll(&f, 1, 5000) != 1)
			return false;
		mc_bell_awake(&p->bell[who], p->fd[who]);
	}
	mc_bell_awake(&p->bell[who], p->fd[who]);
	return true;
}

static bool has_item(void *arg)
{
	uint64_t h;

	return mc_ring_peek(arg, 0, &h) == 1;
}

static bool has_space(void *arg)
{
	struct mc_ring_end *e = arg;

	return e->own - atomic_load(&e->ring->tail) < e->nslots;
}

static int produce(struct pair *p, uint64_t nslots)
{
	struct mc_ring_end e;

	if (mc_ring_attach_producer(&e, p->ring, nslots) < 0)
		return 1;
	/* A successor goes on behind what was pushed. */
	for (uint64_t n = e.own - START + 1; n <= ITEMS; n++) {
		while (mc_ring_push(&e, n) == -ENOSPC)
			if (!sleep_on(p, 0, has_space, &e))
				return 2;
		mc_bell_ring(&p->bell[1], p->fd[1]);
	}
	return 0;
}

/* Takes items until @last; *seen is in shared memory. */
static int consume(struct pair *p, uint64_t nslots, _Atomic uint64_t *seen)
{
	struct mc_ring_end e;
	uint64_t h;

	if (mc_ring_attach_consumer(&e, p->ring, nslots) < 0)
		return 1;
	while (atomic_load(seen) < ITEMS) {
		if (!sleep_on(p, 1, has_item, &e))
			return 2;
		while (mc_ring_peek(&e, 0, &h) == 1) {
			uint64_t want = atomic_load(seen) + 1;

			/* The entry that a dead predecessor had worked on may come once more. */
			if (h != want && h != want - 1)
				return 3;
			atomic_store(seen, h);
			mc_ring_advance(&e, 1);
			mc_bell_ring(&p->bell[0], p->fd[0]);
		}
	}
	return 0;
}

/* Who is killed; the other one is left alone. */
enum victim { NOBODY, PRODUCER, CONSUMER };

static pid_t start_end(struct pair *p, uint64_t nslots, _Atomic uint64_t *seen, bool producer)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(producer ? produce(p, nslots) : consume(p, nslots, seen));
	return pid;
}

static void run_pair(uint64_t nslots, enum victim victim, unsigned kills)
{
	struct pair p = {.ring = shared_ring(nslots, START)};
	_Atomic uint64_t *seen;
	pid_t pid[2];
	int status;

	p.bell = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	seen = (_Atomic uint64_t *)(p.bell + 4);
	p.fd[0] = eventfd(0, EFD_NONBLOCK);
	p.fd[1] = eventfd(0, EFD_NONBLOCK);
	for (int i = 0; i < 2; i++)
		pid[i] = start_end(&p, nslots, seen, i == 0);
	while (kills--) {
		int i = victim == CONSUMER;

		usleep(1000 + (unsigned)rand() % 3000); /* a random moment of its work */
		kill(pid[i], SIGKILL);
		assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
		pid[i] = start_end(&p, nslots, seen, i == 0);
		/* A successor starts with its bell rung, and rings: what rang before is lost. */
		mc_bell_ring_always(p.fd[0]);
		mc_bell_ring_always(p.fd[1]);
	}
	for (int i = 0; i < 2; i++) {
		assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
		assert_int_equal(status, 0);
		close(p.fd[i]);
	}
	assert_int_equal(atomic_load(seen), ITEMS);
	munmap(p.bell, 4096);
	munmap(p.ring, mc_ring_size(nslots));
}

static void test_two_processes(void **state)
{
	(void)state;
	run_pair(2, NOBODY, 0);
	run_pair(64, NOBODY, 0);
}

static void test_consumer_killed(void **state)
{
	(void)state;
	run_pair(4, CONSUMER, 20);
}

static void test_producer_killed(void **state)
{
	(void)state;
	run_pair(4, PRODUCER, 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_refuses_bad_sizes),
	        cmocka_unit_test(test_fills_and_wraps),
	        cmocka_unit_test(test_burst_is_all_or_none),
	        cmocka_unit_test(test_corrupt_peer),
	        cmocka_unit_test(test_uncounted),
	        cmocka_unit_test(test_two_processes),
	        cmocka_unit_test(test_consumer_killed),
	        cmocka_unit_test(test_producer_killed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
