/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "http.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../ipc/util.h"

/* True once @events may be done without waiting; false at @end (ns). */
static bool ready(int fd, short events, uint64_t end)
{
	struct pollfd p = {.fd = fd, .events = events};

	for (;;) {
		uint64_t now = mc_now_ns();
		int r = now < end ? poll(&p, 1, (int)((end - now) / MC_NS_PER_MS) + 1) : 0;

		if (r >= 0 || errno != EINTR)
			return r > 0;
	}
}

int http_read(int fd, int ms, char *buf, size_t len)
{
	uint64_t end = mc_now_ns() + (uint64_t)ms * MC_NS_PER_MS;
	size_t n = 0;

	while (n < len - 1) {
		ssize_t got;

		if (!ready(fd, POLLIN, end))
			return -ETIMEDOUT;
		got = recv(fd, buf + n, len - 1 - n, MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (got <= 0)
			return -EIO;
		n += (size_t)got;
		buf[n] = '\0';
		if (strstr(buf, "\r\n\r\n"))
			return 0;
	}
	return -EMSGSIZE;
}

static int send_all(int fd, uint64_t end, const char *buf, size_t len)
{
	while (len) {
		ssize_t n;

		if (!ready(fd, POLLOUT, end))
			return -ETIMEDOUT;
		n = send(fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			return -EIO;
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

int http_reply(int fd, int ms, const char *status, const char *type, const char *body)
{
	uint64_t end = mc_now_ns() + (uint64_t)ms * MC_NS_PER_MS;
	char head[256];
	int n = snprintf(head, sizeof(head),
	                 "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
	                 "Connection: close\r\n\r\n",
	                 status, type, strlen(body));
	int r = send_all(fd, end, head, (size_t)n);

	return r < 0 ? r : send_all(fd, end, body, strlen(body));
}

int http_listen(const char *where)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
	                         .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE},
	                *list = NULL;
	const char *colon = strrchr(where, ':');
	int fd, one = 1, n = colon ? (int)(colon - where) : 0;
	char host[64];

	if (n >= 2 && where[0] == '[' && where[n - 1] == ']') {
		where++;
		n -= 2;
	}
	if (!n || n >= (int)sizeof(host))
		return -EINVAL;
	snprintf(host, sizeof(host), "%.*s", n, where);
	if (getaddrinfo(host, colon + 1, &hints, &list) != 0)
		return -EINVAL;
	fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd >= 0 && (bind(fd, list->ai_addr, list->ai_addrlen) < 0 || listen(fd, 16) < 0))
		mc_closep(&fd);
	freeaddrinfo(list);
	return fd >= 0 ? fd : -errno;
}
