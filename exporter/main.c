/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-exporter: answers HTTP GET /metrics with the supervisor's Metrics().  It listens where
 * systemd's socket or --listen says, serves one connection at a time, and knows nothing else.
 */
#include <errno.h>
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
#include "http.h"

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

static void serve(struct exporter *x, int fd)
{
	char buf[REQUEST_MAX], mc_autofree *text = NULL;

	if (http_read(fd, CLIENT_MS, buf, sizeof(buf)) < 0)
		return;
	if (strncmp(buf, "GET ", 4) != 0) {
		(void)http_reply(fd, CLIENT_MS, "405 Method Not Allowed", "text/plain",
		                 "only GET\n");
	} else if (strncmp(buf + 4, "/metrics ", 9) != 0) {
		(void)http_reply(fd, CLIENT_MS, "404 Not Found", "text/plain",
		                 "metrics are at /metrics\n");
	} else {
		text = get_metrics(x);
		if (text)
			(void)http_reply(fd, CLIENT_MS, "200 OK", "text/plain; version=0.0.4",
			                 text);
		else
			(void)http_reply(
			        fd, CLIENT_MS, "503 Service Unavailable", "text/plain",
			        "mc-supervisor gives no answer; systemctl status mc-supervisor\n");
	}
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
	x.fd = sd_listen_fds(1) == 1 ? SD_LISTEN_FDS_START : http_listen(x.listen);
	if (x.fd == -EINVAL) {
		mc_err("--listen=%s isn't ADDRESS:PORT; write 127.0.0.1:9817 or [::1]:9817",
		       x.listen);
		return 2;
	}
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
