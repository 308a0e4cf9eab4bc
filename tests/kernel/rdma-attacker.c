/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A primary that breaks the rules of the link by RDMA.
 *
 *   rdma-attacker ADDR PORT UNIT TIMEOUT_MS WHAT
 *
 * WHAT: token, version (the connection must be refused); rkey, outside, late (the request
 * must fail with an access error); slot, head, credit (the backup must close the link). Exit status
 * 0: the backup did as it must.  `late` sends one slab of the first copy as transport-end would
 * check it, then writes to it once more.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../ipc/util.h"
#include "../../ipc/wire-rdma.h"
#include "../../verbs/verbs.h"

#define TRY(x)                                                                                     \
	do {                                                                                       \
		int r_ = (x);                                                                      \
		if (r_ < 0) {                                                                      \
			fprintf(stderr, "%s: %s\n", #x, strerror(-r_));                            \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

struct attacker {
	const char *what;
	uint64_t unit, timeout;
	struct sockaddr_in to;
	struct mc_wire_rdma_offer offer;
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_mr *mr;
	uint8_t *buf; /* receives, then what is sent, then a slab */
	uint8_t *out, *slab;
	struct mc_rdma_credit credit[MC_RDMA_SLOTS];
	unsigned credits;
	bool greeted;
};

static const struct mc_term TERM = {.number = 4, .id = 99};

static void ask(struct attacker *a)
{
	struct mc_wire_rdma_ask ask = {.guest = "test"};
	struct mc_wire_header h;
	uint8_t buf[1024];
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&a->to, sizeof(a->to)) < 0)
		TRY(-errno);
	mc_wire_header_init(&h, MC_MSG_RDMA_ASK, &TERM, 0, sizeof(ask));
	h.checksum = mc_wire_checksum(&h, &ask, sizeof(ask), NULL, 0);
	memcpy(buf, &h, sizeof(h));
	memcpy(buf + sizeof(h), &ask, sizeof(ask));
	(void)!send(fd, buf, sizeof(h) + sizeof(ask), 0);
	if (recv(fd, buf, sizeof(h) + sizeof(a->offer), MSG_WAITALL) !=
	    (ssize_t)(sizeof(h) + sizeof(a->offer)))
		TRY(-EPROTO);
	memcpy(&a->offer, buf + sizeof(h), sizeof(a->offer));
	close(fd);
	if (!a->offer.port)
		TRY(-ENODEV);
}

/* The next event; exits unless it is @type. */
static struct verbs_event event(struct attacker *a, enum rdma_cm_event_type type)
{
	struct pollfd p = {.fd = a->channel->fd, .events = POLLIN};
	struct verbs_event e;

	(void)poll(&p, 1, 10000);
	if (verbs_next_event(a->channel, &e) != 1)
		TRY(-ETIMEDOUT);
	if (e.type != type) {
		fprintf(stderr, "%s instead of %s\n", rdma_event_str(e.type), rdma_event_str(type));
		exit(1);
	}
	return e;
}

static void post_recv(struct attacker *a, unsigned i)
{
	struct ibv_sge sge = {
	        .addr = (uintptr_t)a->buf + i * 32768, .length = 32768, .lkey = a->mr->lkey};
	struct ibv_recv_wr wr = {.wr_id = i, .sg_list = &sge, .num_sge = 1};

	TRY(verbs_post_recv(a->id->qp, &wr));
}

static void connect_rdma(struct attacker *a)
{
	const struct verbs_qp_size size = {.send = 16, .recv = 16, .sge = 1};
	struct mc_rdma_request q = {.magic = MC_RDMA_MAGIC,
	                            .version = MC_RDMA_VERSION,
	                            .token = {a->offer.token[0], a->offer.token[1]}};
	size_t len = 16 * 32768 + 65536 + a->unit;

	a->to.sin_port = htons((uint16_t)a->offer.port);
	TRY(verbs_channel_new(&a->channel));
	TRY(verbs_id_new(a->channel, &a->id));
	TRY(verbs_resolve_addr(a->id, NULL, (struct sockaddr *)&a->to, 2000));
	(void)event(a, RDMA_CM_EVENT_ADDR_RESOLVED);
	TRY(verbs_resolve_route(a->id, 2000));
	(void)event(a, RDMA_CM_EVENT_ROUTE_RESOLVED);
	TRY(verbs_pd_new(a->id->verbs, &a->pd));
	TRY(verbs_cq_new(a->id->verbs, 64, NULL, &a->cq));
	TRY(verbs_qp_new(a->id, a->pd, a->cq, &size));
	a->buf = calloc(1, len);
	a->out = a->buf + 16 * 32768;
	a->slab = a->out + 65536;
	TRY(verbs_mr_new(a->pd, a->buf, len, IBV_ACCESS_LOCAL_WRITE, &a->mr));
	for (unsigned i = 0; i < 16; i++)
		post_recv(a, i);
	if (strcmp(a->what, "version") == 0)
		q.version++;
	if (strcmp(a->what, "token") == 0)
		q.token[1] ^= 1;
	TRY(verbs_connect(a->id, &q, sizeof(q), 3));
	if (strcmp(a->what, "version") == 0 || strcmp(a->what, "token") == 0) {
		struct verbs_event e = event(a, RDMA_CM_EVENT_REJECTED);
		struct mc_rdma_refusal f;

		memcpy(&f, e.private_data, sizeof(f));
		if (f.magic != MC_RDMA_MAGIC || f.version != MC_RDMA_VERSION)
			TRY(-EPROTO);
		exit(0);
	}
	(void)event(a, RDMA_CM_EVENT_ESTABLISHED);
}

/* The next completion; 0, or how it failed. -ETIMEDOUT: none. */
static int completion(struct attacker *a, struct ibv_wc *wc)
{
	for (int i = 0; i < 5000; i++) {
		int n = verbs_poll(a->cq, 1, wc);

		TRY(n);
		if (n)
			return verbs_wc_error(wc);
		usleep(1000); /* the queue has no channel here: this is a test's peer */
	}
	return -ETIMEDOUT;
}

static void post_send(struct attacker *a, size_t len)
{
	struct ibv_sge sge = {
	        .addr = (uintptr_t)a->out, .length = (uint32_t)len, .lkey = a->mr->lkey};
	struct ibv_send_wr wr = {
	        .wr_id = 100, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND};

	TRY(verbs_post_send(a->id->qp, &wr));
}

static size_t head(struct attacker *a, uint16_t kind, uint32_t slot, const struct mc_wire_header *h,
                   const void *payload, size_t len)
{
	struct mc_rdma_head r = {.magic = MC_RDMA_MAGIC, .kind = kind, .slot = slot};

	memcpy(a->out, &r, sizeof(r));
	memcpy(a->out + sizeof(r), h, sizeof(*h));
	memcpy(a->out + sizeof(r) + sizeof(*h), payload, len);
	return sizeof(r) + sizeof(*h) + len;
}

static void hello(struct attacker *a)
{
	static struct mc_hello h;
	static uint8_t payload[MC_WIRE_HELLO_MAX];
	static const char text[] = "machine q35\nqemu 7.2\n";
	struct mc_wire_header wh;
	size_t n;

	strcpy(h.h.guest, "test");
	h.h.instance[0] = 7;
	h.h.slab_size = a->unit;
	h.h.failure_timeout_ms = (uint32_t)a->timeout;
	h.h.side = MC_SIDE_PRIMARY;
	h.h.blocks = 1;
	strcpy(h.block[0].name, "ram");
	h.block[0].size = 16 << 20;
	h.h.description = sizeof(text) - 1;
	memcpy(h.description, text, sizeof(text) - 1);
	n = mc_wire_hello_pack(&h, payload);
	mc_wire_header_init(&wh, MC_MSG_HELLO, &TERM, 0, (uint32_t)n);
	wh.checksum = mc_wire_checksum(&wh, payload, n, NULL, 0);
	post_send(a, head(a, MC_RDMA_MESSAGE, 0, &wh, payload, n));
}

/* Reads until the backup has lent a slab. */
static void wait_for_credit(struct attacker *a)
{
	while (!a->credits || !a->greeted) {
		struct ibv_wc wc;
		struct mc_rdma_head h;
		const uint8_t *p;

		TRY(completion(a, &wc));
		if (wc.wr_id >= 16)
			continue;
		p = a->buf + wc.wr_id * 32768;
		memcpy(&h, p, sizeof(h));
		a->greeted |= h.kind == MC_RDMA_MESSAGE;
		if (h.kind == MC_RDMA_CREDIT)
			memcpy(a->credit, p + sizeof(h), h.count * sizeof(a->credit[0]));
		a->credits += h.count;
		post_recv(a, (unsigned)wc.wr_id);
	}
}

static void request(struct attacker *a, uint64_t addr, uint32_t rkey, uint32_t len)
{
	struct ibv_sge sge = {.addr = (uintptr_t)a->slab, .length = len, .lkey = a->mr->lkey};
	struct ibv_send_wr wr = {.wr_id = 200,
	                         .sg_list = &sge,
	                         .num_sge = 1,
	                         .opcode = IBV_WR_RDMA_WRITE,
	                         .wr.rdma = {.remote_addr = addr, .rkey = rkey}};

	TRY(verbs_post_send(a->id->qp, &wr));
}

/* The content that transport-end expects of slab 0 of the first copy. */
static void fill(struct attacker *a)
{
	uint64_t s = 0x9e3779b97f4a7c15ULL ^ 0xc2b2ae3d27d4eb4fULL;

	for (uint64_t i = 0; i + 8 <= a->unit; i += 8) {
		s ^= s << 13;
		s ^= s >> 7;
		s ^= s << 17;
		memcpy(a->slab + i, &s, 8);
	}
}

static void send_slab(struct attacker *a, uint32_t slot)
{
	struct mc_wire_slab s = {.of_kind = 1, .bytes = a->unit};
	struct mc_wire_header h;

	mc_wire_header_init(&h, MC_MSG_SLAB, &TERM, 0, (uint32_t)(sizeof(s) + s.bytes));
	h.checksum = mc_wire_checksum(&h, &s, sizeof(s), a->slab, s.bytes);
	post_send(a, head(a, MC_RDMA_SLAB, slot, &h, &s, sizeof(s)));
}

/* Waits for the request 200 to end, whatever else comes. */
static int outcome(struct attacker *a)
{
	struct ibv_wc wc;
	int r;

	do
		r = completion(a, &wc);
	while (r != -ETIMEDOUT && wc.wr_id != 200);
	return r;
}

/* True when the backup ends the connection. */
static bool closed(struct attacker *a)
{
	struct pollfd p = {.fd = a->channel->fd, .events = POLLIN};
	struct verbs_event e;

	return poll(&p, 1, 10000) == 1 && verbs_next_event(a->channel, &e) == 1 &&
	       e.type == RDMA_CM_EVENT_DISCONNECTED;
}

static int attack(struct attacker *a)
{
	const struct mc_rdma_credit first = a->credit[0], *c = &first;
	struct mc_rdma_head h = {.magic = MC_RDMA_MAGIC, .kind = MC_RDMA_CREDIT, .count = 1};
	struct mc_rdma_credit twice[2] = {{.slot = 3}, {.slot = 3}};

	if (strcmp(a->what, "rkey") == 0)
		request(a, c->addr, c->rkey ^ 0x100, 4096);
	else if (strcmp(a->what, "outside") == 0)
		request(a, c->addr + a->unit - 4095, c->rkey, 4096);
	else if (strcmp(a->what, "late") == 0) {
		fill(a);
		request(a, c->addr, c->rkey, (uint32_t)a->unit);
		TRY(outcome(a));
		send_slab(a, c->slot);
		/* The backup has taken it once it has lent another one. */
		a->credits = 0;
		wait_for_credit(a);
		memset(a->slab, 0xee, a->unit);
		request(a, c->addr, c->rkey, 4096);
	} else {
		size_t n = sizeof(h);

		if (strcmp(a->what, "slot") == 0) {
			send_slab(a, 15);
			return closed(a) ? 0 : 1;
		}
		if (strcmp(a->what, "head") == 0)
			h.consumed = 1000;
		else
			h.count = 2;
		memcpy(a->out, &h, sizeof(h));
		memcpy(a->out + n, twice, sizeof(twice));
		post_send(a, n + h.count * sizeof(twice[0]));
		return closed(a) ? 0 : 1;
	}
	return outcome(a) == -EACCES ? 0 : 1;
}

int main(int argc, char **argv)
{
	struct attacker a = {.to = {.sin_family = AF_INET}};

	if (argc != 6 || inet_pton(AF_INET, argv[1], &a.to.sin_addr) != 1)
		return 2;
	a.to.sin_port = htons((uint16_t)atoi(argv[2]));
	a.unit = strtoull(argv[3], NULL, 10);
	a.timeout = strtoull(argv[4], NULL, 10);
	a.what = argv[5];
	ask(&a);
	connect_rdma(&a);
	hello(&a);
	wait_for_credit(&a);
	return attack(&a);
}
