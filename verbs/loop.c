/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Two queue pairs of one port, connected to each other by hand. */
#include <string.h>

#include "errors.h"
#include "verbs.h"

#define LOOP_TIMEOUT 14 /* 67 ms until a packet is sent again */
#define LOOP_RETRIES 3

struct port {
	uint8_t number;
	struct ibv_port_attr attr;
	uint8_t index; /* of the address that is used */
	union ibv_gid gid;
};

static int active_port(struct ibv_context *ctx, struct port *p)
{
	struct ibv_device_attr d;
	int r = from_positive(ibv_query_device(ctx, &d));

	for (p->number = 1; r == 0 && p->number <= d.phys_port_cnt; p->number++) {
		r = from_positive(ibv_query_port(ctx, p->number, &p->attr));
		if (r == 0 && p->attr.state == IBV_PORT_ACTIVE)
			return 0;
	}
	return r < 0 ? r : -ENETDOWN;
}

/* Not every place of a port's table has an address. */
static bool take_address(struct ibv_context *ctx, struct port *p, int index)
{
	static const union ibv_gid none;

	p->index = (uint8_t)index;
	return ibv_query_gid(ctx, p->number, index, &p->gid) == 0 &&
	       memcmp(&p->gid, &none, sizeof(none)) != 0;
}

static int to_init(struct ibv_qp *qp, const struct port *p)
{
	struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT,
	                        .port_num = p->number,
	                        .qp_access_flags =
	                                IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE};

	return from_positive(ibv_modify_qp(
	        qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
}

static int to_ready(struct ibv_qp *qp, const struct port *p, uint32_t peer)
{
	struct ibv_qp_attr a = {
	        .qp_state = IBV_QPS_RTR,
	        .path_mtu = p->attr.active_mtu,
	        .dest_qp_num = peer,
	        .ah_attr = {.is_global = p->attr.link_layer == IBV_LINK_LAYER_ETHERNET,
	                    .dlid = p->attr.lid,
	                    .port_num = p->number,
	                    .grh = {.dgid = p->gid, .sgid_index = p->index, .hop_limit = 1}}};
	int r = from_positive(ibv_modify_qp(
	        qp, &a,
	        IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
	                IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));

	if (r < 0)
		return r;
	a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS,
	                         .timeout = LOOP_TIMEOUT,
	                         .retry_cnt = LOOP_RETRIES,
	                         .rnr_retry = LOOP_RETRIES};
	return from_positive(ibv_modify_qp(qp, &a,
	                                   IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
	                                           IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
	                                           IBV_QP_MAX_QP_RD_ATOMIC));
}

void verbs_loop_free(struct ibv_qp *qp[2])
{
	for (int i = 0; i < 2; i++) {
		if (qp[i])
			(void)ibv_destroy_qp(qp[i]);
		qp[i] = NULL;
	}
}

static int make_pair(struct ibv_pd *pd, struct ibv_qp_init_attr *init, const struct port *p,
                     struct ibv_qp *ret[2])
{
	int r = 0;

	for (int i = 0; r == 0 && i < 2; i++) {
		errno = 0;
		ret[i] = ibv_create_qp(pd, init);
		r = ret[i] ? to_init(ret[i], p) : from_null();
	}
	for (int i = 0; r == 0 && i < 2; i++)
		r = to_ready(ret[i], p, ret[!i]->qp_num);
	if (r < 0)
		verbs_loop_free(ret);
	return r;
}

int verbs_loop_new(struct ibv_pd *pd, struct ibv_cq *cq, const struct verbs_qp_size *size,
                   struct ibv_qp *ret[2])
{
	struct ibv_qp_init_attr init = {
	        .send_cq = cq,
	        .recv_cq = cq,
	        .qp_type = IBV_QPT_RC,
	        .sq_sig_all = 1,
	        .cap = {.max_send_wr = size->send,
	                .max_recv_wr = size->recv,
	                .max_send_sge = size->sge,
	                .max_recv_sge = 1},
	};
	struct port p;
	int r = active_port(pd->context, &p);
	bool made = false;

	ret[0] = ret[1] = NULL;
	if (r < 0)
		return r;
	/* The first address of an Ethernet port is IPv6's, which may be switched off: the next is
	 * tried. */
	r = -ENETUNREACH;
	for (int i = 0; !made && i < p.attr.gid_tbl_len && i <= UINT8_MAX; i++) {
		if (!take_address(pd->context, &p, i))
			continue;
		r = make_pair(pd, &init, &p, ret);
		made = r == 0;
	}
	return r;
}
