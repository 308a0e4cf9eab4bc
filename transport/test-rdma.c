/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The link by RDMA over a device that fails as no soft device does. */
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

static int on_message(void *ctx, struct link *l, const struct mc_wire_header *h,
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

static uint64_t on_lend(void *ctx, struct link *l, void **data)
{
	struct bench *b = ctx;

	(void)l;
	if (!b->s.lend)
		return 0;
	*data = b->pool.data + --b->s.lend * UNIT;
	return b->s.lend + 1;
}

static void on_give_back(void *ctx, struct link *l, uint64_t slab)
{
	(void)l;
	(void)slab;
	((struct bench *)ctx)->s.given_back++;
}

static void on_slab_sent(void *ctx, struct link *l, uint64_t cookie)
{
	(void)l;
	(void)cookie;
	((struct bench *)ctx)->s.sent++;
}

static void on_closed(void *ctx, struct link *l, int error, const char *why)
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

static struct bench *bench_new(void)
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

static struct rdma_options options(const struct bench *b)
{
	return (struct rdma_options){.pool = &b->pool, .failure_timeout_ms = 500};
}

static void run(struct bench *b)
{
	while (sd_event_run(b->event, 0) > 0)
		;
}

/* Ends everything; what was made must be gone. */
static void bench_end(struct bench *b)
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

static void limits(struct bench *b, enum mc_side from)
{
	b->l->limits = (struct mc_wire_limits){.slab_size = UNIT, .from = from};
	b->l->term = TERM;
}

/* The backup's supervisor: takes RDMA_ASK, answers with an offer of @port. */
static int offer(struct bench *b, int listener, uint32_t port)
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
static void primary_ask(struct bench *b, uint32_t port)
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

static void step(struct bench *b, enum rdma_cm_event_type type)
{
	put_event(type, 0);
	run(b);
}

static void primary_up(struct bench *b)
{
	primary_ask(b, 4000);
	step(b, RDMA_CM_EVENT_ADDR_RESOLVED);
	step(b, RDMA_CM_EVENT_ROUTE_RESOLVED);
	step(b, RDMA_CM_EVENT_ESTABLISHED);
}

static int backup_accept(struct bench *b)
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

static void deliver(struct bench *b, const void *msg, uint32_t len)
{
	unsigned i = arrived++ % FAKE_MAX;

	memcpy((void *)(uintptr_t)fake.recv_addr[i], msg, len);
	put_wc(fake.recv_wr[i].wr_id, IBV_WC_SUCCESS, len);
	run(b);
}

static void deliver_message(struct bench *b, enum mc_msg type, uint32_t consumed)
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

static void deliver_credits(struct bench *b, unsigned n, uint32_t consumed)
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

static void send_slab(struct bench *b, unsigned i, uint64_t bytes)
{
	struct mc_wire_slab s = {.seq = i, .bytes = bytes};
	uint64_t sum;

	assert_int_equal(link_send_slab(b->l, 1, &s, b->pool.data + i * UNIT, i + 1, &sum), 0);
}

static void send_ping(struct bench *b)
{
	struct mc_wire_ping p = {.stamp = 1};

	assert_int_equal(link_send(b->l, MC_MSG_PING, 0, &p, sizeof(p)), 0);
}

static int setup(void **state)
{
	(void)state;
	arrived = 0;
	return 0;
}

/* --- connecting ------------------------------------------------------------------------ */

static void test_connects(void **state)
{
	struct bench *b = bench_new();

	(void)state;
	primary_ask(b, 4000);
	send_ping(b); /* queued until the connection stands */
	step(b, RDMA_CM_EVENT_ADDR_RESOLVED);
	step(b, RDMA_CM_EVENT_ROUTE_RESOLVED);
	assert_int_equal(fake.request.token[0], 11);
	assert_int_equal(fake.request.token[1], 12);
	assert_int_equal(fake.request.version, MC_RDMA_VERSION);
	assert_in_range(fake.retries, 1, 6);
	assert_int_equal(fake.recvs, MC_RDMA_RECVS);
	assert_int_equal(fake.sends, 0);
	step(b, RDMA_CM_EVENT_ESTABLISHED);
	assert_int_equal(fake.sends, 1);
	assert_int_equal(b->s.closed, 0);
	bench_end(b);
}

/* Whatever call fails on the way: one report, another transport may be tried, nothing is left. */
static void test_calls_fail(void **state)
{
	static const char *const calls[] = {
	        "channel",     "id",     "resolve-addr", "resolve-route", "pd",  "comp-channel",
	        "cq",          "qp",     "mr",           "post-recv",     "arm", "async-fd",
	        "ack-timeout", "connect"};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(calls); i++) {
		struct bench *b = bench_new();

		arrived = 0;
		fake.fails = calls[i];
		fake.error = -ENOBUFS;
		primary_up(b);
		if (b->s.closed != 1 || b->s.error != -ENOBUFS || !b->l->try_other)
			fail_msg("%s fails: closed %d times, error %d", calls[i], b->s.closed,
			         b->s.error);
		bench_end(b);
	}
}

