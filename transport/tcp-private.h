/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared by tcp.c and tcp-in.c only. */
#ifndef MC_TRANSPORT_TCP_PRIVATE_H
#define MC_TRANSPORT_TCP_PRIVATE_H

#include "backend.h"
#include "tls.h"

#define QUEUE_MAX  64    /* messages on their way out */
#define GATHER_MAX 65536 /* bytes that wait for link_flush() */
#define BATCH_MAX  8     /* messages that leave in one system call */
#define INLINE_MAX (MC_WIRE_HEADER + sizeof(struct mc_wire_reason) + MC_WHY_MAX)

/* One message on its way out: head (header and small payload), then a slab. */
struct outgoing {
	uint8_t head[INLINE_MAX];
	size_t head_len;
	uint8_t *big; /* HELLO: allocated */
	size_t big_len;
	const uint8_t *slab;
	size_t slab_len;
	uint64_t cookie;
};

struct tcp {
	struct link l;
	int fd;
	sd_event_source *io;
	bool connecting, securing, stalled, dead;
	struct tls *tls;               /* NULL: plain */
	sd_event_source *limit, *more; /* TLS: of the handshake; bytes are here already */
	/* out */
	struct outgoing *queue[QUEUE_MAX];
	unsigned first, count;
	size_t sent;     /* bytes of the first message */
	size_t gathered; /* bytes since the last write */
	bool full;       /* the socket takes no more at present */
	/* in */
	struct mc_wire_header h;
	size_t have;      /* bytes of header + payload so far */
	uint8_t *control; /* payload of control messages; head of a slab */
	uint64_t lent;    /* slab that is being received */
	uint8_t *slab;
};

/* tcp.c: ends the link, and reports it once. */
void tcp_closed(struct tcp *t, int error, const char *why);
/* What to wait for, after anything changed. */
void tcp_set_io(struct tcp *t);
/* Why it broke: TLS knows better, or @otherwise. */
const char *tcp_broken(const struct tcp *t, const char *otherwise);

/* tcp-in.c: reads what is there. */
void tcp_receive(struct tcp *t);
int tcp_on_more(sd_event_source *s, void *userdata);
void tcp_resume(struct link *l);

#endif
