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

int connect_stream(struct transport *t, struct link **ret, const struct link_events *events)
{
	int fd = tcp_connect(t->a->config->peer), r;

	if (fd < 0)
		return fd;
	r = tcp_link_new(ret, t->w->event, fd, t->tls, events, t);
	if (r < 0)
		close(fd);
	return r;
}

int connect_start(struct transport *t)
{
	const struct mc_config *cfg = t->a->config;
	struct rdma_options opt = options(t);

	/* Who asked for encryption doesn't lose it because a device is there. */
	if (wants(t, "auto") && !t->no_rdma && !cfg->insecure)
		use_tcp(t,
		        "it would not be encrypted, which only insecure or transport rdma allow");
	if (!wants(t, "tcp") && !t->no_rdma)
		return rdma_link_connect(&t->link, t->w->event, cfg->peer, cfg->guest, t->tls, &opt,
		                         &primary_events, t);
	return connect_stream(t, &t->link, &primary_events);
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
	struct transport *t = ctx;

	t->b.no_entry = NULL; /* the offer was checked, and the token tells who got it */
	backup_link(t, l);
	return 0;
}

/* Listens, or says in @why what keeps it from that. */
static void listen_for(struct transport *t, const struct link *asked, struct mc_wire_rdma_offer *o,
                       char *why, size_t len)
{
	struct rdma_options opt = options(t);
	int r = 0;

	*o = (struct mc_wire_rdma_offer){0};
	why[0] = '\0';
	t->listener = rdma_listen_free(t->listener);
	if (wants(t, "tcp"))
		snprintf(why, len, "the standby takes TCP only; give it --transport auto");
	else if (t->b.no_entry)
		snprintf(why, len, "%s", t->b.no_entry);
	else if (!t->a->config->insecure && !(wants(t, "rdma") && t->a->config->tls == MC_TLS_PSK))
		snprintf(why, len,
		         "the standby takes no RDMA, which isn't encrypted, without --insecure, "
		         "or --transport rdma and a pre-shared key");
	else
		r = rdma_listen_new(&t->listener, t->w->event, asked, &opt, &backup_events,
		                    on_accepted, t, o);
	if (r < 0)
		snprintf(why, len, "the backup's host has no RDMA device for this address: %s",
		         strerror(-r));
	o->length = (uint32_t)strlen(why);
}

int connect_asked(struct transport *t, struct link *l, const void *payload)
{
	uint8_t out[sizeof(struct mc_wire_rdma_offer) + MC_WHY_MAX];
	struct mc_wire_rdma_offer o;
	char why[MC_WHY_MAX];

	if (strncmp(payload, t->a->config->guest, MC_NAME_MAX) != 0)
		return -EPROTO;
	listen_for(t, l, &o, why, sizeof(why));
	memcpy(out, &o, sizeof(o));
	memcpy(out + sizeof(o), why, o.length);
	return link_send(l, MC_MSG_RDMA_OFFER, 0, out, sizeof(o) + o.length);
}