static void test_accept_fails(void **state)
{
	static const char *const calls[] = {"channel", "move",      "pd",         "comp-channel",
	                                    "cq",      "qp",        "mr",         "arm",
	                                    "accept",  "post-recv", "ack-timeout"};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(calls); i++) {
		struct bench *b = bench_new();

		fake.fails = calls[i];
		fake.error = -ENOBUFS;
		if (backup_accept(b) != -ENOBUFS)
			fail_msg("%s fails, and the connection is accepted", calls[i]);
		bench_end(b);
	}
}

static void test_connection_events(void **state)
{
	static const struct {
		enum rdma_cm_event_type type;
		int given, error;
	} ev[] = {{RDMA_CM_EVENT_ADDR_ERROR, -ENODEV, -ENODEV},
	          {RDMA_CM_EVENT_ROUTE_ERROR, -ETIMEDOUT, -ETIMEDOUT},
	          {RDMA_CM_EVENT_UNREACHABLE, -EHOSTUNREACH, -EHOSTUNREACH},
	          {RDMA_CM_EVENT_CONNECT_ERROR, -EINVAL, -EINVAL},
	          {RDMA_CM_EVENT_REJECTED, -ECONNREFUSED, -ECONNREFUSED},
	          {RDMA_CM_EVENT_DISCONNECTED, -ECONNRESET, -ECONNRESET},
	          {RDMA_CM_EVENT_DEVICE_REMOVAL, -ENODEV, -ENODEV},
	          {RDMA_CM_EVENT_ADDR_CHANGE, -ENETDOWN, -ENETDOWN}};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(ev) * 2; i++) {
		struct bench *b = bench_new();
		bool up = i >= MC_ARRAY_SIZE(ev);

		arrived = 0;
		if (up)
			primary_up(b);
		else
			primary_ask(b, 4000);
		put_event(ev[i % MC_ARRAY_SIZE(ev)].type, ev[i % MC_ARRAY_SIZE(ev)].given);
		run(b);
		put_event(RDMA_CM_EVENT_DISCONNECTED, -ECONNRESET);
		run(b);
		assert_int_equal(b->s.closed, 1);
		assert_int_equal(b->s.error, ev[i % MC_ARRAY_SIZE(ev)].error);
		/* A link that broke says nothing about whether RDMA is possible. */
		assert_int_equal(b->l->try_other, !up);
		bench_end(b);
	}
}

static void test_no_offer(void **state)
{
	struct bench *b = bench_new();

	(void)state;
	primary_ask(b, 0);
	assert_int_equal(b->s.closed, 1);
	assert_int_equal(b->s.error, -EOPNOTSUPP);
	assert_true(b->l->try_other);
	bench_end(b);
}

static void test_memlock(void **state)
{
	struct bench *b = bench_new();

	(void)state;
	fake.memlock = 10 * UNIT;
	primary_up(b);
	assert_int_equal(b->s.error, -ENOMEM);
	assert_non_null(strstr(b->s.why, "RLIMIT_MEMLOCK"));
	assert_non_null(strstr(b->s.why, "LimitMEMLOCK="));
	bench_end(b);
}

/* --- requests that fail ---------------------------------------------------------------- */

