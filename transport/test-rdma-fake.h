/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A device and a connection manager that do what a test says: the calls of verbs.h, wrapped at
 * link time.  What is posted is recorded; completions and events come when the test puts them in.
 */
#ifndef MC_TRANSPORT_TEST_RDMA_FAKE_H
#define MC_TRANSPORT_TEST_RDMA_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "rdma.h"

#define FAKE_MAX 256

struct fake_send {
	enum ibv_wr_opcode opcode;
	uint64_t wr_id, remote;
	uint32_t rkey, len;
	uint8_t data[96]; /* begin of a SEND */
};

struct fake {
	const char *fails; /* call that fails, */
	int error;         /* with this, */
	int passes;        /* after so many that don't */
	int cm_fd, comp_fd, async_fd;
	struct verbs_event event[16];
	unsigned events, event_at;
	struct ibv_wc wc[FAKE_MAX];
	unsigned wcs, wc_at;
	struct verbs_async async;
	bool have_async;
	struct fake_send send[FAKE_MAX];
	unsigned sends;
	unsigned recvs;
	struct ibv_recv_wr recv_wr[FAKE_MAX];
	uint64_t recv_addr[FAKE_MAX];
	int alive; /* objects */
	int mrs;   /* registrations among them */
	uint32_t next_key;
	uint8_t retries;
	struct mc_rdma_request request;
	uint64_t memlock;
	struct ibv_device device;
	struct ibv_context ctx;
	struct ibv_qp qp;
};

static struct fake fake;

static inline void fake_reset(void)
{
	fake = (struct fake){.memlock = UINT64_MAX, .next_key = 100};
	fake.cm_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	fake.comp_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	fake.async_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	fake.ctx.device = &fake.device;
}

static inline void fake_close(void)
{
	close(fake.cm_fd);
	close(fake.comp_fd);
	close(fake.async_fd);
}

static inline int fails(const char *name)
{
	if (!fake.fails || strcmp(fake.fails, name) != 0 || fake.passes-- > 0)
		return 0;
	fake.fails = NULL;
	return fake.error;
}

static inline void wake(int fd)
{
	uint64_t one = 1;

	assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
}

static inline void quieten(int fd)
{
	uint64_t n;

	(void)!read(fd, &n, sizeof(n));
}

static inline void put_event(enum rdma_cm_event_type type, int error)
{
	fake.event[fake.events++ % 16] = (struct verbs_event){.type = type, .error = error};
	wake(fake.cm_fd);
}

static inline void put_wc(uint64_t wr_id, enum ibv_wc_status status, uint32_t len)
{
	fake.wc[fake.wcs++ % FAKE_MAX] =
	        (struct ibv_wc){.wr_id = wr_id, .status = status, .byte_len = len};
	wake(fake.comp_fd);
}

/* --- the calls ------------------------------------------------------------------------- */

#define WRAP(type, name, ...)                                                                      \
	type __wrap_verbs_##name(__VA_ARGS__);                                                     \
	type __wrap_verbs_##name(__VA_ARGS__)

#define NEW(name, object)                                                                          \
	do {                                                                                       \
		int r_ = fails(name);                                                              \
		if (r_ < 0)                                                                        \
			return r_;                                                                 \
		*ret = (object);                                                                   \
		fake.alive++;                                                                      \
		return 0;                                                                          \
	} while (0)

#define FREE(p)                                                                                    \
	do {                                                                                       \
		if (p) {                                                                           \
			free(p);                                                                   \
			fake.alive--;                                                              \
		}                                                                                  \
		return NULL;                                                                       \
	} while (0)

WRAP(int, channel_new, struct rdma_event_channel **ret)
{
	struct rdma_event_channel *c = calloc(1, sizeof(*c));
	int r = fails("channel");

	c->fd = fake.cm_fd;
	if (r < 0) {
		free(c);
		return r;
	}
	*ret = c;
	fake.alive++;
	return 0;
}

WRAP(struct rdma_event_channel *, channel_free, struct rdma_event_channel *c)
{
	FREE(c);
}

WRAP(int, next_event, struct rdma_event_channel *c, struct verbs_event *ret)
{
	(void)c;
	quieten(fake.cm_fd);
	if (fake.event_at == fake.events)
		return fails("event");
	*ret = fake.event[fake.event_at++ % 16];
	return 1;
}

WRAP(int, id_new, struct rdma_event_channel *c, struct rdma_cm_id **ret)
{
	int r = fails("id");

	(void)c;
	if (r < 0)
		return r;
	*ret = calloc(1, sizeof(**ret));
	(*ret)->verbs = &fake.ctx;
	fake.alive++;
	return 0;
}

WRAP(struct rdma_cm_id *, id_free, struct rdma_cm_id *id)
{
	if (id)
		assert_null(id->qp);
	FREE(id);
}

WRAP(int, id_move, struct rdma_cm_id *id, struct rdma_event_channel *c)
{
	(void)id;
	(void)c;
	return fails("move");
}

WRAP(int, set_ack_timeout, struct rdma_cm_id *id, uint8_t exponent)
{
	(void)id;
	assert_in_range(exponent, 10, 20);
	return fails("ack-timeout");
}

WRAP(int, resolve_addr, struct rdma_cm_id *id, const struct sockaddr *from,
     const struct sockaddr *to, int timeout_ms)
{
	(void)id;
	(void)from;
	(void)to;
	assert_true(timeout_ms > 0);
	return fails("resolve-addr");
}

WRAP(int, resolve_route, struct rdma_cm_id *id, int timeout_ms)
{
	(void)id;
	assert_true(timeout_ms > 0);
	return fails("resolve-route");
}

