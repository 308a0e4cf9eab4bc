/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Connecting.  The primary asks over TCP, at the one port of the host, for the RDMA port of its
 * guest (RDMA_ASK); the guest's transport there begins to listen on the address that was asked,
 * for a few seconds, and says where and under which token (RDMA_OFFER).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "rdma.h"

/* An IPv4 address that came through an IPv6 socket, as what it is; @port in host order. */
static int socket_address(int fd, bool peer, uint16_t port, struct sockaddr_storage *a)
{
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)a;
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
	socklen_t len = sizeof(*a);

	memset(a, 0, sizeof(*a));
	if ((peer ? getpeername(fd, (struct sockaddr *)a, &len)
	          : getsockname(fd, (struct sockaddr *)a, &len)) < 0)
		return -errno;
	if (a->ss_family == AF_INET) {
		((struct sockaddr_in *)a)->sin_port = htons(port);
	} else if (a->ss_family != AF_INET6) {
		return -EAFNOSUPPORT;
	} else if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
		memcpy(&four.sin_addr, six->sin6_addr.s6_addr + 12, 4);
		memset(a, 0, sizeof(*a));
		memcpy(a, &four, sizeof(four));
	} else {
		six->sin6_port = htons(port);
	}
	return 0;
}

int cm_local_address(int fd, struct sockaddr_storage *a)
{
	return socket_address(fd, false, 0, a);
}

/* Four transmissions of a packet take at most half of failure_timeout. */
static uint8_t ack_timeout(const struct rdma *r)
{
	uint64_t limit = (uint64_t)r->opt.failure_timeout_ms * MC_NS_PER_MS / 2;
	uint8_t e = 10;

	while (e < 20 && (RETRIES + 1) * (4096ULL << (e + 1)) <= limit)
		e++;
	return e;
}

/* --- objects --------------------------------------------------------------------------- */

static int make_objects(struct rdma *r, uint64_t slabs)
{
	const struct verbs_qp_size size = {
	        .send = SENDS + 1 + CHUNKS, .recv = MC_RDMA_RECVS, .sge = 1};
	int e = verbs_pd_new(r->id->verbs, &r->pd);

	if (e == 0)
		e = verbs_comp_channel_new(r->id->verbs, &r->comp);
	if (e == 0)
		e = verbs_cq_new(r->id->verbs, CQ_ENTRIES, r->comp, &r->cq);
	if (e == 0)
		e = verbs_qp_new(r->id, r->pd, r->cq, &size);
	if (e == 0)
		e = memory_open(r, slabs);
	if (e == 0)
		e = receive_post_all(r);
	if (e == 0)
		e = events_watch_device(r);
	return e;
}

void cm_end_io(struct rdma *r)
{
	r->comp_io = sd_event_source_disable_unref(r->comp_io);
	r->async_io = sd_event_source_disable_unref(r->async_io);
	if (r->id && r->id->qp) {
		verbs_disconnect(r->id);
		verbs_qp_free(r->id);
	}
}

void cm_free(struct rdma *r)
{
	r->ask = link_free(r->ask);
	r->channel_io = sd_event_source_disable_unref(r->channel_io);
	cm_end_io(r);
	memory_free(r);
	r->cq = verbs_cq_free(r->cq);
	r->comp = verbs_comp_channel_free(r->comp);
	r->pd = verbs_pd_free(r->pd);
	r->id = verbs_id_free(r->id);
	r->channel = verbs_channel_free(r->channel);
}

/* --- events of the connection ---------------------------------------------------------- */

/* The connection can't be made, or is no more. */
static void lost(struct rdma *r, int error, const char *why)
{
	r->l.try_other = r->state == RDMA_RESOLVING || r->state == RDMA_CONNECTING;
	r->broken = true;
	rdma_closed(r, error, "%s", why);
}

