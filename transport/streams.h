/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Streams: more connections beside the main link, which carry SLABs only.  A stream is a TCP link
 * of its own (with TLS where the main link has it); its first message is HELLO with `stream` 1..
 * and the main link's id.  The primary makes and ends them as `streams` in the configuration says,
 * while everything runs; BYE is the last message on one that ends in order.  One that ends
 * otherwise ends the main link, and everything is sent again: no slab can be missing unnoticed.
 */
#ifndef MC_TRANSPORT_STREAMS_H
#define MC_TRANSPORT_STREAMS_H

#include "transport.h"

/* streams.c, primary. */

/* Makes one more or ends one, as the configuration says.  Once a turn. */
void streams_step(struct transport *t);
/* The link that takes the next slab; NULL: none has room. */
struct link *streams_pick(struct transport *t);

/* streams.c, backup. */

/* HELLO of a stream on the pending link. 0: it is a stream now; negative errno: turned away. */
int streams_accept(struct transport *t, struct link *l, const struct mc_wire_header *h,
                   const struct mc_hello *th);
/* True while slabs may come out of order. */
bool streams_any(const struct transport *t);

/* streams.c, both. */

/* The main link is gone: the streams go at the next turn (streams_reap()). */
void streams_end(struct transport *t);
void streams_reap(struct transport *t); /* outside of all callbacks of streams */
unsigned streams_count(
        const struct transport *t); /* those that carry slabs, without the main link */
uint64_t streams_heard(const struct transport *t); /* ns: bytes last came in on one of them */
void streams_resume(struct transport *t);
/* 0: the main link, 1..: the stream that @l is; -1: neither. */
int streams_index(const struct transport *t, const struct link *l);

/* order.c, backup: 0, or negative errno (closes the link). */
int order_control(struct transport *t, const struct mc_wire_header *h, const void *payload);
int order_slab(struct transport *t, unsigned stream, const struct mc_wire_header *h,
               const struct mc_wire_slab *s, mc_handle slab);
/* True when @stream is ahead of what is missing, and enough is waiting already. */
bool order_ahead(const struct transport *t, unsigned stream);
void order_reset(struct transport *t); /* the link is gone */

#endif
