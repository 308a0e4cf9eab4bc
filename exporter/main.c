/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-exporter: answers HTTP GET /metrics with the supervisor's Metrics().  It listens where
 * systemd's socket or --listen says, serves one connection at a time, and knows nothing else.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"

#define REQUEST_MAX 4096
#define CLIENT_MS   2000 /* to send its request, and to take the answer */
#define CALL_US     5000000ULL

struct exporter {
	const char *bus_address, *listen;
	sd_bus *bus;
	int fd;
};

static int connect_bus(struct exporter *x)
{
	int r;

	x->bus = sd_bus_flush_close_unref(x->bus);
	if (strcmp(x->bus_address, "system") == 0)
		return sd_bus_open_system(&x->bus);
	r = sd_bus_new(&x->bus);
	if (r >= 0)
		r = sd_bus_set_address(x->bus, x->bus_address);
	if (r >= 0)
		r = sd_bus_set_bus_client(x->bus, 1);
	return r < 0 ? r : sd_bus_start(x->bus);
}

/* The text, malloc'ed, or NULL with the reason logged. */
static char *get_metrics(struct exporter *x)
{
	sd_bus_error e = SD_BUS_ERROR_NULL;
	sd_bus_message *reply = NULL;
	const char *text = NULL;
	char *copy = NULL;
	int r = 0;

	if (!x->bus || sd_bus_is_open(x->bus) <= 0)
		r = connect_bus(x);
	if (r >= 0) {
		sd_bus_message *m = NULL;

		r = sd_bus_message_new_method_call(x->bus, &m, "org.microcheckpoint1",
		                                   "/org/microcheckpoint1",
		                                   "org.microcheckpoint1.Manager", "Metrics");
		if (r >= 0)
			r = sd_bus_call(x->bus, m, CALL_US, &e, &reply);
		sd_bus_message_unref(m);
	}
	if (r >= 0 && sd_bus_message_read(reply, "s", &text) > 0)
		copy = strdup(text);
	else
		mc_warn("mc-supervisor gives no metrics: %s; does it run, and may this user read "
		        "them? (mcctl doctor)",
		        e.message ? e.message : strerror(-r));
	sd_bus_message_unref(reply);
	sd_bus_error_free(&e);
	return copy;
}

static int send_all(int fd, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = send(fd, buf, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EIO;
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

static void reply(int fd, const char *status, const char *type, const char *body)
{
	char head[256];
	int n = snprintf(head, sizeof(head),
	                 "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
	                 "Connection: close\r\n\r\n",
	                 status, type, strlen(body));

	if (send_all(fd, head, (size_t)n) == 0)
		(void)send_all(fd, body, strlen(body));
}

/* Reads until the empty line. True when all of it came in time. */
static bool read_request(int fd, char *buf, size_t len)
{
	uint64_t end = mc_now_ns() + CLIENT_MS * MC_NS_PER_MS;
	size_t n = 0;

	while (n < len - 1 && mc_now_ns() < end) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		ssize_t got = poll(&p, 1, CLIENT_MS) > 0 ? recv(fd, buf + n, len - 1 - n, 0) : -1;

		if (got <= 0)
			return false;
		n += (size_t)got;
		buf[n] = '\0';
		if (strstr(buf, "\r\n\r\n"))
			return true;
	}
	return false;
}

static void serve(struct exporter *x, int fd)
{
	struct timeval limit = {.tv_sec = CLIENT_MS / 1000};
	char buf[REQUEST_MAX], mc_autofree *text = NULL;

	(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (!read_request(fd, buf, sizeof(buf)))
		return;
	if (strncmp(buf, "GET ", 4) != 0) {
		reply(fd, "405 Method Not Allowed", "text/plain", "only GET\n");
	} else if (strncmp(buf + 4, "/metrics ", 9) != 0) {
		reply(fd, "404 Not Found", "text/plain", "metrics are at /metrics\n");
	} else {
		text = get_metrics(x);
		if (text)
			reply(fd, "200 OK", "text/plain; version=0.0.4", text);
		else
			reply(fd, "503 Service Unavailable", "text/plain",
			      "mc-supervisor gives no answer; systemctl status mc-supervisor\n");
	}
}

static int open_port(const char *where)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
	                         .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE},
	                *list = NULL;
	char host[64];
	const char *colon = strrchr(where, ':');
	int fd, one = 1;

	if (!colon || (size_t)(colon - where) >= sizeof(host))
		return -EINVAL;
	snprintf(host, sizeof(host), "%.*s", (int)(colon - where), where);
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

static int parse(int argc, char **argv, struct exporter *x)
{
	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "--bus=", 6) == 0)
			x->bus_address = argv[i] + 6;
		else if (strncmp(argv[i], "--listen=", 9) == 0)
			x->listen = argv[i] + 9;
		else
			return -EINVAL;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct exporter x = {.bus_address = "system", .listen = "127.0.0.1:9817"};

	if (parse(argc, argv, &x) < 0) {
		fprintf(stderr,
		        "usage: mc-exporter [--bus=system|ADDRESS] [--listen=ADDRESS:PORT]\n");
		return 2;
	}
	mc_log_setup("mc-exporter", NULL, LOG_INFO);
	signal(SIGPIPE, SIG_IGN);
	x.fd = sd_listen_fds(1) == 1 ? SD_LISTEN_FDS_START : open_port(x.listen);
	if (x.fd < 0) {
		mc_log_errno(x.fd, "can't listen on %s", x.listen);
		return 1;
	}
	(void)sd_notify(0, "READY=1");
	for (;;) {
		int fd = accept4(x.fd, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0 && errno != EINTR && errno != ECONNABORTED) {
			mc_log_errno(-errno, "can't take a connection on %s", x.listen);
			return 1;
		}
		if (fd >= 0) {
			serve(&x, fd);
			(void)shutdown(fd, SHUT_RDWR);
			close(fd);
		}
	}
}