static void request(struct rdma *r)
{
	const struct mc_rdma_request q = {.magic = MC_RDMA_MAGIC,
	                                  .version = MC_RDMA_VERSION,
	                                  .token = {r->token[0], r->token[1]}};
	char why[320];
	int e = make_objects(r, r->opt.pool->max);

	if (e == 0)
		e = verbs_set_ack_timeout(r->id, ack_timeout(r));
	if (e == 0)
		e = verbs_connect(r->id, &q, sizeof(q), RETRIES);
	if (e == -ENOMEM)
		lost(r, e, memory_why(e, why, sizeof(why)));
	else if (e < 0)
		lost(r, e, "the RDMA device refuses the connection; mcctl doctor lists devices");
	else
		r->state = RDMA_CONNECTING;
}

static void rejected(struct rdma *r, const struct verbs_event *e)
{
	struct mc_rdma_refusal f;
	char why[160];

	memcpy(&f, e->private_data, sizeof(f));
	if (e->private_len < sizeof(f) || f.magic != MC_RDMA_MAGIC) {
		lost(r, e->error,
		     "the peer's RDMA port refuses the connection; does mc-supervisor run there, "
		     "with an RDMA device?");
		return;
	}
	if (f.version != MC_RDMA_VERSION)
		snprintf(why, sizeof(why),
		         "the backup speaks version %u of the link by RDMA, this is version %u: "
		         "install the same release on both hosts",
		         f.version, MC_RDMA_VERSION);
	else
		snprintf(why, sizeof(why),
		         "the backup can't take the link by RDMA; --transport tcp does without");
	lost(r, f.error && f.error < 4096 ? -(int)f.error : e->error, why);
}

static void on_event(struct rdma *r, const struct verbs_event *e)
{
	int err;

	switch (e->type) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
		err = verbs_resolve_route(r->id, (int)r->opt.failure_timeout_ms);
		if (err < 0)
			lost(r, err,
			     "no RDMA route to the peer; is `peer` the address of the device's "
			     "interface?");
		break;
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		request(r);
		break;
	case RDMA_CM_EVENT_ESTABLISHED:
		if (r->state == RDMA_CONNECTING)
			rdma_up(r);
		break;
	case RDMA_CM_EVENT_REJECTED:
		rejected(r, e);
		break;
	case RDMA_CM_EVENT_DISCONNECTED:
		events_drain(r); /* what came before */
		lost(r, e->error, "peer closed the connection");
		break;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		lost(r, e->error, "the RDMA device was removed");
		break;
	default:
		if (e->error < 0)
			lost(r, e->error, rdma_event_str(e->type));
	}
}

static int on_channel(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct rdma *r = userdata;
	struct verbs_event e;
	int n;

	(void)s;
	(void)fd;
	(void)revents;
	while ((n = verbs_next_event(r->channel, &e)) == 1)
		if (r->state != RDMA_DEAD)
			on_event(r, &e);
	if (n < 0)
		lost(r, n, "the RDMA event channel failed");
	(void)rdma_linger_over(r);
	return 0;
}

static int watch_channel(struct rdma *r)
{
	return sd_event_add_io(r->event, &r->channel_io, r->channel->fd, EPOLLIN, on_channel, r);
}

/* --- primary --------------------------------------------------------------------------- */

static int resolve(struct rdma *r, uint16_t port)
{
	struct sockaddr_storage to, from;
	int fd = tcp_socket(r->ask), e = socket_address(fd, true, port, &to);

	if (e == 0)
		e = cm_local_address(fd, &from);
	if (e == 0)
		e = verbs_channel_new(&r->channel);
	if (e == 0)
		e = verbs_id_new(r->channel, &r->id);
	if (e == 0)
		e = watch_channel(r);
	if (e >= 0)
		e = verbs_resolve_addr(r->id, (struct sockaddr *)&from, (struct sockaddr *)&to,
		                       (int)r->opt.failure_timeout_ms);
	return e;
}

