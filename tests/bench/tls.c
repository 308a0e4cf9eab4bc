/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A link between two processes over TCP on loopback, as mc-transport has it: plain, and with TLS.
 *
 * usage: bench-tls KIND DIR BYTES     KIND: plain, x509 (DIR as tls-dir), psk (DIR/keys.psk)
 *
 * Prints {"gb_s": [..], "rtt_us": [..], "connect_ms": [..]}: slabs of 1 MiB one way, a PING's
 * way there and back on a quiet link, and a connection from connect() to the first answer.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ipc/creds.h"
#include "../../ipc/util.h"
#include "../../transport/backend.h"
#include "../../transport/tls.h"

#define SLAB  (1U << 20)
#define RUNS  5
#define PINGS 500
#define OPENS 20

static const struct mc_term TERM = {.number = 1, .id = 1};

struct end {
	sd_event *event;
	struct mc_config cfg;
	struct tls_creds *creds;
	struct link *link;
	uint8_t *slab;
	uint64_t pongs;
	bool gone;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int on_message(void *ctx, struct link *l, const struct mc_wire_header *h,
                      const void *payload, uint64_t slab)
{
	struct end *e = ctx;

	(void)slab;
	if (h->type == MC_MSG_PING)
		return link_send(l, MC_MSG_PONG, 0, payload, h->length);
	e->pongs += h->type == MC_MSG_PONG;
	return 0;
}

static uint64_t on_lend(void *ctx, struct link *l, void **data)
{
	struct end *e = ctx;

	(void)l;
	*data = e->slab;
	return 1;
}

static void on_slab(void *ctx, struct link *l, uint64_t slab)
{
	(void)ctx, (void)l, (void)slab;
}

static void on_closed(void *ctx, struct link *l, int error, const char *why)
{
	struct end *e = ctx;

	(void)l;
	if (error != -ECONNRESET)
		fprintf(stderr, "closed: %s: %s\n", why, strerror(-error));
	e->gone = true;
}

static const struct link_events events = {.message = on_message,
                                          .lend = on_lend,
                                          .give_back = on_slab,
                                          .slab_sent = on_slab,
                                          .closed = on_closed};

static void read_part(struct mc_creds *c, enum mc_creds_part part, const char *dir,
                      const char *name)
{
	char path[512];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "re");
	c->part[part] = calloc(1, 65536);
	if (!f || !c->part[part])
		die(path);
	c->len[part] = fread(c->part[part], 1, 65535, f);
	fclose(f);
}

static void load(struct end *e, enum mc_side side, const char *kind, const char *dir)
{
	const bool client = side == MC_SIDE_PRIMARY;
	struct mc_creds c = {0};
	char why[MC_WHY_MAX];
	int fd;

	mc_config_defaults(&e->cfg);
	e->cfg.side = side;
	strcpy(e->cfg.guest, "vm");
	if (strcmp(kind, "plain") == 0)
		return;
	e->cfg.tls = strcmp(kind, "psk") == 0 ? MC_TLS_PSK : MC_TLS_X509;
	if (e->cfg.tls == MC_TLS_PSK) {
		read_part(&c, MC_CREDS_PSK, dir, "keys.psk");
	} else {
		read_part(&c, MC_CREDS_CA, dir, "ca-cert.pem");
		read_part(&c, MC_CREDS_CERT, dir, client ? "client-cert.pem" : "server-cert.pem");
		read_part(&c, MC_CREDS_KEY, dir, client ? "client-key.pem" : "server-key.pem");
	}
	fd = mc_creds_pack(&c);
	if (tls_creds_new(&e->creds, fd, &e->cfg, why, sizeof(why)) < 0) {
		fprintf(stderr, "%s\n", why);
		exit(1);
	}
	close(fd);
	mc_creds_done(&c);
}

static void set_up(struct end *e, enum mc_side side, const char *kind, const char *dir)
{
	memset(e, 0, sizeof(*e));
	load(e, side, kind, dir);
	e->slab = malloc(SLAB);
	if (!e->slab || sd_event_new(&e->event) < 0)
		die("set-up");
	for (size_t i = 0; i < SLAB; i++)
		e->slab[i] = (uint8_t)(i * 2654435761U >> 13);
}

