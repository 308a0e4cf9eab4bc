/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Handles through a ring between two pinned processes: ours, ck_ring SPSC and DPDK's rte_ring
 * SP/SC in the same kind of shared memory, bursts of 1 and 32, contents checked.  Prints one JSON
 * object of arrays: ns a handle of each run.
 */
#include <ck_ring.h>
#include <rte_ring.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "../../ipc/ring.h"
#include "../../ipc/util.h"

#define SLOTS     1024
#define BURST_MAX 32
#define ITEMS     (BURST_MAX * 400UL * 1000)
#define RUNS      7

enum kind { OURS, CK, RTE, KINDS };
static const char *const names[KINDS] = {"ours", "ck", "rte"};

struct ck_shared {
	ck_ring_t ring;
	void *buffer[SLOTS];
};

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	(void)sched_setaffinity(0, sizeof(set), &set);
}

static void *shared(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE,
	               -1, 0);

	if (p == MAP_FAILED)
		abort();
	return p;
}

static void expect(uint64_t got, uint64_t want)
{
	if (got != want) {
		fprintf(stderr, "ring: got %lu, expected %lu\n", got, want);
		_exit(1);
	}
}

static void consume_ours(struct mc_ring *ring, size_t burst)
{
	struct mc_ring_end e;
	uint64_t h[BURST_MAX];

	mc_ring_attach_consumer(&e, ring, SLOTS);
	for (uint64_t n = 1; n <= ITEMS;) {
		int got = burst == 1 ? mc_ring_peek(&e, 0, h) : mc_ring_peek_burst(&e, h, burst);

		for (int i = 0; i < got; i++)
			expect(h[i], n++);
		if (got > 0)
			mc_ring_advance(&e, (uint64_t)got);
	}
}

static void produce_ours(struct mc_ring *ring, size_t burst)
{
	struct mc_ring_end e;
	uint64_t h[BURST_MAX];

	mc_ring_attach_producer(&e, ring, SLOTS);
	for (uint64_t n = 1; n <= ITEMS; n += burst) {
		for (size_t i = 0; i < burst; i++)
			h[i] = n + i;
		while ((burst == 1 ? mc_ring_push(&e, n) : mc_ring_push_burst(&e, h, burst)) < 0)
			;
	}
}

/* ck_ring has no burst calls: its peer moves the same bursts one by one. */
static void consume_ck(struct ck_shared *s)
{
	for (uint64_t n = 1; n <= ITEMS;) {
		void *p;

		if (ck_ring_dequeue_spsc(&s->ring, (ck_ring_buffer_t *)s->buffer, &p))
			expect((uint64_t)p, n++);
	}
}

static void produce_ck(struct ck_shared *s)
{
	for (uint64_t n = 1; n <= ITEMS; n++)
		while (!ck_ring_enqueue_spsc(&s->ring, (ck_ring_buffer_t *)s->buffer, (void *)n))
			;
}

static void consume_rte(struct rte_ring *r, unsigned burst)
{
	void *h[BURST_MAX];

	for (uint64_t n = 1; n <= ITEMS;) {
		unsigned got = rte_ring_sc_dequeue_burst(r, h, burst, NULL);

		for (unsigned i = 0; i < got; i++)
			expect((uint64_t)h[i], n++);
	}
}

static void produce_rte(struct rte_ring *r, unsigned burst)
{
	void *h[BURST_MAX];

	for (uint64_t n = 1; n <= ITEMS; n += burst) {
		for (unsigned i = 0; i < burst; i++)
			h[i] = (void *)(n + i);
		while (!rte_ring_sp_enqueue_bulk(r, h, burst, NULL))
			;
	}
}

struct rings {
	struct mc_ring *ours;
	struct ck_shared *ck;
	struct rte_ring *rte;
};

static void run_side(struct rings *r, enum kind kind, unsigned burst, bool producer)
{
	if (kind == OURS)
		(producer ? produce_ours : consume_ours)(r->ours, burst);
	else if (kind == RTE)
		(producer ? produce_rte : consume_rte)(r->rte, burst);
	else
		(producer ? produce_ck : consume_ck)(r->ck);
}

static double one_run(enum kind kind, unsigned burst)
{
	ssize_t rte_size = rte_ring_get_memsize(SLOTS);
	struct rings r = {.ours = shared(mc_ring_size(SLOTS)), .ck = shared(sizeof(*r.ck))};
	uint64_t t;
	int status;
	pid_t pid;

	if (rte_size < 0)
		exit(1);
	r.rte = shared((size_t)rte_size);
	mc_ring_init(r.ours, SLOTS);
	ck_ring_init(&r.ck->ring, SLOTS);
	if (rte_ring_init(r.rte, "bench", SLOTS, RING_F_SP_ENQ | RING_F_SC_DEQ) < 0)
		exit(1);
	t = mc_now_ns();
	pid = fork();
	if (pid == 0) {
		pin(1);
		run_side(&r, kind, burst, false);
		_exit(0);
	}
	pin(0);
	run_side(&r, kind, burst, true);
	if (waitpid(pid, &status, 0) != pid || status)
		exit(1);
	t = mc_now_ns() - t;
	munmap(r.ours, mc_ring_size(SLOTS));
	munmap(r.ck, sizeof(*r.ck));
	munmap(r.rte, (size_t)rte_size);
	return (double)t / ITEMS;
}

int main(void)
{
	static const unsigned bursts[] = {1, BURST_MAX};
	double ns[2][KINDS][RUNS];

	for (int i = 0; i < RUNS; i++)
		for (int b = 0; b < 2; b++)
			for (int k = 0; k < KINDS; k++)
				ns[b][k][i] = one_run((enum kind)k, bursts[b]);
	printf("{");
	for (int b = 0; b < 2; b++) {
		printf("%s\"%u\":{", b ? "," : "", bursts[b]);
		for (int k = 0; k < KINDS; k++) {
			printf("%s\"%s\":[", k ? "," : "", names[k]);
			for (int i = 0; i < RUNS; i++)
				printf("%s%.3f", i ? "," : "", ns[b][k][i]);
			printf("]");
		}
		printf("}");
	}
	printf("}\n");
	return 0;
}
