/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which transport a connection gets.  The state machines are not told: they get a link.
 *
 * TCP: HELLO is the first message of the connection, or of TLS within it.  RDMA: the connection
 * carries RDMA_ASK and RDMA_OFFER, the link is made by RDMA after it (wire-rdma.h).  `auto` goes
 * over to TCP, and stays there, when RDMA turns out to be impossible; not when the peer is away.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "transport.h"

static struct rdma_options options(const struct transport *t)
{
	return (struct rdma_options){
	        .pool = &t->a->slabs,
	        .failure_timeout_ms = atomic_load(&t->a->config->failure_timeout_ms),
	        .poll = t->a->config->poll,
	};
}

static bool wants(const struct transport *t, const char *which)
{
	return strcmp(t->a->config->transport, which) == 0;
}

/* --- primary --------------------------------------------------------------------------- */

static void use_tcp(struct transport *t, const char *why)
{
	t->no_rdma = true;
	mc_warn("transport auto: TCP is used, RDMA isn't possible: %s", why);
	mc_worker_event(t->w, "transport", 0, "TCP is used, RDMA isn't possible: %s", why);
}

int connect_start(struct transport *t)
{
	const struct mc_config *cfg = t->a->config;
	struct rdma_options opt = options(t);
	int fd, r;

	if (wants(t, "auto") && !t->no_rdma && !cfg->insecure)
		use_tcp(t, "it isn't covered by encryption, which only insecure allows");
	if (!wants(t, "tcp") && !t->no_rdma)
		return rdma_link_connect(&t->link, t->w->event, cfg->peer, cfg->guest, &opt,
		                         &primary_events, t);
	fd = tcp_connect(cfg->peer);
	if (fd < 0)
		return fd;
	r = tcp_link_new(&t->link, t->w->event, fd, t->tls, &primary_events, t);
	if (r < 0)
		close(fd);
	return r;
}

void connect_ended(struct transport *t, const struct link *l, int error, const char *why)
{
	char text[MC_WHY_MAX];

	if (!l->try_other || t->no_rdma || !wants(t, "auto"))
		return;
	snprintf(text, sizeof(text), "%s: %s", why, strerror(-error));
	use_tcp(t, text);
}

/* --- backup ---------------------------------------------------------------------------- */

static int on_accepted(void *ctx, struct link *l)
{
	backup_link(ctx, l);
	return 0;
}

/* Listens, or says in @why what keeps it from that. */
static void listen_for(struct transport *t, int fd, struct mc_wire_rdma_offer *o, char *why,
                       size_t len)
{
	struct rdma_options opt = options(t);
	int r = 0;

	*o = (struct mc_wire_rdma_offer){0};
	why[0] = '\0';
	t->listener = rdma_listen_free(t->listener);
	if (wants(t, "tcp"))
		snprintf(why, len, "the standby takes TCP only; give it --transport auto");
	else if (!t->a->config->insecure)
		snprintf(why, len,
		         "the standby takes no RDMA, which no encryption covers, without "
		         "--insecure");
	else
		r = rdma_listen_new(&t->listener, t->w->event, fd, &opt, &backup_events,
		                    on_accepted, t, o);
	if (r < 0)
		snprintf(why, len, "the backup's host has no RDMA device for this address: %s",
		         strerror(-r));
	o->length = (uint32_t)strlen(why);
}

static int answer_ask(struct transport *t, int fd)
{
	uint8_t in[MC_WIRE_HEADER + sizeof(struct mc_wire_rdma_ask)];
	uint8_t out[MC_WIRE_HEADER + sizeof(struct mc_wire_rdma_offer) + MC_WHY_MAX];
	const struct mc_wire_limits lim = {.from = MC_SIDE_PRIMARY, .slab_size = 1};
	struct mc_wire_rdma_offer o;
	struct mc_wire_header h;
	char why[MC_WHY_MAX];
	size_t n = sizeof(o);

	/* The supervisor has seen all of it. */
	if (recv(fd, in, sizeof(in), MSG_DONTWAIT) != (ssize_t)sizeof(in))
		return -EPROTO;
	memcpy(&h, in, sizeof(h));
	if (mc_wire_header_check(&h, &lim, why, sizeof(why)) < 0 ||
	    mc_wire_checksum(&h, in + sizeof(h), h.length, NULL, 0) != h.checksum ||
	    strncmp((const char *)in + sizeof(h), t->a->config->guest, MC_NAME_MAX) != 0)
		return -EPROTO;
	listen_for(t, fd, &o, why, sizeof(why));
	memcpy(out + sizeof(h), &o, sizeof(o));
	memcpy(out + sizeof(h) + n, why, o.length);
	n += o.length;
	mc_wire_header_init(&h, MC_MSG_RDMA_OFFER, &t->a->config->term, 0, (uint32_t)n);
	h.checksum = mc_wire_checksum(&h, out + sizeof(h), n, NULL, 0);
	memcpy(out, &h, sizeof(h));
	n += sizeof(h);
	return send(fd, out, n, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n ? 0 : -EIO;
}

int connect_accepted(struct transport *t, int fd)
{
	struct mc_wire_header h;
	int r;

	if (recv(fd, &h, sizeof(h), MSG_PEEK | MSG_DONTWAIT) != (ssize_t)sizeof(h) ||
	    h.type != MC_MSG_RDMA_ASK)
		return backup_connection(t, fd);
	r = answer_ask(t, fd);
	if (r == 0)
		close(fd);
	return r;
}
