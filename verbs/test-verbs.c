/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Every way in which the libraries say that they failed comes out as one negative errno. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "verbs.h"

/* What the wrapped calls return, and errno. */
static long answer;
static int answer_errno;
static struct rdma_cm_event event;
static struct rdma_conn_param param;

static long give(void)
{
	errno = answer_errno;
	return answer;
}

#define WRAP(type, name, ...)                                                                      \
	type __wrap_##name(__VA_ARGS__);                                                           \
	type __wrap_##name(__VA_ARGS__)

WRAP(struct rdma_event_channel *, rdma_create_event_channel, void)
{
	return (void *)give();
}

WRAP(int, rdma_create_id, struct rdma_event_channel *c, struct rdma_cm_id **id, void *ctx,
     enum rdma_port_space ps)
{
	(void)c, (void)id, (void)ctx;
	assert_int_equal(ps, RDMA_PS_TCP);
	return (int)give();
}

WRAP(int, rdma_get_cm_event, struct rdma_event_channel *c, struct rdma_cm_event **e)
{
	(void)c;
	*e = &event;
	return (int)give();
}

WRAP(int, rdma_ack_cm_event, struct rdma_cm_event *e)
{
	/* What is kept must not point into it. */
	memset(e, 0, sizeof(*e));
	return 0;
}

WRAP(int, rdma_connect, struct rdma_cm_id *id, struct rdma_conn_param *p)
{
	(void)id;
	param = *p;
	return (int)give();
}

WRAP(int, rdma_accept, struct rdma_cm_id *id, struct rdma_conn_param *p)
{
	(void)id;
	param = *p;
	return (int)give();
}

WRAP(struct ibv_pd *, ibv_alloc_pd, struct ibv_context *ctx)
{
	(void)ctx;
	return (void *)give();
}

WRAP(struct ibv_mr *, ibv_reg_mr_iova2, struct ibv_pd *pd, void *addr, size_t len, uint64_t iova,
     unsigned access)
{
	(void)pd, (void)addr, (void)len, (void)iova, (void)access;
	return (void *)give();
}

WRAP(struct ibv_mr *, ibv_reg_mr, struct ibv_pd *pd, void *addr, size_t len, int access)
{
	(void)pd, (void)addr, (void)len, (void)access;
	return (void *)give();
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	(void)qp, (void)wr, (void)bad;
	return (int)give();
}

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	(void)cq, (void)n, (void)wc;
	return (int)give();
}

static void set(long value, int error)
{
	answer = value;
	answer_errno = error;
}

static void test_return_styles(void **state)
{
	struct ibv_context ctx = {.ops = {.post_send = post_send, .poll_cq = poll_cq}};
	struct ibv_qp qp = {.context = &ctx};
	struct ibv_cq cq = {.context = &ctx};
	struct ibv_send_wr wr = {0};
	struct ibv_pd *pd = NULL;
	struct ibv_mr *mr = NULL;
	struct rdma_event_channel *c = NULL;
	struct rdma_cm_id *id = NULL;
	struct ibv_wc wc;

	(void)state;
	/* NULL with errno, and without. */
	set(0, ENOMEM);
	assert_int_equal(verbs_mr_new(NULL, NULL, 0, 0, &mr), -ENOMEM);
	set(0, EACCES);
	assert_int_equal(verbs_pd_new(&ctx, &pd), -EACCES);
	set(0, 0);
	assert_int_equal(verbs_pd_new(&ctx, &pd), -ENOMEM);
	assert_int_equal(verbs_pd_new(NULL, &pd), -ENODEV);
	set(0, ENOENT);
	assert_int_equal(verbs_channel_new(&c), -ENODEV);
	/* -1 with errno. */
	set(-1, EADDRINUSE);
	assert_int_equal(verbs_id_new(NULL, &id), -EADDRINUSE);
	set(-1, 0);
	assert_int_equal(verbs_id_new(NULL, &id), -EIO);
	/* A positive errno; -1 with errno; a negative errno. */
	set(ENOMEM, 0);
	assert_int_equal(verbs_post_send(&qp, &wr), -ENOMEM);
	set(-1, EINVAL);
	assert_int_equal(verbs_post_send(&qp, &wr), -EINVAL);
	set(-EFAULT, 0);
	assert_int_equal(verbs_post_send(&qp, &wr), -EFAULT);
	set(0, EINVAL); /* a success leaves errno as it likes */
	assert_int_equal(verbs_post_send(&qp, &wr), 0);
	/* A count, or anything negative. */
	set(3, 0);
	assert_int_equal(verbs_poll(&cq, 4, &wc), 3);
	set(-1, 0);
	assert_int_equal(verbs_poll(&cq, 4, &wc), -EIO);
}

