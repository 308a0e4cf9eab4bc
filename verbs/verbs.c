/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "verbs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "errors.h"

#define BACKLOG 4

static int nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

/* --- connection manager ---------------------------------------------------------------- */

int verbs_channel_new(struct rdma_event_channel **ret)
{
	struct rdma_event_channel *c;
	int r;

	errno = 0;
	c = rdma_create_event_channel();
	if (!c)
		return errno == ENOENT ? -ENODEV : from_null();
	r = nonblocking(c->fd);
	if (r < 0) {
		rdma_destroy_event_channel(c);
		return r;
	}
	*ret = c;
	return 0;
}

struct rdma_event_channel *verbs_channel_free(struct rdma_event_channel *c)
{
	if (c)
		rdma_destroy_event_channel(c);
	return NULL;
}

/* What an event says about the connection. */
static int event_error(const struct rdma_cm_event *e)
{
	switch (e->event) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
	case RDMA_CM_EVENT_CONNECT_REQUEST:
	case RDMA_CM_EVENT_CONNECT_RESPONSE:
	case RDMA_CM_EVENT_ESTABLISHED:
	case RDMA_CM_EVENT_TIMEWAIT_EXIT:
	case RDMA_CM_EVENT_MULTICAST_JOIN:
		return 0;
	case RDMA_CM_EVENT_REJECTED: /* its status is a reason of the protocol, not an errno */
		return -ECONNREFUSED;
	case RDMA_CM_EVENT_DISCONNECTED:
		return -ECONNRESET;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		return -ENODEV;
	case RDMA_CM_EVENT_ADDR_CHANGE:
		return -ENETDOWN;
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_CONNECT_ERROR:
	default:
		return e->status < 0 ? e->status : e->status > 0 ? -e->status : -EHOSTUNREACH;
	}
}

int verbs_next_event(struct rdma_event_channel *c, struct verbs_event *ret)
{
	struct rdma_cm_event *e;
	const void *data;
	size_t n;

	if (rdma_get_cm_event(c, &e) != 0)
		return errno == EAGAIN || errno == EINTR ? 0 : from_minus(-1);
	*ret = (struct verbs_event){.type = e->event, .id = e->id, .error = event_error(e)};
	data = e->param.conn.private_data;
	n = e->param.conn.private_data_len;
	if (data &&
	    (e->event == RDMA_CM_EVENT_CONNECT_REQUEST || e->event == RDMA_CM_EVENT_REJECTED)) {
		ret->private_len =
		        (uint8_t)(n < sizeof(ret->private_data) ? n : sizeof(ret->private_data));
		memcpy(ret->private_data, data, ret->private_len);
	}
	(void)rdma_ack_cm_event(e);
	return 1;
}

int verbs_id_new(struct rdma_event_channel *c, struct rdma_cm_id **ret)
{
	return from_minus(rdma_create_id(c, ret, NULL, RDMA_PS_TCP));
}

struct rdma_cm_id *verbs_id_free(struct rdma_cm_id *id)
{
	if (id)
		(void)rdma_destroy_id(id);
	return NULL;
}

int verbs_id_move(struct rdma_cm_id *id, struct rdma_event_channel *c)
{
	return from_minus(rdma_migrate_id(id, c));
}

int verbs_set_ack_timeout(struct rdma_cm_id *id, uint8_t exponent)
{
	return from_minus(rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &exponent,
	                                  sizeof(exponent)));
}

int verbs_listen(struct rdma_cm_id *id, const struct sockaddr *addr, uint16_t *port)
{
	struct sockaddr_storage a = {0};
	int r;

	memcpy(&a, addr,
	       addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
	                                   : sizeof(struct sockaddr_in));
	r = from_minus(rdma_bind_addr(id, (struct sockaddr *)&a));
	/* An address that no RDMA device has is bound all the same, to none. */
	if (r == 0 && !id->verbs)
		r = -ENODEV;
	if (r == 0)
		r = from_minus(rdma_listen(id, BACKLOG));
	if (r == 0)
		*port = ntohs(rdma_get_src_port(id));
	return r;
}

int verbs_resolve_addr(struct rdma_cm_id *id, const struct sockaddr *from,
                       const struct sockaddr *to, int timeout_ms)
{
	return from_minus(
	        rdma_resolve_addr(id, (struct sockaddr *)from, (struct sockaddr *)to, timeout_ms));
}

int verbs_resolve_route(struct rdma_cm_id *id, int timeout_ms)
{
	return from_minus(rdma_resolve_route(id, timeout_ms));
}

