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

#include <errno.h>
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
	void (*flush)(struct link *l); /* NULL: nothing is ever gathered */
	/* How it is secured and who the peer is, in words: valid until the link is freed. */
	const char *(*security)(const struct link *l);
	struct link *(*free)(struct link *l);
};

/* First member of every implementation. */
struct link {
	const struct link_ops *ops;
	const struct link_events *events;
	void *ctx;
	struct mc_wire_limits limits; /* of what the peer may send; the owner sets it */
	struct mc_term term;          /* put into every header */
	uint64_t heard; /* ns: bytes last came in, of whatever message; 0: the link can't tell */
	bool stalls;    /* nothing is read, PINGs neither, while it waits for a slab */
	/* written by the link, for metrics */
	uint64_t pinned;       /* bytes of memory registered with a device */
	uint64_t copied;       /* bytes of slabs that this process copied to move them */
	uint64_t credit_waits; /* slabs that had to wait for an empty one at the peer */
	bool gather;   /* the owner's: messages may wait for link_flush(), to leave together */
	bool parallel; /* set when made: more links of this kind may carry slabs beside it */
	bool large;    /* set when made: after HELLO, too, messages may be as large as it */
	/* set before closed(): this transport can't be had, here or there; another one may */
	bool try_other;
};

/*
 * Any call that sends may find the link broken and report closed() from within; whoever sends
 * several things looks after each whether the link is still there.  A NULL link is one that
 * broke: nothing is sent, there is no room.
 */

/* Queues a message. 0, -ENOBUFS (queue full: has_room() says so before), -ENOTCONN. */
static inline int link_send(struct link *l, enum mc_msg type, uint64_t epoch, const void *payload,
                            size_t len)
{
	return l ? l->ops->send(l, type, epoch, payload, len) : -ENOTCONN;
}

/* Queues a slab; @data stays untouched until slab_sent(). *checksum as in the header. */
static inline int link_send_slab(struct link *l, uint64_t epoch, const struct mc_wire_slab *s,
                                 const void *data, uint64_t cookie, uint64_t *checksum)
{
	return l ? l->ops->send_slab(l, epoch, s, data, cookie, checksum) : -ENOTCONN;
}

static inline bool link_has_room(const struct link *l)
{
	return l && l->ops->has_room(l);
}

static inline bool link_idle(const struct link *l)
{
	return l->ops->idle(l);
}

/*
 * To be called once a turn of the loop: slabs may be had again after lend() said no, the pool
 * may have shrunk.
 */
static inline void link_resume(struct link *l)
{
	l->ops->resume(l);
}

/*
 * Writes what was gathered.  Whoever sets l->gather calls this before it waits for anything;
 * what is much by itself leaves before.  NULL ok.
 */
static inline void link_flush(struct link *l)
{
	if (l && l->ops->flush)
		l->ops->flush(l);
}

static inline const char *link_security(const struct link *l)
{
	return l->ops->security(l);
}

/* Closes and frees; of the events only give_back() and slab_sent() still come. NULL ok; returns
 * NULL. */
static inline struct link *link_free(struct link *l)
{
	return l ? l->ops->free(l) : NULL;
}

struct tls_creds;

/*
 * tcp.c: a link over a connected, or connecting, socket (taken over).  @creds: TLS, as the side
 * that these are for (they outlive the link); NULL: plain.  closed() with -EKEYREJECTED: one end
 * refused the other, before anything else was said.
 */
int tcp_link_new(struct link **ret, sd_event *event, int fd, const struct tls_creds *creds,
                 const struct link_events *events, void *ctx);
/* Begins a connection to "HOST:PORT" or "[V6]:PORT": a socket in progress. fd or negative errno. */
int tcp_connect(const char *peer);
struct mc_pool;

struct rdma_options {
	const struct mc_pool *pool;  /* where slabs that are sent lie; outlives the link */
	uint32_t failure_timeout_ms; /* limits retries and the time to connect */
	bool poll;                   /* polls for completions: the loop never sleeps */
};

/*
 * rdma.c: begins a link to "HOST:PORT": asks there, by TCP or with @creds by TLS, for the RDMA port
 * of @guest.  Messages may be queued at once.  Errors as of tcp_connect().
 */
int rdma_link_connect(struct link **ret, sd_event *event, const char *peer, const char *guest,
                      const struct tls_creds *creds, const struct rdma_options *opt,
                      const struct link_events *events, void *ctx);

/*
 * Backup: waits a few seconds for the connection of one primary, whose RDMA_ASK came over the TCP
 * link @asked (its address is listened on).
 */
struct rdma_listener;
/* The link is the callee's; 0, or negative errno: it isn't wanted (freed by the caller). */
typedef int (*rdma_accepted_fn)(void *ctx, struct link *l);
/*
 * Fills in port and token of @offer.  -ENODEV, -EADDRNOTAVAIL: no RDMA device has that address.
 */
int rdma_listen_new(struct rdma_listener **ret, sd_event *event, const struct link *asked,
                    const struct rdma_options *opt, const struct link_events *events,
                    rdma_accepted_fn accepted, void *ctx, struct mc_wire_rdma_offer *offer);
/* NULL ok; returns NULL. */
struct rdma_listener *rdma_listen_free(struct rdma_listener *l);

/* The socket of a TCP link (the link's); -1: it has none. */
int tcp_socket(const struct link *l);
/* True when both ends of the socket are on this machine's loopback. */
bool tcp_is_loopback(int fd);

#endif
