/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libibverbs and librdmacm with one way to fail: every call returns 0 (or a count) or a negative
 * errno, whatever the library's own style is (a pointer with errno, -1 with errno, a positive
 * errno, a status in a completion or event).  Only this folder calls these libraries; linked
 * by transport and capture.
 *
 * Nothing here logs or waits: connection events come through a channel whose fd is non-blocking.
 * Destructors take NULL and return NULL.
 */
#ifndef MC_VERBS_VERBS_H
#define MC_VERBS_VERBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

/* A connection event, copied out and acknowledged. */
struct verbs_event {
	enum rdma_cm_event_type type;
	struct rdma_cm_id *id;    /* CONNECT_REQUEST: the new one, owned by the caller */
	int error;                /* 0, or what the event means as a negative errno */
	uint8_t private_data[64]; /* of a request, answer or refusal; zero behind its end */
	uint8_t private_len;
};

/* What a queue pair needs. */
struct verbs_qp_size {
	uint32_t send, recv; /* requests outstanding at once */
	uint32_t sge;        /* pieces of a send */
};

/* --- connection manager ---------------------------------------------------------------- */

/* A channel with a non-blocking fd. -ENODEV: this host has no RDMA (module rdma_ucm). */
int verbs_channel_new(struct rdma_event_channel **ret);
struct rdma_event_channel *verbs_channel_free(struct rdma_event_channel *c);

/* 1: *ret is filled; 0: none there. -errno of the channel itself. */
int verbs_next_event(struct rdma_event_channel *c, struct verbs_event *ret);

int verbs_id_new(struct rdma_event_channel *c, struct rdma_cm_id **ret);
/* Its queue pair must be gone. */
struct rdma_cm_id *verbs_id_free(struct rdma_cm_id *id);
/* Its events come through @c from now on. */
int verbs_id_move(struct rdma_cm_id *id, struct rdma_event_channel *c);

/*
 * How long the peer may leave a packet unanswered before it is sent again: 4.096 us * 2^exponent.
 * Before connecting or accepting.
 */
int verbs_set_ack_timeout(struct rdma_cm_id *id, uint8_t exponent);

int verbs_listen(struct rdma_cm_id *id, const struct sockaddr *addr, uint16_t *port);
/* These begin something: its end is an event. */
int verbs_resolve_addr(struct rdma_cm_id *id, const struct sockaddr *from,
                       const struct sockaddr *to, int timeout_ms);
int verbs_resolve_route(struct rdma_cm_id *id, int timeout_ms);
/* @data travels with the request; at most 56 bytes. Retries are finite: @retries 1..6. */
int verbs_connect(struct rdma_cm_id *id, const void *data, uint8_t len, uint8_t retries);
int verbs_accept(struct rdma_cm_id *id, uint8_t retries);
int verbs_reject(struct rdma_cm_id *id, const void *data, uint8_t len);
/* The peer gets DISCONNECTED; our requests are flushed. */
void verbs_disconnect(struct rdma_cm_id *id);

/* --- objects --------------------------------------------------------------------------- */

/* -ENODEV when the host has no device; *ret is owned by the library of the connection manager. */
int verbs_pd_new(struct ibv_context *ctx, struct ibv_pd **ret);
struct ibv_pd *verbs_pd_free(struct ibv_pd *pd);

/* With a non-blocking fd. */
int verbs_comp_channel_new(struct ibv_context *ctx, struct ibv_comp_channel **ret);
struct ibv_comp_channel *verbs_comp_channel_free(struct ibv_comp_channel *c);

/* @c may be NULL: polled only. */
int verbs_cq_new(struct ibv_context *ctx, int entries, struct ibv_comp_channel *c,
                 struct ibv_cq **ret);
struct ibv_cq *verbs_cq_free(struct ibv_cq *cq);
/* The next completion makes the channel readable. */
int verbs_cq_arm(struct ibv_cq *cq);
/* Takes the wake-ups of a channel with one queue. Number taken, or negative errno. */
int verbs_cq_wakeups(struct ibv_comp_channel *c, struct ibv_cq *cq);
/* Completions taken, or negative errno. */
int verbs_poll(struct ibv_cq *cq, int n, struct ibv_wc *wc);
/* 0 for success; else what the status means as a negative errno. */
int verbs_wc_error(const struct ibv_wc *wc);
const char *verbs_wc_text(const struct ibv_wc *wc);

/* A reliable queue pair of the connection @id; every request is signalled. */
int verbs_qp_new(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_cq *cq,
                 const struct verbs_qp_size *size);
void verbs_qp_free(struct rdma_cm_id *id);

/*
 * Two queue pairs of one port, connected to each other without a connection manager: what is posted
 * on ret[0] moves memory within this host.  -ENETDOWN: no port is up; -ENETUNREACH: none of its
 * addresses can be used. Both or none are made.
 */
int verbs_loop_new(struct ibv_pd *pd, struct ibv_cq *cq, const struct verbs_qp_size *size,
                   struct ibv_qp *ret[2]);
void verbs_loop_free(struct ibv_qp *qp[2]);

/*
 * Registers memory: its pages are pinned until it is deregistered.  The mapping must be writable.
 * -ENOMEM: RLIMIT_MEMLOCK (verbs_memlock_short() tells), or memory. Blocks while pages that were
 * never touched are populated (5 to 10 ms for 5 MiB), else 0.2 ms for 5 MiB.
 */
int verbs_mr_new(struct ibv_pd *pd, void *addr, size_t len, int access, struct ibv_mr **ret);
struct ibv_mr *verbs_mr_free(struct ibv_mr *mr);

/* Queue full: -ENOMEM. */
int verbs_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr);
int verbs_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr);

/* --- device ---------------------------------------------------------------------------- */

/* The fd of the device's asynchronous events, made non-blocking. */
int verbs_async_fd(struct ibv_context *ctx);
/* An asynchronous event, copied out and acknowledged. */
struct verbs_async {
	int error; /* 0: news; else device, queue or queue pair are of no use any more */
	const struct ibv_qp *qp; /* the queue pair that it is about; NULL: the device */
	const char *text;
};
/* 1: *ret is filled; 0: none there. */
int verbs_async_event(struct ibv_context *ctx, struct verbs_async *ret);

/* Opens the first device of the host. -ENODEV: there is none. */
int verbs_device_open(struct ibv_context **ret);
struct ibv_context *verbs_device_close(struct ibv_context *ctx);

/* Bytes that may be pinned by this process: UINT64_MAX without a limit. */
uint64_t verbs_memlock_limit(void);

#endif