/* 7 would mean for ever. */
static uint8_t clamp_retries(uint8_t retries)
{
	return retries < 1 ? 1 : retries > 6 ? 6 : retries;
}

int verbs_connect(struct rdma_cm_id *id, const void *data, uint8_t len, uint8_t retries)
{
	struct rdma_conn_param p = {
	        .private_data = data,
	        .private_data_len = len,
	        .retry_count = clamp_retries(retries),
	        .rnr_retry_count = clamp_retries(retries),
	};

	return from_minus(rdma_connect(id, &p));
}

int verbs_accept(struct rdma_cm_id *id, uint8_t retries)
{
	struct rdma_conn_param p = {.rnr_retry_count = clamp_retries(retries)};

	return from_minus(rdma_accept(id, &p));
}

int verbs_reject(struct rdma_cm_id *id, const void *data, uint8_t len)
{
	return from_minus(rdma_reject(id, data, len));
}

void verbs_disconnect(struct rdma_cm_id *id)
{
	(void)rdma_disconnect(id);
}

/* --- objects --------------------------------------------------------------------------- */

int verbs_pd_new(struct ibv_context *ctx, struct ibv_pd **ret)
{
	if (!ctx)
		return -ENODEV;
	errno = 0;
	*ret = ibv_alloc_pd(ctx);
	return *ret ? 0 : from_null();
}

struct ibv_pd *verbs_pd_free(struct ibv_pd *pd)
{
	if (pd)
		(void)ibv_dealloc_pd(pd);
	return NULL;
}

int verbs_comp_channel_new(struct ibv_context *ctx, struct ibv_comp_channel **ret)
{
	struct ibv_comp_channel *c;
	int r;

	errno = 0;
	c = ibv_create_comp_channel(ctx);
	if (!c)
		return from_null();
	r = nonblocking(c->fd);
	if (r < 0) {
		(void)ibv_destroy_comp_channel(c);
		return r;
	}
	*ret = c;
	return 0;
}

struct ibv_comp_channel *verbs_comp_channel_free(struct ibv_comp_channel *c)
{
	if (c)
		(void)ibv_destroy_comp_channel(c);
	return NULL;
}

int verbs_cq_new(struct ibv_context *ctx, int entries, struct ibv_comp_channel *c,
                 struct ibv_cq **ret)
{
	errno = 0;
	*ret = ibv_create_cq(ctx, entries, NULL, c, 0);
	return *ret ? 0 : from_null();
}

struct ibv_cq *verbs_cq_free(struct ibv_cq *cq)
{
	if (cq)
		(void)ibv_destroy_cq(cq);
	return NULL;
}

int verbs_cq_arm(struct ibv_cq *cq)
{
	return from_positive(ibv_req_notify_cq(cq, 0));
}

int verbs_cq_wakeups(struct ibv_comp_channel *c, struct ibv_cq *cq)
{
	struct ibv_cq *which;
	unsigned n = 0;
	void *ctx;
	int r = 0;

	while (ibv_get_cq_event(c, &which, &ctx) == 0)
		n++;
	if (errno != EAGAIN && errno != EINTR)
		r = from_minus(-1);
	if (n)
		ibv_ack_cq_events(cq, n);
	return r < 0 ? r : (int)n;
}

int verbs_poll(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	int r = ibv_poll_cq(cq, n, wc);

	return r < 0 ? -EIO : r; /* errno isn't set reliably */
}

int verbs_wc_error(const struct ibv_wc *wc)
{
	switch (wc->status) {
	case IBV_WC_SUCCESS:
		return 0;
	case IBV_WC_WR_FLUSH_ERR:
		return -ECANCELED;
	case IBV_WC_RETRY_EXC_ERR:
	case IBV_WC_RNR_RETRY_EXC_ERR:
	case IBV_WC_RESP_TIMEOUT_ERR:
		return -ETIMEDOUT;
	case IBV_WC_REM_ACCESS_ERR:
	case IBV_WC_LOC_PROT_ERR:
	case IBV_WC_LOC_ACCESS_ERR:
		return -EACCES;
	case IBV_WC_REM_INV_REQ_ERR:
	case IBV_WC_BAD_RESP_ERR:
	case IBV_WC_LOC_LEN_ERR:
		return -EPROTO;
	case IBV_WC_REM_OP_ERR:
	case IBV_WC_REM_ABORT_ERR:
		return -EREMOTEIO;
	case IBV_WC_FATAL_ERR:
		return -ENODEV;
	default:
		return -EIO;
	}
}

