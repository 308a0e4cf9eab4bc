/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Slabs and messages by RDMA: windows, credits, registrations, and what a peer may not send. */
#include "test-rdma-bench.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup(test_slab_in_chunks, setup),
	        cmocka_unit_test_setup(test_message_window, setup),
	        cmocka_unit_test_setup(test_shrink, setup),
	        cmocka_unit_test_setup(test_slab_is_closed_first, setup),
	        cmocka_unit_test_setup(test_damaged_slab, setup),
	        cmocka_unit_test_setup(test_lending_fails, setup),
	        cmocka_unit_test_setup(test_garbage, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
