/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A link to the peer, whatever carries it.  The state machines (primary.c, backup.c) see only
 * this; a transport is one set of link_ops.
 *
 * Messages are delivered whole and verified (header limits, checksum), in order.  The content
 * of a SLAB lands in a slab that its receiver lent to the link: for one SLAB that is arriving
 * (TCP), or some ahead, for the peer to write into (RDMA).  What is sent comes straight from
 * slabs, without a copy in between.
 */
#ifndef MC_TRANSPORT_BACKEND_H
#define MC_TRANSPORT_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <systemd/sd-event.h>

#include "../ipc/wire.h"

struct link;

/* What a link reports. None may free the link; closing it is allowed. */
struct link_events {
	/*
	 * A verified message; @payload of h->length bytes is valid during the call.  SLAB: payload
	 * is struct mc_wire_slab, the content is in @slab, which lend() gave and which nobody but
	 * the owner can reach any more; 0 with all other types.  Negative errno closes the link.
	 */
	int (*message)(void *ctx, struct link *l, const struct mc_wire_header *h,
	               const void *payload, uint64_t slab);
	/*
	 * Lends an empty slab of limits.slab_size bytes at *data.  Returns its cookie; 0: none
	 * now, link_resume() when there may be one.
	 */
	uint64_t (*lend)(void *ctx, struct link *l, void **data);
	/* A lent slab that no message used; called at the latest by link_free(). */
	void (*give_back)(void *ctx, struct link *l, uint64_t slab);
	/*
	 * The link needs the slab sent with @cookie no more: it has left for the peer, or the link
	 * is being freed.  Exactly once for each slab that link_send_slab() took.
	 */
	void (*slab_sent)(void *ctx, struct link *l, uint64_t cookie);
	/* The link is gone (peer closed, error, or the peer broke the protocol: @why). */
	void (*closed)(void *ctx, struct link *l, int error, const char *why);
};

struct link_ops {
	int (*send)(struct link *l, enum mc_msg type, uint64_t epoch, const void *payload,
	            size_t len);
	int (*send_slab)(struct link *l, uint64_t epoch, const struct mc_wire_slab *s,
	                 const void *data, uint64_t cookie, uint64_t *checksum);
	bool (*has_room)(const struct link *l);
	bool (*idle)(const struct link *l); /* everything has left */
	void (*resume)(struct link *l);
	struct link *(*free)(struct link *l);
};

/* First member of every implementation. */
struct link {
	const struct link_ops *ops;
	const struct link_events *events;
	void *ctx;
	struct mc_wire_limits limits; /* of what the peer may send; the owner sets it */
	struct mc_term term;          /* put into every header */
};

/* Queues a message. 0, -ENOBUFS (queue full: has_room() says so before), -ENOTCONN. */
static inline int link_send(struct link *l, enum mc_msg type, uint64_t epoch, const void *payload,
                            size_t len)
{
	return l->ops->send(l, type, epoch, payload, len);
}

/* Queues a slab; @data stays untouched until slab_sent(). *checksum as in the header. */
static inline int link_send_slab(struct link *l, uint64_t epoch, const struct mc_wire_slab *s,
                                 const void *data, uint64_t cookie, uint64_t *checksum)
{
	return l->ops->send_slab(l, epoch, s, data, cookie, checksum);
}

static inline bool link_has_room(const struct link *l)
{
	return l->ops->has_room(l);
}

static inline bool link_idle(const struct link *l)
{
	return l->ops->idle(l);
}

/* Slabs may be had again, after lend() said no. */
static inline void link_resume(struct link *l)
{
	l->ops->resume(l);
}

/* Closes and frees; of the events only give_back() and slab_sent() still come. NULL ok; returns
 * NULL. */
static inline struct link *link_free(struct link *l)
{
	return l ? l->ops->free(l) : NULL;
}

/* tcp.c: a link over a connected, or connecting, socket (taken over). */
int tcp_link_new(struct link **ret, sd_event *event, int fd, const struct link_events *events,
                 void *ctx);
/* Begins a connection to "HOST:PORT" or "[V6]:PORT": a socket in progress. fd or negative errno. */
int tcp_connect(const char *peer);
/* True when both ends of the socket are on this machine's loopback. */
bool tcp_is_loopback(int fd);

#endif