static void test_completions_fail(void **state)
{
	static const struct {
		enum ibv_wc_status status;
		int error;
	} wc[] = {{IBV_WC_LOC_LEN_ERR, -EPROTO},
	          {IBV_WC_LOC_QP_OP_ERR, -EIO},
	          {IBV_WC_LOC_PROT_ERR, -EACCES},
	          {IBV_WC_WR_FLUSH_ERR, -ECONNRESET},
	          {IBV_WC_BAD_RESP_ERR, -EPROTO},
	          {IBV_WC_LOC_ACCESS_ERR, -EACCES},
	          {IBV_WC_REM_INV_REQ_ERR, -EPROTO},
	          {IBV_WC_REM_ACCESS_ERR, -EACCES},
	          {IBV_WC_REM_OP_ERR, -EREMOTEIO},
	          {IBV_WC_RETRY_EXC_ERR, -ETIMEDOUT},
	          {IBV_WC_RNR_RETRY_EXC_ERR, -ETIMEDOUT},
	          {IBV_WC_REM_ABORT_ERR, -EREMOTEIO},
	          {IBV_WC_FATAL_ERR, -ENODEV},
	          {IBV_WC_RESP_TIMEOUT_ERR, -ETIMEDOUT},
	          {IBV_WC_GENERAL_ERR, -EIO}};
	static const uint64_t id[] = {WR_WRITE, WR_SEND, WR_RECV};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(wc) * 3; i++) {
		struct bench *b = bench_new();

		arrived = 0;
		primary_up(b);
		deliver_credits(b, 2, 0);
		send_slab(b, 0, 100);
		put_wc(id[i % 3], wc[i / 3].status, 0);
		put_wc(WR_RECV | 1, IBV_WC_WR_FLUSH_ERR, 0);
		run(b);
		assert_int_equal(b->s.closed, 1);
		assert_int_equal(b->s.error, wc[i / 3].error);
		assert_int_equal(link_send(b->l, MC_MSG_PING, 0, NULL, 0), -ENOTCONN);
		b->l = link_free(b->l);
		assert_int_equal(b->s.sent, 1); /* given back, once */
		bench_end(b);
	}
}

static void test_posting_fails(void **state)
{
	static const char *const calls[] = {"post-send", "post-recv", "poll", "wakeups", "mr"};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(calls); i++) {
		struct bench *b = bench_new();

		arrived = 0;
		primary_up(b);
		fake.fails = calls[i];
		fake.error = -ENOMEM;
		send_slab(b, 0, 100);
		deliver_credits(b, 2, 0);
		if (b->s.closed != 1 || b->s.error != -ENOMEM)
			fail_msg("%s fails: closed %d times, error %d", calls[i], b->s.closed,
			         b->s.error);
		b->l = link_free(b->l);
		assert_int_equal(b->s.sent, 1);
		bench_end(b);
	}
}

static void test_device_events(void **state)
{
	struct bench *b = bench_new();
	struct ibv_qp other;

	(void)state;
	primary_up(b);
	fake.async = (struct verbs_async){.error = -EIO, .qp = &other, .text = "of another link"};
	fake.have_async = true;
	wake(fake.async_fd);
	run(b);
	fake.async = (struct verbs_async){.error = 0, .text = "port active"};
	fake.have_async = true;
	wake(fake.async_fd);
	run(b);
	assert_int_equal(b->s.closed, 0);
	fake.async = (struct verbs_async){.error = -ENODEV, .text = "device fatal"};
	fake.have_async = true;
	wake(fake.async_fd);
	run(b);
	assert_int_equal(b->s.closed, 1);
	assert_int_equal(b->s.error, -ENODEV);
	bench_end(b);
}

/* --- sending --------------------------------------------------------------------------- */

/* A slab waits for a credit, goes in chunks, and is never in front of a PING. */
static void test_slab_in_chunks(void **state)
{
	struct bench *b = bench_new();
	unsigned writes = 0;

	(void)state;
	primary_up(b);
	send_slab(b, 0, UNIT);
	send_slab(b, 1, UNIT);
	run(b);
	assert_int_equal(fake.sends, 0);
	assert_int_equal(b->l->credit_waits, 1);
	send_ping(b);
	assert_int_equal(fake.sends, 1);
	deliver_credits(b, 2, 1);
	/* 3 MiB of the first and SLAB, 1 MiB of the second; then no more than 4 are on their way.
	 */
	assert_int_equal(fake.sends, 6);
	for (unsigned i = 1; i < 6; i++) {
		if (fake.send[i].opcode != IBV_WR_RDMA_WRITE)
			continue;
		assert_int_equal(fake.send[i].len, CHUNK);
		assert_int_equal(fake.send[i].rkey, writes < 3 ? 70 : 71);
		assert_int_equal(fake.send[i].remote,
		                 (writes < 3 ? 0x10000000 : 0x20000000) + writes % 3 * CHUNK);
		writes++;
	}
	assert_int_equal(writes, 4);
	send_ping(b);
	assert_int_equal(fake.sends, 7);
	put_wc(WR_WRITE, IBV_WC_SUCCESS, 0);
	run(b);
	assert_int_equal(fake.sends, 8);
	assert_int_equal(b->s.sent, 0);
	put_wc(fake.send[4].wr_id, IBV_WC_SUCCESS, 0);
	run(b);
	assert_int_equal(b->s.sent, 1);
	bench_end(b);
}

