/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs in the guest: fills memory with a pattern made of generation and address, over and
 * over, and before it writes a word checks that the word holds the generation before.
 * A page that went back in time, or forward, or was lost, is a bad word.  Answers every
 * UDP datagram on port 7001 with "generation words-checked bad-words" so that a test can
 * read the result from outside.
 *
 * usage: memcheck MIB [MIB-PER-SECOND]
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#define WORDS_PER_STEP (16 * 1024)

struct check {
	uint64_t *mem;
	size_t words;
	uint64_t generation;
	uint64_t checked;
	uint64_t bad;
	int sock;
};

static uint64_t pattern(uint64_t generation, size_t i)
{
	uint64_t x = generation * 0x9e3779b97f4a7c15ULL + i;

	x ^= x >> 31;
	return x * 0xbf58476d1ce4e5b9ULL;
}

static int open_socket(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(7001)};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		perror("memcheck: port 7001");
		exit(1);
	}
	return fd;
}

static void answer(struct check *c)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	char buf[64];
	int n;

	while (recvfrom(c->sock, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len) >= 0) {
		n = snprintf(buf, sizeof(buf), "%" PRIu64 " %" PRIu64 " %" PRIu64, c->generation,
			     c->checked, c->bad);
		sendto(c->sock, buf, (size_t)n, 0, (struct sockaddr *)&from, len);
		len = sizeof(from);
	}
}

/* Verifies and rewrites [from, to). */
static void step(struct check *c, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++) {
		if (c->generation > 1 && c->mem[i] != pattern(c->generation - 1, i)) {
			if (c->bad++ < 8)
				printf("memcheck: generation %" PRIu64 " word %zu: %" PRIx64 "\n",
				       c->generation, i, c->mem[i]);
		}
		c->mem[i] = pattern(c->generation, i);
	}
	if (c->generation > 1)
		c->checked += to - from;
}

static void pause_for(size_t words, unsigned long mib_per_s)
{
	double s = (double)words * 8 / (1 << 20) / (double)mib_per_s;
	struct timespec ts = {.tv_sec = (time_t)s, .tv_nsec = (long)((s - (double)(time_t)s) * 1e9)};

	nanosleep(&ts, NULL);
}

int main(int argc, char **argv)
{
	struct check c = {0};
	unsigned long rate;

	if (argc < 2) {
		fprintf(stderr, "usage: memcheck MIB [MIB-PER-SECOND]\n");
		return 2;
	}
	c.words = strtoul(argv[1], NULL, 10) << 17;
	rate = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
	c.mem = mmap(NULL, c.words * 8, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (c.mem == MAP_FAILED || !c.words) {
		perror("memcheck: memory");
		return 1;
	}
	c.sock = open_socket();
	for (c.generation = 1;; c.generation++) {
		for (size_t i = 0; i < c.words; i += WORDS_PER_STEP) {
			size_t to = i + WORDS_PER_STEP < c.words ? i + WORDS_PER_STEP : c.words;

			step(&c, i, to);
			answer(&c);
			if (rate)
				pause_for(to - i, rate);
		}
	}
}
