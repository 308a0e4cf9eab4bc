/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Backup: waits for the one RDMA connection that an RDMA_OFFER announced. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "rdma.h"

#define LISTEN_US 5000000

struct rdma_listener {
	sd_event *event;
	struct rdma_options opt;
	const struct link_events *events;
	rdma_accepted_fn accepted;
	void *ctx;
	uint64_t token[2];
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	sd_event_source *io, *limit;
};

static void stop(struct rdma_listener *l)
{
	l->io = sd_event_source_disable_unref(l->io);
	l->limit = sd_event_source_disable_unref(l->limit);
	l->id = verbs_id_free(l->id);
	l->channel = verbs_channel_free(l->channel);
}

struct rdma_listener *rdma_listen_free(struct rdma_listener *l)
{
	if (!l)
		return NULL;
	stop(l);
	free(l);
	return NULL;
}

static void refuse(struct rdma_cm_id *id, int error, const char *why)
{
	mc_warn("an RDMA connection is refused: %s", why);
	cm_refuse(id, error);
	(void)verbs_id_free(id);
}

/* 0, or why it is not the connection that was announced. */
static int check(const struct rdma_listener *l, const struct verbs_event *e, const char **why)
{
	struct mc_rdma_request q;

	memcpy(&q, e->private_data, sizeof(q));
	*why = "it isn't one of a microcheckpoint peer";
	if (e->private_len < sizeof(q) || q.magic != MC_RDMA_MAGIC || q.reserved)
		return -EPROTO;
	*why = "it speaks another version";
	if (q.version != MC_RDMA_VERSION)
		return -EPROTONOSUPPORT;
	*why = "it has another token than was given out";
	return q.token[0] == l->token[0] && q.token[1] == l->token[1] ? 0 : -EACCES;
}

/* True: the link is made. The id is taken over whatever becomes of it. */
static bool take(struct rdma_listener *l, struct rdma_cm_id *id)
{
	struct rdma *r = rdma_new(l->event, &l->opt, l->events, l->ctx);
	char why[320];
	int e;

	if (!r) {
		refuse(id, -ENOMEM, "no memory");
		return false;
	}
	e = cm_accept(r, id);
	if (e < 0)
		mc_log_errno(e, "an RDMA connection is refused: %s",
		             e == -ENOMEM ? memory_why(e, why, sizeof(why)) : "device");
	else
		e = l->accepted(l->ctx, &r->l);
	if (e < 0)
		(void)link_free(&r->l);
	return e >= 0;
}

static int on_channel(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct rdma_listener *l = userdata;
	struct verbs_event e;
	const char *why;
	bool done = false;

	(void)s;
	(void)fd;
	(void)revents;
	while (!done && verbs_next_event(l->channel, &e) == 1) {
		int r;

		if (e.type == RDMA_CM_EVENT_DEVICE_REMOVAL) {
			done = true;
			break;
		}
		if (e.type != RDMA_CM_EVENT_CONNECT_REQUEST)
			continue;
		r = check(l, &e, &why);
		if (r < 0)
			refuse(e.id, r, why);
		else
			done = take(l, e.id);
	}
	if (done)
		stop(l);
	return 0;
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	stop(userdata);
	return 0;
}

int rdma_listen_new(struct rdma_listener **ret, sd_event *event, const struct link *asked,
                    const struct rdma_options *opt, const struct link_events *events,
                    rdma_accepted_fn accepted, void *ctx, struct mc_wire_rdma_offer *offer)
{
	struct rdma_listener *l = calloc(1, sizeof(*l));
	struct sockaddr_storage a;
	uint16_t port = 0;
	int e = l ? cm_local_address(tcp_socket(asked), &a) : -ENOMEM;

	if (!l)
		return e;
	l->event = event;
	l->opt = *opt;
	l->events = events;
	l->accepted = accepted;
	l->ctx = ctx;
	if (e == 0 && getrandom(l->token, sizeof(l->token), 0) != sizeof(l->token))
		e = -EIO;
	if (e == 0)
		e = verbs_channel_new(&l->channel);
	if (e == 0)
		e = verbs_id_new(l->channel, &l->id);
	if (e == 0)
		e = verbs_listen(l->id, (struct sockaddr *)&a, &port);
	if (e == 0)
		e = sd_event_add_io(event, &l->io, l->channel->fd, EPOLLIN, on_channel, l);
	if (e >= 0)
		e = sd_event_add_time_relative(event, &l->limit, CLOCK_MONOTONIC, LISTEN_US, 100000,
		                               on_limit, l);
	if (e < 0) {
		(void)rdma_listen_free(l);
		return e;
	}
	*offer = (struct mc_wire_rdma_offer){.token = {l->token[0], l->token[1]}, .port = port};
	*ret = l;
	return 0;
}
