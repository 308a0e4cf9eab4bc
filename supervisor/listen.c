/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The one port of a host: a connection is accepted here, its first bytes are looked at
 * (header and guest name of HELLO or TLS, left in the socket), and it goes to that guest's
 * transport.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "../ipc/wire.h"
#include "../ipc/worker-bus.h"
#include "supervisor.h"

#define CONNECTIONS_MAX 32
#define WORDS_BURST     20                /* lines in the log at once, */
#define WORDS_NS        (5 * MC_NS_PER_S) /* and then one every 5 s */
#define LIMIT_US        2000000
#define PEEK            (int)(MC_WIRE_HEADER + MC_NAME_MAX)

struct connection {
	struct manager *m;
	struct connection *next; /* an older one */
	int fd;
	char from[80]; /* its address, for messages */
	sd_event_source *io, *limit;
};

static void drop(struct connection *c)
{
	struct connection **p = &c->m->connections;

	while (*p && *p != c)
		p = &(*p)->next;
	if (*p) {
		*p = c->next;
		c->m->nconnections--;
	}
	sd_event_source_disable_unref(c->io);
	sd_event_source_disable_unref(c->limit);
	mc_closep(&c->fd);
	free(c);
}

/* Anybody can connect: that must not fill the journal. */
static void __attribute__((format(printf, 2, 3)))
say(const struct connection *c, const char *fmt, ...)
{
	struct manager *m = c->m;
	char text[MC_WHY_MAX];
	va_list ap;

	if (!rate_take(&m->port_words, WORDS_BURST, WORDS_NS, mc_now_ns())) {
		m->port_silent++;
		return;
	}
	if (m->port_silent)
		mc_warn("%llu more messages about connections to %s were left out",
		        (unsigned long long)m->port_silent, m->listen);
	m->port_silent = 0;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	mc_warn("a connection from %s to %s %s", c->from, m->listen, text);
}

/* Says why, as a transport would, and closes. */
static void refuse(struct connection *c, const struct mc_wire_header *h, const char *text)
{
	uint8_t buf[MC_WIRE_HEADER + sizeof(struct mc_wire_reason) + MC_WHY_MAX];
	struct mc_term term = {.number = h->term, .id = h->term_id};
	struct mc_wire_header out;
	size_t n = mc_wire_reason_pack(MC_REASON_REFUSED, text, buf + MC_WIRE_HEADER);

	mc_wire_header_init(&out, MC_MSG_END, &term, 0, (uint32_t)n);
	out.checksum = mc_wire_checksum(&out, buf + MC_WIRE_HEADER, n, NULL, 0);
	memcpy(buf, &out, sizeof(out));
	(void)send(c->fd, buf, MC_WIRE_HEADER + n, MSG_DONTWAIT | MSG_NOSIGNAL);
	say(c, "is refused: %s", text);
	/* What the peer sent is still unread: closing now could destroy our answer on its way. */
	shutdown(c->fd, SHUT_WR);
	while (recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
		;
	drop(c);
}

static int on_passed(sd_bus_message *m, void *userdata, sd_bus_error *e)
{
	(void)userdata;
	(void)e;
	if (sd_bus_message_is_method_error(m, NULL))
		mc_warn("a transport didn't take its connection: %s; the primary tries again",
		        sd_bus_message_get_error(m)->message);
	return 0;
}

static void hand_over(struct connection *c, const struct mc_wire_header *h, const char *name)
{
	struct guest *g = manager_find(c->m, name);
	char text[256];
	int r;

	if (!g || g->side != MC_SIDE_BACKUP) {
		snprintf(text, sizeof(text),
		         "no standby for guest '%.63s' on this host; run mcctl "
		         "standby there first",
		         name);
		refuse(c, h, text);
		return;
	}
	if (!g->child[MC_ROLE_TRANSPORT].bus) {
		drop(c); /* just starting again: so does the primary */
		return;
	}
	r = sd_bus_call_method_async(g->child[MC_ROLE_TRANSPORT].bus, NULL, NULL, MC_WORKER_PATH,
	                             MC_WORKER_IFACE, "Connection", on_passed, NULL, "h", c->fd);
	if (r < 0)
		mc_log_errno(r, "guest %s: can't pass a connection on", g->name);
	drop(c);
}

/* True when the header is that of a HELLO, or of an RDMA_ASK, which names the guest as well; else
 * the connection is gone, a peer of ours told why. */
static bool begins_with_hello(struct connection *c, const struct mc_wire_header *h)
{
	struct mc_wire_limits lim = {.from = MC_SIDE_PRIMARY, .slab_size = 1};
	char why[128];
	int r = mc_wire_header_check(h, &lim, why, sizeof(why));

	if (r == -EPROTONOSUPPORT) {
		refuse(c, h, why);
		return false;
	}
	if (r == 0 &&
	    (h->type == MC_MSG_HELLO || h->type == MC_MSG_TLS || h->type == MC_MSG_RDMA_ASK))
		return true;
	say(c, "is closed: %s",
	    r < 0 ? why
	          : "it begins with neither HELLO nor TLS, so it is no primary of this version; "
	            "what connects there?");
	drop(c);
	return false;
}

static int on_input(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct connection *c = userdata;
	uint8_t buf[PEEK];
	struct mc_wire_header h;
	char name[MC_NAME_MAX];
	ssize_t n = recv(fd, buf, sizeof(buf), MSG_PEEK | MSG_DONTWAIT);

	(void)s;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	/*
	 * A peek leaves the socket readable: the low-water mark keeps us from spinning, but not
	 * when the peer has closed and no more can come.
	 */
	if (n <= 0 || (n < PEEK && revents & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))) {
		drop(c);
		return 0;
	}
	if (n < (ssize_t)sizeof(h))
		return 0;
	memcpy(&h, buf, sizeof(h));
	if (!begins_with_hello(c, &h) || n < PEEK)
		return 0;
	memcpy(name, buf + MC_WIRE_HEADER, sizeof(name));
	if (!mc_terminated(name, sizeof(name)) || mc_guest_name_check(name) < 0) {
		refuse(c, &h, "HELLO without a guest's name: the primary is of another version");
		return 0;
	}
	hand_over(c, &h, name);
	return 0;
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	drop(userdata);
	return 0;
}

