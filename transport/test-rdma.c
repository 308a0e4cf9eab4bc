/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The life of a link by RDMA over a device that fails as no soft device does. */
#include "test-rdma-bench.h"

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

/* The device goes while slabs are on their way, and queued: said once, all slabs come back once. */
static void test_device_lost_under_load(void **state)
{
	(void)state;
	for (int how = 0; how < 3; how++) {
		struct bench *b = bench_new();

		arrived = 0;
		primary_up(b);
		deliver_credits(b, 2, 0);
		for (unsigned i = 0; i < 4; i++)
			send_slab(b, i, UNIT);
		run(b);
		assert_int_equal(b->s.closed, 0);
		fake.async = (struct verbs_async){.error = how ? -EIO : -ENODEV,
		                                  .qp = how ? &fake.qp : NULL,
		                                  .text = "fatal"};
		fake.have_async = how < 2;
		if (how < 2)
			wake(fake.async_fd);
		else
			put_event(RDMA_CM_EVENT_DEVICE_REMOVAL, -ENODEV);
		run(b);
		put_wc(WR_WRITE, IBV_WC_WR_FLUSH_ERR, 0);
		put_wc(WR_RECV | 1, IBV_WC_WR_FLUSH_ERR, 0);
		run(b);
		assert_int_equal(b->s.closed, 1);
		assert_int_equal(b->s.error, how == 1 ? -EIO : -ENODEV);
		assert_false(b->l->try_other); /* it was possible until now */
		assert_int_equal(b->s.sent, 0);
		b->l = link_free(b->l);
		assert_int_equal(b->s.sent, 4);
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
	        cmocka_unit_test_setup(test_device_lost_under_load, setup),
	        cmocka_unit_test_setup(test_last_words, setup),
	        cmocka_unit_test_setup(test_lingers_no_longer, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
