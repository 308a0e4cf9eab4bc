/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A link by RDMA over the device of test-rdma-fake.h, and the ends that a test plays. */
#ifndef MC_TRANSPORT_TEST_RDMA_BENCH_H
#define MC_TRANSPORT_TEST_RDMA_BENCH_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "test-rdma-fake.h"

#define UNIT  (3ULL << 20)
#define SLABS 24

struct seen {
	int closed, error, messages, given_back, sent;
	char why[400];
	unsigned last_type;
	uint64_t last_slab;
	int mrs_at_message; /* registrations when the last message came */
	unsigned lend;      /* slabs that may still be lent */
	int answer;         /* of message() */
};

struct bench {
	sd_event *event;
	struct link *l;
	struct mc_pool pool;
	struct mc_pool_shm shm;
	struct seen s;
};

/* --- owner ----------------------------------------------------------------------------- */

static inline int on_message(void *ctx, struct link *l, const struct mc_wire_header *h,
                             const void *payload, uint64_t slab)
{
	struct seen *s = &((struct bench *)ctx)->s;

	(void)l;
	(void)payload;
	s->messages++;
	s->last_type = h->type;
	s->last_slab = slab;
	s->mrs_at_message = fake.mrs;
	return s->answer;
}

static inline uint64_t on_lend(void *ctx, struct link *l, void **data)
{
	struct bench *b = ctx;

	(void)l;
	if (!b->s.lend)
		return 0;
	*data = b->pool.data + --b->s.lend * UNIT;
	return b->s.lend + 1;
}

static inline void on_give_back(void *ctx, struct link *l, uint64_t slab)
{
	(void)l;
	(void)slab;
	((struct bench *)ctx)->s.given_back++;
}

static inline void on_slab_sent(void *ctx, struct link *l, uint64_t cookie)
{
	(void)l;
	(void)cookie;
	((struct bench *)ctx)->s.sent++;
}

static inline void on_closed(void *ctx, struct link *l, int error, const char *why)
{
	struct seen *s = &((struct bench *)ctx)->s;

	(void)l;
	s->closed++;
	s->error = error;
	snprintf(s->why, sizeof(s->why), "%s", why);
}

static const struct link_events events = {
        .message = on_message,
        .lend = on_lend,
        .give_back = on_give_back,
        .slab_sent = on_slab_sent,
        .closed = on_closed,
};

/* --- set-up ---------------------------------------------------------------------------- */

static inline struct bench *bench_new(void)
{
	struct bench *b = calloc(1, sizeof(*b));

	fake_reset();
	assert_true(sd_event_new(&b->event) >= 0);
	b->pool.shm = &b->shm;
	b->pool.unit = UNIT;
	b->pool.max = SLABS;
	b->pool.data = mmap(NULL, SLABS * UNIT, PROT_READ | PROT_WRITE,
	                    MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(b->pool.data != MAP_FAILED);
	return b;
}

static inline struct rdma_options options(const struct bench *b)
{
	return (struct rdma_options){.pool = &b->pool, .failure_timeout_ms = 500};
}

static inline void run(struct bench *b)
{
	while (sd_event_run(b->event, 0) > 0)
		;
}

/* Ends everything; what was made must be gone. */
static inline void bench_end(struct bench *b)
{
	b->l = link_free(b->l);
	for (int i = 0; fake.alive && i < 50; i++)
		(void)sd_event_run(b->event, 20000); /* what lingers, at most 200 ms */
	assert_int_equal(fake.alive, 0);
	sd_event_unref(b->event);
	munmap(b->pool.data, SLABS * UNIT);
	free(b);
	fake_close();
}

static const struct mc_term TERM = {.number = 3, .id = 4};

static inline void limits(struct bench *b, enum mc_side from)
{
	b->l->limits = (struct mc_wire_limits){.slab_size = UNIT, .from = from};
	b->l->term = TERM;
}

/* The backup's supervisor: takes RDMA_ASK, answers with an offer of @port. */
static inline int offer(struct bench *b, int listener, uint32_t port)
{
	struct mc_wire_rdma_offer o = {.token = {11, 12}, .port = port};
	uint8_t buf[256];
	struct mc_wire_header h;
	int fd;

	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd >= 0);
	while (recv(fd, buf, sizeof(h) + sizeof(struct mc_wire_rdma_ask),
	            MSG_PEEK | MSG_DONTWAIT) != sizeof(h) + sizeof(struct mc_wire_rdma_ask))
		(void)sd_event_run(b->event, 1000);
	memcpy(&h, buf, sizeof(h));
	assert_int_equal(h.type, MC_MSG_RDMA_ASK);
	mc_wire_header_init(&h, MC_MSG_RDMA_OFFER, &TERM, 0, sizeof(o));
	h.checksum = mc_wire_checksum(&h, &o, sizeof(o), NULL, 0);
	memcpy(buf, &h, sizeof(h));
	memcpy(buf + sizeof(h), &o, sizeof(o));
	assert_int_equal(send(fd, buf, sizeof(h) + sizeof(o), 0), sizeof(h) + sizeof(o));
	for (int i = 0; i < 100 && ((struct rdma *)b->l)->state == RDMA_ASKING; i++)
		(void)sd_event_run(b->event, 10000);
	return fd;
}

