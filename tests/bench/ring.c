/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Handles through a ring between two pinned processes, ours beside ck_ring, bursts of 1 and
 * 32, contents checked.  Prints one JSON object: ns a handle, the median of several runs each.
 */
#include <ck_ring.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "../../ipc/ring.h"
#include "../../ipc/util.h"

#define SLOTS 1024
#define ITEMS (20UL * 1000 * 1000)
#define RUNS  5

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
	uint64_t h[32];

	mc_ring_attach_consumer(&e, ring, SLOTS);
	for (uint64_t n = 1; n <= ITEMS;) {
		int got = mc_ring_peek_burst(&e, h, burst);

		for (int i = 0; i < got; i++)
			expect(h[i], n++);
		if (got > 0)
			mc_ring_advance(&e, (uint64_t)got);
	}
}

static void produce_ours(struct mc_ring *ring, size_t burst)
{
	struct mc_ring_end e;
	uint64_t h[32];

	mc_ring_attach_producer(&e, ring, SLOTS);
	for (uint64_t n = 1; n <= ITEMS; n += burst) {
		for (size_t i = 0; i < burst; i++)
			h[i] = n + i;
		while (mc_ring_push_burst(&e, h, burst) < 0)
			;
	}
}

/* ck_ring has no burst calls: its peer moves the same bursts one by one. */
static void consume_ck(struct ck_shared *s)
{
	for (uint64_t n = 1; n <= ITEMS;) {
		void *p;

		if (ck_ring_dequeue_spsc(&s->ring, (ck_ring_buffer_t *)s->buffer,
					 &p))
			expect((uint64_t)p, n++);
	}
}

static void produce_ck(struct ck_shared *s)
{
	for (uint64_t n = 1; n <= ITEMS; n++)
		while (!ck_ring_enqueue_spsc(&s->ring, (ck_ring_buffer_t *)s->buffer, (void *)n))
			;
}

static double one_run(size_t burst, bool ck)
{
	struct mc_ring *ring = shared(mc_ring_size(SLOTS));
	struct ck_shared *s = shared(sizeof(*s));
	uint64_t t;
	int status;
	pid_t pid;

	mc_ring_init(ring, SLOTS);
	ck_ring_init(&s->ring, SLOTS);
	t = mc_now_ns();
	pid = fork();
	if (pid == 0) {
		pin(1);
		if (ck)
			consume_ck(s);
		else
			consume_ours(ring, burst);
		_exit(0);
	}
	pin(0);
	if (ck)
		produce_ck(s);
	else
		produce_ours(ring, burst);
	if (waitpid(pid, &status, 0) != pid || status)
		exit(1);
	munmap(ring, mc_ring_size(SLOTS));
	munmap(s, sizeof(*s));
	return (double)(mc_now_ns() - t) / ITEMS;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void measure(const char *name, size_t burst, const char *end)
{
	double ours[RUNS], ck[RUNS];

	for (int i = 0; i < RUNS; i++) {
		ours[i] = one_run(burst, false);
		ck[i] = one_run(burst, true);
	}
	qsort(ours, RUNS, sizeof(double), compare);
	qsort(ck, RUNS, sizeof(double), compare);
	printf("\"%s\": {\"value\": %.2f, \"unit\": \"ns\", \"peer\": \"ck_ring SPSC\", "
	       "\"peer_value\": %.2f, \"ratio\": %.3f, \"min\": %.2f, \"median\": %.2f, "
	       "\"max\": %.2f, \"n\": %d, \"how\": \"two pinned processes, burst %zu, contents "
	       "checked\"}%s\n",
	       name, ours[RUNS / 2], ck[RUNS / 2], ours[RUNS / 2] / ck[RUNS / 2], ours[0],
	       ours[RUNS / 2], ours[RUNS - 1], RUNS, burst, end);
}

int main(void)
{
	printf("{");
	measure("ring_spsc_1", 1, ",");
	measure("ring_spsc", 32, "}");
	return 0;
}
