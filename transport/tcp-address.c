/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Peers' addresses: connecting to one, and whether one is this machine. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend.h"

static int split(const char *peer, char *host, size_t host_len, char *port, size_t port_len)
{
	const char *colon = strrchr(peer, ':');
	size_t n = colon ? (size_t)(colon - peer) : strlen(peer);

	if (peer[0] == '[') {
		const char *end = strchr(peer, ']');

		if (!end)
			return -EINVAL;
		colon = end[1] == ':' ? end + 1 : NULL;
		peer++;
		n = (size_t)(end - peer);
	}
	if (!n || n >= host_len)
		return -EINVAL;
	memcpy(host, peer, n);
	host[n] = '\0';
	if (colon)
		snprintf(port, port_len, "%s", colon + 1);
	else
		snprintf(port, port_len, "%d", MC_DEFAULT_PORT);
	return 0;
}

int tcp_connect(const char *peer)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
	                         .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV},
	                *list = NULL;
	char host[256], port[16];
	int fd, r = split(peer, host, sizeof(host), port, sizeof(port));

	/* Numeric only: a name server's silence must not stop replication. */
	if (r < 0 || getaddrinfo(host, port, &hints, &list) != 0)
		return -EINVAL;
	fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		r = -errno;
	else if (connect(fd, list->ai_addr, list->ai_addrlen) < 0 && errno != EINPROGRESS)
		r = -errno;
	freeaddrinfo(list);
	if (r < 0 && fd >= 0)
		close(fd);
	return r < 0 ? r : fd;
}

static bool is_loopback(const struct sockaddr_storage *a)
{
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;

	if (a->ss_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
	if (a->ss_family != AF_INET6)
		return false;
	if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
		return v6->sin6_addr.s6_addr[12] == 127;
	return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

bool tcp_is_loopback(int fd)
{
	struct sockaddr_storage a = {0};
	socklen_t len = sizeof(a);

	return getpeername(fd, (struct sockaddr *)&a, &len) == 0 && is_loopback(&a);
}
