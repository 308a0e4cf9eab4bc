/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs in the guest: counts up in memory and tells the count to the world on every NIC, as
 * UDP broadcast over IPv4 (port 7002), as UDP to ff02::1 over IPv6 (port 7002) and in the
 * padding of an ARP request.  What the world has seen must never be taken back: after a
 * takeover the count goes on at or above the highest one that came out.
 *
 * usage: counter MICROSECONDS IF...
 */
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define IF_MAX 8
#define PORT   7002

struct nic {
	unsigned index;
	uint8_t mac[6];
	int v4, v6, raw;
};

struct message {
	char magic[4]; /* "MCNT" */
	uint32_t nic;
	uint64_t count;
};

static int fail(const char *what)
{
	perror(what);
	exit(1);
}

static void open_nic(struct nic *n, const char *name)
{
	struct ifreq ifr = {0};
	int on = 1;

	n->index = if_nametoindex(name);
	n->v4 = socket(AF_INET, SOCK_DGRAM, 0);
	n->v6 = socket(AF_INET6, SOCK_DGRAM, 0);
	n->raw = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ARP));
	if (!n->index || n->v4 < 0 || n->v6 < 0 || n->raw < 0)
		fail(name);
	strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(n->v4, SIOCGIFHWADDR, &ifr) < 0)
		fail("SIOCGIFHWADDR");
	memcpy(n->mac, ifr.ifr_hwaddr.sa_data, 6);
	if (setsockopt(n->v4, SOL_SOCKET, SO_BROADCAST, &on, sizeof(on)) < 0 ||
	    setsockopt(n->v4, SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)strlen(name)) < 0)
		fail("SO_BINDTODEVICE");
}

static void send_arp(const struct nic *n, const struct message *m)
{
	struct {
		struct ether_header eth;
		struct ether_arp arp;
		struct message m;
		uint8_t pad[2];
	} __attribute__((packed)) f = {0};
	struct sockaddr_ll to = {.sll_family = AF_PACKET,
				 .sll_ifindex = (int)n->index,
				 .sll_halen = 6,
				 .sll_addr = {255, 255, 255, 255, 255, 255}};

	memset(f.eth.ether_dhost, 255, 6);
	memcpy(f.eth.ether_shost, n->mac, 6);
	f.eth.ether_type = htons(ETHERTYPE_ARP);
	f.arp.ea_hdr.ar_hrd = htons(ARPHRD_ETHER);
	f.arp.ea_hdr.ar_pro = htons(ETHERTYPE_IP);
	f.arp.ea_hdr.ar_hln = 6;
	f.arp.ea_hdr.ar_pln = 4;
	f.arp.ea_hdr.ar_op = htons(ARPOP_REQUEST);
	memcpy(f.arp.arp_sha, n->mac, 6);
	f.m = *m;
	sendto(n->raw, &f, sizeof(f), 0, (struct sockaddr *)&to, sizeof(to));
}

static void tell(const struct nic *n, const struct message *m)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET,
				 .sin_port = htons(PORT),
				 .sin_addr.s_addr = htonl(INADDR_BROADCAST)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
				  .sin6_port = htons(PORT),
				  .sin6_scope_id = n->index};

	v6.sin6_addr.s6_addr[0] = 0xff;
	v6.sin6_addr.s6_addr[1] = 2;
	v6.sin6_addr.s6_addr[15] = 1;
	sendto(n->v4, m, sizeof(*m), 0, (struct sockaddr *)&v4, sizeof(v4));
	sendto(n->v6, m, sizeof(*m), 0, (struct sockaddr *)&v6, sizeof(v6));
	send_arp(n, m);
}

int main(int argc, char **argv)
{
	struct nic nic[IF_MAX];
	struct message m = {.magic = "MCNT"};
	struct timespec gap = {0};
	int n = argc - 2;

	if (n < 1 || n > IF_MAX) {
		fprintf(stderr, "usage: counter MICROSECONDS IF...\n");
		return 2;
	}
	gap.tv_nsec = strtol(argv[1], NULL, 10) * 1000;
	for (int i = 0; i < n; i++)
		open_nic(&nic[i], argv[i + 2]);
	for (;;) {
		m.count++;
		for (int i = 0; i < n; i++) {
			m.nic = (uint32_t)i;
			tell(&nic[i], &m);
		}
		nanosleep(&gap, NULL);
	}
}
