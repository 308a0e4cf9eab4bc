/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Watches an interface for the frames of firmware.c and keeps in a file what it saw: number of
 * frames, first and last generation, and how often one was not above the one before.
 *
 * usage: frames INTERFACE FILE
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define TYPE 0x88b5

struct seen {
	uint32_t frames, first, last, back;
};

static void take(struct seen *s, uint32_t generation)
{
	if (!s->frames)
		s->first = generation;
	else if (generation <= s->last)
		s->back++;
	s->last = generation;
	s->frames++;
}

int main(int argc, char **argv)
{
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(TYPE)};
	int sock = socket(AF_PACKET, SOCK_RAW, htons(TYPE)), fd;
	unsigned char frame[256];
	struct seen *s;

	if (argc != 3)
		return 2;
	at.sll_ifindex = (int)if_nametoindex(argv[1]);
	fd = open(argv[2], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (sock < 0 || fd < 0 || ftruncate(fd, sizeof(*s)) < 0 ||
	    bind(sock, (struct sockaddr *)&at, sizeof(at)) < 0) {
		perror("frames");
		return 1;
	}
	s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (s == MAP_FAILED)
		return 1;
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		ssize_t n = recv(sock, frame, sizeof(frame), 0);
		uint32_t generation;

		if (n < 22 || memcmp(frame + 14, "MCFW", 4) != 0)
			continue;
		memcpy(&generation, frame + 18, 4);
		take(s, ntohl(generation));
	}
}
