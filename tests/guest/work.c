/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs in the guest: work whose speed is read from outside.
 *
 *   work cpu            computes
 *   work mem MIB        writes through MIB, over and over
 *   work pages MIB MS   writes a word into each page of MIB, once and evenly in MS
 *   work fill MIB KIND  fills MIB once with KIND (random, zero), then waits
 *   work echo           waits
 *
 * Every UDP datagram on port 7003 is answered with its own bytes, a blank and the number of
 * rounds done; what is sent while a fill goes on waits for its end.
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#define PAGE  4096
#define SLICE 64 /* pages between two looks at the clock */

struct work {
	int sock;
	uint64_t rounds;
	uint8_t *mem;
	size_t bytes;
};

static void answer(struct work *w, int flags)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	char buf[128];
	ssize_t n;

	while ((n = recvfrom(w->sock, buf, 64, flags, (struct sockaddr *)&from, &len)) >= 0) {
		n += snprintf(buf + n, sizeof(buf) - 64, " %" PRIu64, w->rounds);
		sendto(w->sock, buf, (size_t)n, 0, (struct sockaddr *)&from, len);
		len = sizeof(from);
	}
}

static void get_memory(struct work *w, const char *mib)
{
	w->bytes = strtoul(mib, NULL, 10) << 20;
	w->mem = mmap(NULL, w->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (w->mem == MAP_FAILED || !w->bytes) {
		perror("work: memory");
		exit(1);
	}
}

static void cpu(struct work *w)
{
	uint64_t x = 1;

	for (;; w->rounds++) {
		for (int i = 0; i < 20000; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		if (!x) /* never: the result is needed */
			exit(1);
		answer(w, MSG_DONTWAIT);
	}
}

static void mem(struct work *w)
{
	for (;; w->rounds++) {
		for (size_t i = 0; i < w->bytes; i += 8)
			*(uint64_t *)(w->mem + i) = w->rounds + i;
		answer(w, MSG_DONTWAIT);
	}
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void pages(struct work *w, uint64_t period)
{
	size_t n = w->bytes / PAGE;
	uint64_t start = now_ns();

	memset(w->mem, 1, w->bytes);
	for (uint64_t done = 0;; done += SLICE) {
		uint64_t due = start + done * period / n, now = now_ns();
		struct timespec ts = {.tv_nsec = due > now ? (long)(due - now) : 0};

		if (ts.tv_nsec > 200000)
			nanosleep(&ts, NULL);
		for (size_t i = 0; i < SLICE; i++)
			*(uint64_t *)(w->mem + (done + i) % n * PAGE) = done;
		w->rounds = done / n;
		answer(w, MSG_DONTWAIT);
	}
}

static void fill(struct work *w, const char *kind)
{
	uint64_t x = now_ns() | 1;

	if (!strcmp(kind, "zero")) {
		memset(w->mem, 0, w->bytes);
	} else {
		for (size_t i = 0; i < w->bytes; i += 8) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			*(uint64_t *)(w->mem + i) = x;
		}
	}
	w->rounds = 1;
	printf("work: filled\n");
}

int main(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(7003)};
	struct work w = {.sock = socket(AF_INET, SOCK_DGRAM, 0)};

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 2 || w.sock < 0 || bind(w.sock, (struct sockaddr *)&a, sizeof(a)) < 0) {
		fprintf(stderr, "work: usage, or port 7003 is taken\n");
		return 2;
	}
	if (argc > 2)
		get_memory(&w, argv[2]);
	if (!strcmp(argv[1], "cpu"))
		cpu(&w);
	if (!strcmp(argv[1], "mem") && w.mem)
		mem(&w);
	if (!strcmp(argv[1], "pages") && w.mem && argc == 4)
		pages(&w, strtoul(argv[3], NULL, 10) * 1000000);
	if (!strcmp(argv[1], "fill") && w.mem && argc == 4)
		fill(&w, argv[3]);
	else if (strcmp(argv[1], "echo") != 0)
		return 2;
	for (;;)
		answer(&w, 0);
}
