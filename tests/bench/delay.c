/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Latency of UDP requests to a server that sends back what it gets, by this host's clock:
 *
 *   delay open ADDR PORT PER_SECOND SECONDS   requests at random (Poisson) times, whatever the
 *                                             answers do
 *   delay closed ADDR PORT SECONDS            the next request follows the answer
 *
 * Prints {"sent": N, "ms": [...]}, the latency of each request that was answered.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../../ipc/util.h"

#define LATE_NS (2 * MC_NS_PER_S) /* after the last request */

struct request {
	uint64_t magic, number, sent;
};
#define MAGIC 0x79616c6564636d00ULL

struct client {
	int fd;
	uint64_t sent, answered;
	struct sockaddr_in to;
};

static void send_one(struct client *c)
{
	struct request r = {.magic = MAGIC, .number = c->sent++, .sent = mc_now_ns()};

	if (sendto(c->fd, &r, sizeof(r), 0, (struct sockaddr *)&c->to, sizeof(c->to)) < 0)
		perror("delay: send");
}

/* Waits until @until for answers; true when one came. */
static bool take_answer(struct client *c, uint64_t until)
{
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	uint64_t now = mc_now_ns();
	uint64_t left = until > now ? until - now : 0;
	struct timespec ts = {.tv_sec = (time_t)(left / MC_NS_PER_S),
	                      .tv_nsec = (long)(left % MC_NS_PER_S)};
	char buf[256];
	struct request r;
	ssize_t n;

	if (ppoll(&p, 1, &ts, NULL) <= 0)
		return false;
	now = mc_now_ns();
	n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT);
	if (n < (ssize_t)sizeof(r))
		return false;
	memcpy(&r, buf, sizeof(r));
	if (r.magic != MAGIC || r.sent > now)
		return false;
	printf("%s%.4f", c->answered++ ? "," : "", (double)(now - r.sent) / 1e6);
	return true;
}

static void run_open(struct client *c, double rate, uint64_t end)
{
	uint64_t due = mc_now_ns();

	srand48(1);
	while (due < end) {
		if (mc_now_ns() >= due) {
			send_one(c);
			due += (uint64_t)(-log(1 - drand48()) / rate * 1e9);
		} else {
			(void)take_answer(c, due);
		}
	}
	end += LATE_NS;
	while (c->answered < c->sent && mc_now_ns() < end)
		(void)take_answer(c, end);
}

static void run_closed(struct client *c, uint64_t end)
{
	while (mc_now_ns() < end) {
		send_one(c);
		(void)take_answer(c, mc_now_ns() + MC_NS_PER_S);
	}
}

int main(int argc, char **argv)
{
	struct client c = {.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
	bool open_loop = argc == 6 && !strcmp(argv[1], "open");
	uint64_t now = mc_now_ns();

	if ((!open_loop && (argc != 5 || strcmp(argv[1], "closed") != 0)) || c.fd < 0) {
		fprintf(stderr,
		        "usage: %s open ADDR PORT PER_SECOND SECONDS | closed ADDR PORT "
		        "SECONDS\n",
		        argv[0]);
		return 2;
	}
	c.to = (struct sockaddr_in){.sin_family = AF_INET,
	                            .sin_port = htons((uint16_t)atoi(argv[3]))};
	if (inet_pton(AF_INET, argv[2], &c.to.sin_addr) != 1)
		return 2;
	printf("{\"ms\":[");
	if (open_loop)
		run_open(&c, atof(argv[4]), now + (uint64_t)(atof(argv[5]) * 1e9));
	else
		run_closed(&c, now + (uint64_t)(atof(argv[4]) * 1e9));
	printf("],\"sent\":%llu}\n", (unsigned long long)c.sent);
	close(c.fd);
	return 0;
}