const char *verbs_wc_text(const struct ibv_wc *wc)
{
	return ibv_wc_status_str(wc->status);
}

int verbs_qp_new(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_cq *cq,
                 const struct verbs_qp_size *size)
{
	struct ibv_qp_init_attr a = {
	        .send_cq = cq,
	        .recv_cq = cq,
	        .qp_type = IBV_QPT_RC,
	        .sq_sig_all = 1,
	        .cap = {.max_send_wr = size->send,
	                .max_recv_wr = size->recv,
	                .max_send_sge = size->sge,
	                .max_recv_sge = 1},
	};

	return from_minus(rdma_create_qp(id, pd, &a));
}

void verbs_qp_free(struct rdma_cm_id *id)
{
	if (id && id->qp)
		rdma_destroy_qp(id);
}

int verbs_mr_new(struct ibv_pd *pd, void *addr, size_t len, int access, struct ibv_mr **ret)
{
	struct ibv_mr *mr;

	errno = 0;
	mr = ibv_reg_mr(pd, addr, len, access);
	if (!mr)
		return from_null();
	*ret = mr;
	return 0;
}

struct ibv_mr *verbs_mr_free(struct ibv_mr *mr)
{
	if (mr)
		(void)ibv_dereg_mr(mr);
	return NULL;
}

int verbs_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;

	return from_positive(ibv_post_send(qp, wr, &bad));
}

int verbs_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr)
{
	struct ibv_recv_wr *bad;

	return from_positive(ibv_post_recv(qp, wr, &bad));
}

/* --- device ---------------------------------------------------------------------------- */

int verbs_async_fd(struct ibv_context *ctx)
{
	int r = nonblocking(ctx->async_fd);

	return r < 0 ? r : ctx->async_fd;
}

static int async_error(enum ibv_event_type type)
{
	switch (type) {
	case IBV_EVENT_DEVICE_FATAL:
		return -ENODEV;
	case IBV_EVENT_PORT_ERR:
		return 0; /* a cable may come back: retries and failure_timeout judge */
	case IBV_EVENT_CQ_ERR:
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_PATH_MIG_ERR:
	case IBV_EVENT_WQ_FATAL:
	case IBV_EVENT_SRQ_ERR:
		return -EIO;
	default:
		return 0;
	}
}

static bool about_qp(enum ibv_event_type type)
{
	switch (type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_COMM_EST:
	case IBV_EVENT_SQ_DRAINED:
	case IBV_EVENT_PATH_MIG:
	case IBV_EVENT_PATH_MIG_ERR:
	case IBV_EVENT_QP_LAST_WQE_REACHED:
		return true;
	default:
		return false;
	}
}

int verbs_async_event(struct ibv_context *ctx, struct verbs_async *ret)
{
	struct ibv_async_event e;

	if (ibv_get_async_event(ctx, &e) != 0)
		return errno == EAGAIN || errno == EINTR ? 0 : from_minus(-1);
	*ret = (struct verbs_async){.error = async_error(e.event_type),
	                            .qp = about_qp(e.event_type) ? e.element.qp : NULL,
	                            .text = ibv_event_type_str(e.event_type)};
	ibv_ack_async_event(&e);
	return 1;
}

int verbs_device_open(struct ibv_context **ret)
{
	struct ibv_device **list;
	int n = 0;

	errno = 0;
	*ret = NULL;
	list = ibv_get_device_list(&n);
	if (!list)
		return errno == ENOSYS ? -ENODEV : from_null();
	errno = ENODEV;
	if (n > 0)
		*ret = ibv_open_device(list[0]);
	ibv_free_device_list(list);
	return *ret ? 0 : from_null();
}

struct ibv_context *verbs_device_close(struct ibv_context *ctx)
{
	if (ctx)
		(void)ibv_close_device(ctx);
	return NULL;
}

static bool may_lock(void)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{0}};

	return syscall(SYS_capget, &h, d) == 0 &&
	       d[CAP_IPC_LOCK / 32].effective >> CAP_IPC_LOCK & 1;
}

uint64_t verbs_memlock_limit(void)
{
	struct rlimit l;

	if (may_lock() || getrlimit(RLIMIT_MEMLOCK, &l) < 0 || l.rlim_cur == RLIM_INFINITY)
		return UINT64_MAX;
	return l.rlim_cur;
}