static void test_events(void **state)
{
	static const struct {
		enum rdma_cm_event_type type;
		int status, error;
	} want[] = {{RDMA_CM_EVENT_ADDR_RESOLVED, 0, 0},
	            {RDMA_CM_EVENT_ESTABLISHED, 0, 0},
	            {RDMA_CM_EVENT_TIMEWAIT_EXIT, 0, 0},
	            {RDMA_CM_EVENT_ADDR_ERROR, -ENODEV, -ENODEV},
	            {RDMA_CM_EVENT_ROUTE_ERROR, ETIMEDOUT, -ETIMEDOUT},
	            {RDMA_CM_EVENT_UNREACHABLE, 0, -EHOSTUNREACH},
	            {RDMA_CM_EVENT_REJECTED, 28, -ECONNREFUSED}, /* a reason, not an errno */
	            {RDMA_CM_EVENT_DISCONNECTED, 0, -ECONNRESET},
	            {RDMA_CM_EVENT_DEVICE_REMOVAL, 0, -ENODEV},
	            {(enum rdma_cm_event_type)99, 0, -EHOSTUNREACH}};
	char data[200] = "token";
	struct verbs_event e;

	(void)state;
	set(0, 0);
	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		event = (struct rdma_cm_event){.event = want[i].type, .status = want[i].status};
		assert_int_equal(verbs_next_event(NULL, &e), 1);
		assert_int_equal(e.type, want[i].type);
		assert_int_equal(e.error, want[i].error);
	}
	/* Longer private data than anybody uses is cut; that of other events is no data at all. */
	event = (struct rdma_cm_event){
	        .event = RDMA_CM_EVENT_CONNECT_REQUEST,
	        .param.conn = {.private_data = data, .private_data_len = 196}};
	assert_int_equal(verbs_next_event(NULL, &e), 1);
	assert_int_equal(e.private_len, sizeof(e.private_data));
	assert_string_equal((char *)e.private_data, "token");
	event = (struct rdma_cm_event){
	        .event = RDMA_CM_EVENT_DISCONNECTED,
	        .param.conn = {.private_data = (void *)1, .private_data_len = 9}};
	assert_int_equal(verbs_next_event(NULL, &e), 1);
	assert_int_equal(e.private_len, 0);
	set(-1, EAGAIN);
	assert_int_equal(verbs_next_event(NULL, &e), 0);
	set(-1, ENODEV);
	assert_int_equal(verbs_next_event(NULL, &e), -ENODEV);
}

/* 7 means for ever: nobody gets it. */
static void test_retries_are_finite(void **state)
{
	(void)state;
	set(0, 0);
	assert_int_equal(verbs_connect(NULL, NULL, 0, 7), 0);
	assert_int_equal(param.retry_count, 6);
	assert_int_equal(param.rnr_retry_count, 6);
	assert_int_equal(verbs_connect(NULL, NULL, 0, 3), 0);
	assert_int_equal(param.retry_count, 3);
	assert_int_equal(verbs_accept(NULL, 255), 0);
	assert_int_equal(param.rnr_retry_count, 6);
}

static void test_completions(void **state)
{
	(void)state;
	for (int s = IBV_WC_SUCCESS; s <= IBV_WC_TM_RNDV_INCOMPLETE + 5; s++) {
		struct ibv_wc wc = {.status = (enum ibv_wc_status)s};
		int r = verbs_wc_error(&wc);

		assert_true(s == IBV_WC_SUCCESS ? r == 0 : r < 0 && r > -4096);
		assert_non_null(verbs_wc_text(&wc));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_return_styles),
	        cmocka_unit_test(test_events),
	        cmocka_unit_test(test_retries_are_finite),
	        cmocka_unit_test(test_completions),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