/* A primary's link, as far as the answer to RDMA_ASK. */
static inline void primary_ask(struct bench *b, uint32_t port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct rdma_options opt = options(b);
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), peer_fd;
	char peer[32];

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	snprintf(peer, sizeof(peer), "127.0.0.1:%d", ntohs(a.sin_port));
	assert_int_equal(rdma_link_connect(&b->l, b->event, peer, "test", NULL, &opt, &events, b),
	                 0);
	limits(b, MC_SIDE_BACKUP);
	peer_fd = offer(b, fd, port);
	close(peer_fd);
	close(fd);
}

static inline void step(struct bench *b, enum rdma_cm_event_type type)
{
	put_event(type, 0);
	run(b);
}

static inline void primary_up(struct bench *b)
{
	primary_ask(b, 4000);
	step(b, RDMA_CM_EVENT_ADDR_RESOLVED);
	step(b, RDMA_CM_EVENT_ROUTE_RESOLVED);
	step(b, RDMA_CM_EVENT_ESTABLISHED);
}

static inline int backup_accept(struct bench *b)
{
	struct rdma_options opt = options(b);
	struct rdma *r = rdma_new(b->event, &opt, &events, b);
	struct rdma_cm_id *id = calloc(1, sizeof(*id));
	int e;

	id->verbs = &fake.ctx;
	fake.alive++;
	b->l = &r->l;
	limits(b, MC_SIDE_PRIMARY);
	e = cm_accept(r, id);
	if (e == 0)
		step(b, RDMA_CM_EVENT_ESTABLISHED);
	return e;
}

/* A message of the peer arrives in the oldest receive. */
static unsigned arrived;

static inline void deliver(struct bench *b, const void *msg, uint32_t len)
{
	unsigned i = arrived++ % FAKE_MAX;

	memcpy((void *)(uintptr_t)fake.recv_addr[i], msg, len);
	put_wc(fake.recv_wr[i].wr_id, IBV_WC_SUCCESS, len);
	run(b);
}

static inline void deliver_message(struct bench *b, enum mc_msg type, uint32_t consumed)
{
	struct mc_rdma_head r = {
	        .magic = MC_RDMA_MAGIC, .kind = MC_RDMA_MESSAGE, .consumed = consumed};
	struct mc_wire_ping ping = {.stamp = 5};
	uint8_t buf[sizeof(r) + MC_WIRE_HEADER + sizeof(ping)];
	struct mc_wire_header h;

	mc_wire_header_init(&h, type, &TERM, 0, sizeof(ping));
	h.checksum = mc_wire_checksum(&h, &ping, sizeof(ping), NULL, 0);
	memcpy(buf, &r, sizeof(r));
	memcpy(buf + sizeof(r), &h, sizeof(h));
	memcpy(buf + sizeof(r) + sizeof(h), &ping, sizeof(ping));
	deliver(b, buf, sizeof(buf));
}

static inline void deliver_credits(struct bench *b, unsigned n, uint32_t consumed)
{
	struct {
		struct mc_rdma_head h;
		struct mc_rdma_credit c[MC_RDMA_SLOTS];
	} m = {.h = {.magic = MC_RDMA_MAGIC,
	             .kind = MC_RDMA_CREDIT,
	             .count = (uint16_t)n,
	             .consumed = consumed}};

	for (unsigned i = 0; i < n; i++)
		m.c[i] = (struct mc_rdma_credit){
		        .addr = 0x10000000ULL * (i + 1), .rkey = 70 + i, .slot = i};
	deliver(b, &m, (uint32_t)(sizeof(m.h) + n * sizeof(m.c[0])));
}

static inline void send_slab(struct bench *b, unsigned i, uint64_t bytes)
{
	struct mc_wire_slab s = {.seq = i, .bytes = bytes};
	uint64_t sum;

	assert_int_equal(link_send_slab(b->l, 1, &s, b->pool.data + i * UNIT, i + 1, &sum), 0);
}

static inline void send_ping(struct bench *b)
{
	struct mc_wire_ping p = {.stamp = 1};

	assert_int_equal(link_send(b->l, MC_MSG_PING, 0, &p, sizeof(p)), 0);
}

static inline int setup(void **state)
{
	(void)state;
	arrived = 0;
	return 0;
}

#endif