static void take_offer(struct rdma *r, const void *payload, size_t len)
{
	struct mc_wire_rdma_offer o;
	char text[MC_WHY_MAX];
	int e;

	memcpy(&o, payload, sizeof(o));
	if (o.length >= MC_WHY_MAX || len != sizeof(o) + o.length || o.port > UINT16_MAX) {
		rdma_closed(r, -EPROTO, "RDMA_OFFER with a field out of range");
		return;
	}
	r->state = RDMA_RESOLVING;
	if (!o.port) {
		for (uint32_t i = 0; i < o.length; i++) {
			char c = ((const char *)payload)[sizeof(o) + i];

			text[i] = c >= ' ' && c < 127 ? c : '?';
		}
		text[o.length] = '\0';
		lost(r, -EOPNOTSUPP, text);
		return;
	}
	memcpy(r->token, o.token, sizeof(r->token));
	e = resolve(r, (uint16_t)o.port);
	if (e < 0)
		lost(r, e,
		     e == -ENODEV ? "this host has no RDMA device for the peer's network (mcctl "
		                    "doctor lists them)"
		                  : "the peer's RDMA port can't be resolved; is its address that "
		                    "of an RDMA device?");
}

/* An offer, or the refusal of the supervisor or of the guest's transport. */
static int on_answer(void *ctx, struct link *l, const struct mc_wire_header *h, const void *payload,
                     uint64_t slab)
{
	struct rdma *r = ctx;
	int e;

	(void)l;
	(void)slab;
	if (r->state != RDMA_ASKING)
		return 0;
	if (h->type == MC_MSG_RDMA_OFFER) {
		take_offer(r, payload, h->length);
		return 0;
	}
	if (h->type != MC_MSG_END)
		return -EPROTO;
	e = r->l.events->message(r->l.ctx, &r->l, h, payload, 0);
	rdma_closed(r, e < 0 ? e : -ECONNREFUSED, "what the peer sent is refused");
	return 0;
}

static uint64_t no_slab(void *ctx, struct link *l, void **data)
{
	(void)ctx;
	(void)l;
	(void)data;
	return 0;
}

static void ask_closed(void *ctx, struct link *l, int error, const char *why)
{
	struct rdma *r = ctx;

	(void)l;
	if (r->state == RDMA_ASKING)
		rdma_closed(r, error, "%s", why);
}

/* Only control messages: no slab goes either way. */
static const struct link_events ask_events = {
        .message = on_answer,
        .lend = no_slab,
        .closed = ask_closed,
};

int cm_ask(struct rdma *r, int fd, const struct tls_creds *creds, const char *guest)
{
	struct mc_wire_rdma_ask ask = {0};
	int e = tcp_link_new(&r->ask, r->event, fd, creds, &ask_events, r);

	if (e < 0)
		return e;
	r->state = RDMA_ASKING;
	r->ask->limits = (struct mc_wire_limits){.slab_size = 1, .from = MC_SIDE_BACKUP};
	snprintf(ask.guest, sizeof(ask.guest), "%s", guest);
	(void)link_send(r->ask, MC_MSG_RDMA_ASK, 0, &ask, sizeof(ask));
	return 0;
}

/* --- backup ---------------------------------------------------------------------------- */

void cm_refuse(struct rdma_cm_id *id, int error)
{
	const struct mc_rdma_refusal f = {
	        .magic = MC_RDMA_MAGIC, .version = MC_RDMA_VERSION, .error = (uint32_t)-error};

	(void)verbs_reject(id, &f, sizeof(f));
}

int cm_accept(struct rdma *r, struct rdma_cm_id *id)
{
	int e;

	r->id = id;
	r->state = RDMA_CONNECTING;
	e = verbs_channel_new(&r->channel);
	if (e == 0)
		e = verbs_id_move(id, r->channel);
	if (e == 0)
		e = make_objects(r, mc_min_u64(MC_RDMA_SLOTS, r->opt.pool->max));
	if (e == 0)
		e = verbs_set_ack_timeout(id, ack_timeout(r));
	if (e == 0)
		e = watch_channel(r);
	if (e >= 0)
		e = verbs_accept(id, RETRIES);
	if (e < 0)
		cm_refuse(id, e);
	return e;
}
