/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The option peer, as the transport will understand it. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "../ipc/wire.h"
#include "options.h"

static bool is_port(const char *s)
{
	size_t n = strlen(s);

	return n && n <= 5 && strspn(s, "0123456789") == n && atoi(s) > 0 && atoi(s) <= UINT16_MAX;
}

int options_peer_check(const char *v)
{
	char default_port[8];
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
	                         .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV},
	                *list = NULL;
	bool v6 = v[0] == '[';
	const char *end = v6 ? strchr(v, ']') : strrchr(v, ':'), *port = default_port;
	char host[128];
	size_t n;

	snprintf(default_port, sizeof(default_port), "%d", MC_DEFAULT_PORT);
	if (v6 && !end)
		return -EINVAL;
	n = end ? (size_t)(end - v) - v6 : strlen(v);
	end = end ? end + v6 : "";
	if (!n || n >= sizeof(host) || (*end && *end != ':'))
		return -EINVAL;
	memcpy(host, v + v6, n);
	host[n] = '\0';
	if (*end)
		port = end + 1;
	if (!is_port(port) || getaddrinfo(host, port, &hints, &list) != 0)
		return -EINVAL;
	freeaddrinfo(list);
	return 0;
}