static void open_link(struct end *e, int fd, enum mc_side from)
{
	if (tcp_link_new(&e->link, e->event, fd, e->creds, &events, e) < 0)
		die("link");
	e->link->limits = (struct mc_wire_limits){.slab_size = SLAB, .from = from};
	e->link->term = TERM;
	e->gone = false;
}

/* Takes one connection after the other, answers PINGs, swallows slabs. */
static void serve(int listener, const char *kind, const char *dir)
{
	struct end e;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	set_up(&e, MC_SIDE_BACKUP, kind, dir);
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0)
			die("accept");
		open_link(&e, fd, MC_SIDE_PRIMARY);
		while (!e.gone)
			(void)sd_event_run(e.event, UINT64_MAX);
		e.link = link_free(e.link);
	}
}

static void ping(struct end *e)
{
	struct mc_wire_ping p = {.stamp = mc_now_ns()};
	uint64_t want = e->pongs + 1;

	(void)link_send(e->link, MC_MSG_PING, 0, &p, sizeof(p));
	while (e->pongs < want) {
		if (e->gone)
			exit(1);
		(void)sd_event_run(e->event, UINT64_MAX);
	}
}

static void connect_link(struct end *e, int port)
{
	char peer[32];
	int fd;

	snprintf(peer, sizeof(peer), "127.0.0.1:%d", port);
	fd = tcp_connect(peer);
	if (fd < 0)
		die("connect");
	open_link(e, fd, MC_SIDE_BACKUP);
	ping(e);
}

/* GB/s of @bytes, until the last has been answered. */
static double push(struct end *e, uint64_t bytes)
{
	struct mc_wire_slab s = {.of_kind = 2, .bytes = SLAB};
	uint64_t began = mc_now_ns(), sum;

	for (uint64_t sent = 0; sent < bytes; sent += SLAB) {
		while (!link_has_room(e->link))
			(void)sd_event_run(e->event, UINT64_MAX);
		if (link_send_slab(e->link, 1, &s, e->slab, 1, &sum) < 0)
			exit(1);
		s.seq++;
	}
	ping(e);
	return (double)bytes / (double)(mc_now_ns() - began);
}

/* Both ends on one CPU, or wherever they may: waking another CPU takes as long as five PINGs. */
static void share_cpu(pid_t other, const cpu_set_t *all, bool one)
{
	cpu_set_t set = *all;

	for (int i = 0, n = 0; one && i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &set) && n++)
			CPU_CLR(i, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0 ||
	    sched_setaffinity(other, sizeof(set), &set) < 0)
		die("sched_setaffinity");
}

static void print(const char *name, const double *v, int n, const char *end)
{
	printf("\"%s\": [", name);
	for (int i = 0; i < n; i++)
		printf("%s%.6f", i ? ", " : "", v[i]);
	printf("]%s", end);
}

int main(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	double speed[RUNS], rtt[PINGS], open[OPENS];
	cpu_set_t all;
	uint64_t bytes;
	struct end e;
	pid_t other;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (argc != 4)
		return 2;
	bytes = strtoull(argv[3], NULL, 10);
	if (bind(listener, (struct sockaddr *)&a, len) < 0 || listen(listener, 8) < 0 ||
	    getsockname(listener, (struct sockaddr *)&a, &len) < 0 ||
	    sched_getaffinity(0, sizeof(all), &all) < 0)
		die("listen");
	other = fork();
	if (other == 0)
		serve(listener, argv[1], argv[2]);
	set_up(&e, MC_SIDE_PRIMARY, argv[1], argv[2]);
	share_cpu(other, &all, true);
	for (int i = 0; i < OPENS; i++) {
		uint64_t t = mc_now_ns();

		connect_link(&e, ntohs(a.sin_port));
		open[i] = (double)(mc_now_ns() - t) / 1e6;
		e.link = link_free(e.link);
	}
	connect_link(&e, ntohs(a.sin_port));
	for (int i = 0; i < PINGS; i++) {
		uint64_t t = mc_now_ns();

		ping(&e);
		rtt[i] = (double)(mc_now_ns() - t) / 1e3;
	}
	share_cpu(other, &all, false);
	for (int i = 0; i < RUNS; i++)
		speed[i] = push(&e, bytes);
	printf("{");
	print("gb_s", speed, RUNS, ", ");
	print("rtt_us", rtt, PINGS, ", ");
	print("connect_ms", open, OPENS, "}\n");
	return 0;
}