/* No more messages than the peer has receives for; a word of it sets the rest free. */
static void test_message_window(void **state)
{
	struct bench *b = bench_new();

	(void)state;
	primary_up(b);
	for (int i = 0; i < 40; i++)
		send_ping(b);
	assert_int_equal(fake.sends, MC_RDMA_RECVS - MC_RDMA_RESERVED);
	deliver_credits(b, 0, 10);
	assert_int_equal(fake.sends, 40);
	/* It can't have taken more than was sent. */
	deliver_credits(b, 0, 41);
	assert_int_equal(b->s.closed, 1);
	assert_int_equal(b->s.error, -EPROTO);
	bench_end(b);
}

/* The pool shrank: what is not on its way is deregistered, and registered again when it is sent. */
static void test_shrink(void **state)
{
	struct bench *b = bench_new();

	(void)state;
	primary_up(b);
	deliver_credits(b, 4, 0);
	send_slab(b, 0, 100);
	send_slab(b, 1, 100);
	assert_int_equal(fake.mrs, 3);
	put_wc(WR_WRITE, IBV_WC_SUCCESS, 0);
	put_wc(fake.send[1].wr_id, IBV_WC_SUCCESS, 0);
	run(b);
	assert_int_equal(b->s.sent, 1);
	assert_int_equal(fake.mrs, 3); /* kept for the next time */
	atomic_fetch_add(&b->shm.shrunk, 5);
	link_resume(b->l);
	assert_int_equal(fake.mrs, 2); /* slab 1 is still on its way */
	put_wc(WR_WRITE, IBV_WC_SUCCESS, 0);
	put_wc(fake.send[3].wr_id, IBV_WC_SUCCESS, 0);
	run(b);
	link_resume(b->l);
	assert_int_equal(fake.mrs, 1);
	send_slab(b, 1, 100);
	assert_int_equal(fake.mrs, 2);
	bench_end(b);
}

/* --- receiving ------------------------------------------------------------------------- */

static void deliver_slab(struct bench *b, uint32_t slot, const uint8_t *data, uint64_t bytes)
{
	struct mc_rdma_head r = {.magic = MC_RDMA_MAGIC, .kind = MC_RDMA_SLAB, .slot = slot};
	struct mc_wire_slab s = {.bytes = bytes};
	uint8_t buf[sizeof(r) + MC_WIRE_HEADER + sizeof(s)];
	struct mc_wire_header h;

	mc_wire_header_init(&h, MC_MSG_SLAB, &TERM, 0, (uint32_t)(sizeof(s) + bytes));
	h.checksum = mc_wire_checksum(&h, &s, sizeof(s), data, bytes);
	memcpy(buf, &r, sizeof(r));
	memcpy(buf + sizeof(r), &h, sizeof(h));
	memcpy(buf + sizeof(r) + sizeof(h), &s, sizeof(s));
	deliver(b, buf, sizeof(buf));
}

/* Remote access to a slab is over before anybody looks at what is in it. */
static void test_slab_is_closed_first(void **state)
{
	struct bench *b = bench_new();

	(void)state;
	b->s.lend = 3;
	assert_int_equal(backup_accept(b), 0);
	deliver_message(b, MC_MSG_PING, 0); /* anything: lends */
	assert_int_equal(fake.mrs, 4);
	deliver_slab(b, 1, b->pool.data + UNIT, 1000);
	assert_int_equal(b->s.last_type, MC_MSG_SLAB);
	assert_int_equal(b->s.last_slab, 2);
	assert_int_equal(b->s.mrs_at_message, 3);
	assert_int_equal(b->s.closed, 0);
	/* The slot is empty now. */
	deliver_slab(b, 1, b->pool.data + UNIT, 1000);
	assert_int_equal(b->s.closed, 1);
	assert_int_equal(b->s.error, -EPROTO);
	b->l = link_free(b->l);
	assert_int_equal(b->s.given_back, 2);
	bench_end(b);
}