WRAP(int, connect, struct rdma_cm_id *id, const void *data, uint8_t len, uint8_t retries)
{
	(void)id;
	assert_int_equal(len, sizeof(fake.request));
	memcpy(&fake.request, data, len);
	fake.retries = retries;
	return fails("connect");
}

WRAP(int, accept, struct rdma_cm_id *id, uint8_t retries)
{
	(void)id;
	fake.retries = retries;
	return fails("accept");
}

WRAP(int, reject, struct rdma_cm_id *id, const void *data, uint8_t len)
{
	(void)id;
	(void)data;
	(void)len;
	return 0;
}

WRAP(void, disconnect, struct rdma_cm_id *id)
{
	(void)id;
}

WRAP(int, pd_new, struct ibv_context *ctx, struct ibv_pd **ret)
{
	assert_non_null(ctx);
	NEW("pd", calloc(1, sizeof(struct ibv_pd)));
}

WRAP(struct ibv_pd *, pd_free, struct ibv_pd *pd)
{
	assert_int_equal(fake.mrs, 0);
	FREE(pd);
}

WRAP(int, comp_channel_new, struct ibv_context *ctx, struct ibv_comp_channel **ret)
{
	int r = fails("comp-channel");

	(void)ctx;
	if (r < 0)
		return r;
	*ret = calloc(1, sizeof(**ret));
	(*ret)->fd = fake.comp_fd;
	fake.alive++;
	return 0;
}

WRAP(struct ibv_comp_channel *, comp_channel_free, struct ibv_comp_channel *c)
{
	FREE(c);
}

WRAP(int, cq_new, struct ibv_context *ctx, int entries, struct ibv_comp_channel *c,
     struct ibv_cq **ret)
{
	(void)ctx;
	(void)c;
	assert_true(entries >= SENDS + CHUNKS + MC_RDMA_RECVS);
	NEW("cq", calloc(1, sizeof(struct ibv_cq)));
}

WRAP(struct ibv_cq *, cq_free, struct ibv_cq *cq)
{
	FREE(cq);
}

WRAP(int, cq_arm, struct ibv_cq *cq)
{
	(void)cq;
	return fails("arm");
}

WRAP(int, cq_wakeups, struct ibv_comp_channel *c, struct ibv_cq *cq)
{
	(void)c;
	(void)cq;
	quieten(fake.comp_fd);
	return fails("wakeups");
}

WRAP(int, poll, struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	int k = 0, r = fails("poll");

	(void)cq;
	if (r < 0)
		return r;
	while (k < n && fake.wc_at < fake.wcs)
		wc[k++] = fake.wc[fake.wc_at++ % FAKE_MAX];
	return k;
}

WRAP(int, qp_new, struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_cq *cq,
     const struct verbs_qp_size *size)
{
	int r = fails("qp");

	(void)pd;
	(void)cq;
	(void)size;
	if (r < 0)
		return r;
	id->qp = &fake.qp;
	fake.alive++;
	return 0;
}

WRAP(void, qp_free, struct rdma_cm_id *id)
{
	if (id->qp)
		fake.alive--;
	id->qp = NULL;
}

WRAP(int, mr_new, struct ibv_pd *pd, void *addr, size_t len, int access, struct ibv_mr **ret)
{
	int r = fails("mr");

	(void)pd;
	(void)access;
	if (r < 0)
		return r;
	*ret = calloc(1, sizeof(**ret));
	(*ret)->addr = addr;
	(*ret)->length = len;
	(*ret)->lkey = (*ret)->rkey = fake.next_key++;
	fake.alive++;
	fake.mrs++;
	return 0;
}

WRAP(struct ibv_mr *, mr_free, struct ibv_mr *mr)
{
	fake.mrs -= !!mr;
	FREE(mr);
}

WRAP(int, post_send, struct ibv_qp *qp, struct ibv_send_wr *wr)
{
	struct fake_send *s = &fake.send[fake.sends % FAKE_MAX];
	int r = fails("post-send");

	assert_ptr_equal(qp, &fake.qp);
	if (r < 0)
		return r;
	*s = (struct fake_send){.opcode = wr->opcode,
	                        .wr_id = wr->wr_id,
	                        .remote = wr->wr.rdma.remote_addr,
	                        .rkey = wr->wr.rdma.rkey,
	                        .len = wr->sg_list->length};
	if (wr->opcode == IBV_WR_SEND)
		memcpy(s->data, (void *)(uintptr_t)wr->sg_list->addr,
		       mc_min_u64(s->len, sizeof(s->data)));
	fake.sends++;
	return 0;
}

WRAP(int, post_recv, struct ibv_qp *qp, struct ibv_recv_wr *wr)
{
	int r = fails("post-recv");

	(void)qp;
	if (r < 0)
		return r;
	fake.recv_addr[fake.recvs % FAKE_MAX] = wr->sg_list->addr;
	fake.recv_wr[fake.recvs++ % FAKE_MAX] = *wr;
	return 0;
}

WRAP(int, async_fd, struct ibv_context *ctx)
{
	int r = fails("async-fd");

	(void)ctx;
	return r < 0 ? r : fake.async_fd;
}

WRAP(int, async_event, struct ibv_context *ctx, struct verbs_async *ret)
{
	(void)ctx;
	quieten(fake.async_fd);
	if (!fake.have_async)
		return 0;
	fake.have_async = false;
	*ret = fake.async;
	return 1;
}

WRAP(uint64_t, memlock_limit, void)
{
	return fake.memlock;
}

#endif