/*
 * A primary speaks at once: who has waited longest gives way, so that silent ones can't keep it
 * out.
 */
static void make_room(struct manager *m)
{
	struct connection *oldest = m->connections;

	if (m->nconnections < CONNECTIONS_MAX)
		return;
	while (oldest->next)
		oldest = oldest->next;
	say(oldest,
	    "is closed: it said nothing, and %d connections do; what connects there? Let only the "
	    "other hosts reach this port",
	    CONNECTIONS_MAX);
	drop(oldest);
}

static void name_peer(struct connection *c, const struct sockaddr_storage *a, socklen_t len)
{
	static const char v4[] = "::ffff:"; /* a socket for both kinds writes it before IPv4 */
	char host[64], port[8], *p = host;

	if (getnameinfo((const struct sockaddr *)a, len, host, sizeof(host), port, sizeof(port),
	                NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
		snprintf(c->from, sizeof(c->from), "an unknown address");
		return;
	}
	if (strchr(host, '.') && strncmp(host, v4, sizeof(v4) - 1) == 0)
		p += sizeof(v4) - 1;
	snprintf(c->from, sizeof(c->from), strchr(p, ':') ? "[%s]:%s" : "%s:%s", p, port);
}

static int on_accept(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct manager *m = userdata;
	struct sockaddr_storage a;
	socklen_t len = sizeof(a);
	int sock = accept4(fd, (struct sockaddr *)&a, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
	int low = PEEK;
	struct connection *c;

	(void)s;
	(void)revents;
	if (sock < 0)
		return 0;
	make_room(m);
	c = calloc(1, sizeof(*c));
	if (!c) {
		close(sock);
		return 0;
	}
	*c = (struct connection){.m = m, .fd = sock, .next = m->connections};
	name_peer(c, &a, len);
	m->connections = c;
	m->nconnections++;
	(void)setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low));
	if (sd_event_add_io(m->event, &c->io, sock, EPOLLIN | EPOLLRDHUP, on_input, c) < 0 ||
	    sd_event_add_time_relative(m->event, &c->limit, CLOCK_MONOTONIC, LIMIT_US, 0, on_limit,
	                               c) < 0)
		drop(c);
	return 0;
}

static int split(const char *text, char *host, size_t len, char *port, size_t port_len)
{
	const char *colon = strrchr(text, ':');
	size_t n;

	if (!colon)
		return -EINVAL;
	n = (size_t)(colon - text);
	if (n >= 2 && text[0] == '[' && text[n - 1] == ']') {
		text++;
		n -= 2;
	}
	if (n >= len)
		return -EINVAL;
	snprintf(host, len, "%.*s", (int)n, text);
	snprintf(port, port_len, "%s", colon + 1);
	return 0;
}

static int open_port(const char *text)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
	                         .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE},
	                *list = NULL;
	char host[128], port[16];
	int fd, one = 1, zero = 0, r = 0;

	if (split(text, host, sizeof(host), port, sizeof(port)) < 0 ||
	    getaddrinfo(host[0] ? host : NULL, port, &hints, &list) != 0)
		return -EINVAL;
	fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		freeaddrinfo(list);
		return -errno;
	}
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	if (bind(fd, list->ai_addr, list->ai_addrlen) < 0 || listen(fd, CONNECTIONS_MAX) < 0)
		r = -errno;
	freeaddrinfo(list);
	if (r < 0)
		close(fd);
	return r < 0 ? r : fd;
}

int listen_start(struct manager *m)
{
	int r;

	m->listen_fd = fdstore_take_port(m);
	if (m->listen_fd < 0)
		m->listen_fd = open_port(m->listen);
	if (m->listen_fd == -EINVAL)
		return mc_log_errno(
		        -EINVAL,
		        "--listen %s isn't ADDRESS:PORT; write 192.0.2.1:7911 or [::]:7911",
		        m->listen);
	if (m->listen_fd < 0)
		return mc_log_errno(m->listen_fd,
		                    "can't listen on %s (another supervisor there? then "
		                    "give this one its own --listen)",
		                    m->listen);
	fdstore_keep_port(m);
	r = sd_event_add_io(m->event, &m->listen_source, m->listen_fd, EPOLLIN, on_accept, m);
	if (r >= 0)
		r = sd_event_source_set_ratelimit(m->listen_source, ACCEPT_US, ACCEPT_BURST);
	return r < 0 ? mc_log_errno(r, "can't wait for primaries") : 0;
}

void listen_stop(struct manager *m)
{
	while (m->connections)
		drop(m->connections);
	m->listen_source = sd_event_source_disable_unref(m->listen_source);
	mc_closep(&m->listen_fd);
}