static void test_damaged_slab(void **state)
{
	static const uint8_t other[1000] = {1};
	struct bench *b = bench_new();

	(void)state;
	b->s.lend = 1;
	assert_int_equal(backup_accept(b), 0);
	deliver_message(b, MC_MSG_PING, 0);
	deliver_slab(b, 0, other, sizeof(other));
	assert_int_equal(b->s.closed, 1);
	assert_int_equal(b->s.error, -EBADMSG);
	assert_int_equal(b->s.given_back, 1);
	bench_end(b);
}

static void test_lending_fails(void **state)
{
	struct bench *b = bench_new();

	(void)state;
	assert_int_equal(backup_accept(b), 0);
	b->s.lend = 3;
	fake.fails = "mr";
	fake.error = -ENOMEM;
	fake.passes = 1;
	deliver_message(b, MC_MSG_PING, 0);
	assert_int_equal(b->s.closed, 1);
	b->l = link_free(b->l);
	assert_int_equal(b->s.given_back, 2);
	bench_end(b);
}

static void test_garbage(void **state)
{
	uint8_t buf[200];
	unsigned seed = 1;

	(void)state;
	for (int n = 0; n < 200; n++) {
		struct bench *b = bench_new();
		struct mc_rdma_head h = {.magic = MC_RDMA_MAGIC, .kind = (uint16_t)(n % 5)};

		arrived = 0;
		assert_int_equal(backup_accept(b), 0);
		for (size_t i = 0; i < sizeof(buf); i++)
			buf[i] = (uint8_t)rand_r(&seed);
		if (n & 1)
			memcpy(buf, &h, sizeof(h));
		deliver(b, buf, (uint32_t)rand_r(&seed) % sizeof(buf));
		/* An empty CREDIT is the one good message that this can be. */
		assert_true(b->s.closed == 1 || (n & 1 && h.kind == MC_RDMA_CREDIT));
		assert_int_equal(b->s.messages, 0);
		bench_end(b);
	}
}

/* --- the end --------------------------------------------------------------------------- */

/* A refusal is said before the link is closed: it must still get out. */
static void test_last_words(void **state)
{
	struct bench *b = bench_new();
	int alive;

	(void)state;
	b->s.answer = -EPERM;
	assert_int_equal(backup_accept(b), 0);
	send_ping(b);
	deliver_message(b, MC_MSG_PING, 0);
	assert_int_equal(b->s.closed, 1);
	b->l = link_free(b->l);
	alive = fake.alive;
	assert_true(alive > 0);
	put_wc(fake.send[0].wr_id, IBV_WC_SUCCESS, 0);
	run(b);
	assert_int_equal(fake.alive, 0);
	bench_end(b);
}

static void test_lingers_no_longer(void **state)
{
	struct bench *b = bench_new();
	uint64_t began = mc_now_ns();

	(void)state;
	assert_int_equal(backup_accept(b), 0);
	deliver_message(b, MC_MSG_PING, 0);
	send_ping(b);
	bench_end(b);
	assert_true(mc_now_ns() - began >= 150 * MC_NS_PER_MS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup(test_connects, setup),
	        cmocka_unit_test_setup(test_calls_fail, setup),
	        cmocka_unit_test_setup(test_accept_fails, setup),
	        cmocka_unit_test_setup(test_connection_events, setup),
	        cmocka_unit_test_setup(test_no_offer, setup),
	        cmocka_unit_test_setup(test_memlock, setup),
	        cmocka_unit_test_setup(test_completions_fail, setup),
	        cmocka_unit_test_setup(test_posting_fails, setup),
	        cmocka_unit_test_setup(test_device_events, setup),
	        cmocka_unit_test_setup(test_slab_in_chunks, setup),
	        cmocka_unit_test_setup(test_message_window, setup),
	        cmocka_unit_test_setup(test_shrink, setup),
	        cmocka_unit_test_setup(test_slab_is_closed_first, setup),
	        cmocka_unit_test_setup(test_damaged_slab, setup),
	        cmocka_unit_test_setup(test_lending_fails, setup),
	        cmocka_unit_test_setup(test_garbage, setup),
	        cmocka_unit_test_setup(test_last_words, setup),
	        cmocka_unit_test_setup(test_lingers_no_longer, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
