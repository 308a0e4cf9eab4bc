/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-transport: moves slabs to the peer and acknowledgements back.  One binary for both ends;
 * primary.c and backup.c are the two state machines, transport.c what they share.
 */
#ifndef MC_TRANSPORT_TRANSPORT_H
#define MC_TRANSPORT_TRANSPORT_H

#include "../ipc/worker.h"
#include "backend.h"

#define EPOCHS_MAX 16 /* more than max_in_flight can be */

/* Primary: an epoch between stage and ACK. */
struct out_epoch {
	uint64_t epoch;                       /* 0: free entry */
	uint32_t got;                         /* slabs here */
	uint32_t next;                        /* next seq to send */
	bool started, done;                   /* START sent; COMMIT sent */
	uint64_t bytes, digest, began, ended; /* ended: when COMMIT was queued */
	mc_handle slab[MC_EPOCH_SLABS_MAX];
	bool in_link[MC_EPOCH_SLABS_MAX]; /* the link still reads it */
};

struct primary {
	struct mc_ring_end in[MC_STAGES_MAX];
	struct out_epoch *epoch; /* [EPOCHS_MAX] */
	mc_handle *window;       /* first copy: by seq % window_size */
	uint64_t window_size, sync_next;
	uint64_t acked;         /* newest epoch that the backup acknowledged */
	uint64_t attempt_began; /* ns: since when the peer can't be reached; 0: it can */
	uint64_t pinged;        /* ns: the last PING */
	bool end_sent, greeted, refused_logged;
	bool asks, two_told; /* ask.c: it began; that the peer runs the guest, too, was told */
	unsigned copies;     /* first copies that were begun again */
	sd_event_source *retry;
	bool peer_hashes;     /* the peer on this link answers HASH_ASK */
	uint64_t hashes_sent; /* questions that were sent, as numbered in the box */
	uint64_t tokens_at;   /* max_bandwidth: ns until which the first copy has used its share */
	sd_event_source *bandwidth;
};

struct backup {
	struct mc_ring_end out;
	struct link *pending; /* HELLO not seen yet */
	bool asked;           /* the pending one brought a question, which was answered */
	const char *no_entry; /* why the pending one can't be accepted, whatever it says; or NULL */
	uint64_t current;     /* epoch between START and COMMIT; 0: none */
	uint64_t base;        /* of the current one */
	bool ignore;          /* it is here already: read and dropped */
	uint32_t slabs, next_seq;
	uint64_t bytes, digest;
	uint32_t lent;         /* empty slabs that the link has */
	uint64_t starved;      /* ns: since when there is no memory to read on; 0: there is */
	bool starved_told;     /* its epoch was given up for that */
	uint64_t acked, nacks; /* told so far: epoch, count of refusals */
	bool end_acked, told_taken;
	struct mc_hash_asker hashes; /* questions of the primary, answered by restore */
};

/* A connection beside the main link (streams.h). */
struct stream {
	struct link *l; /* NULL: none */
	bool up;        /* carries slabs: HELLO exchanged */
	bool leaving, bye, dead;
};

#define STREAMS_EXTRA (MC_STREAMS_MAX - 1)

struct streams {
	struct stream stream[STREAMS_EXTRA];
	uint64_t link_id;  /* of the main link */
	uint64_t retry_at; /* ns */
	unsigned turn;
	bool ended; /* all are to be freed */
};

#define ORDER_HELD 64 /* slabs that came too early */
#define ORDER_CTL  64 /* messages that wait for them: 3 an epoch */

struct order_slab {
	struct mc_wire_header h;
	struct mc_wire_slab s;
	mc_handle slab;
};

struct order_ctl {
	struct mc_wire_header h;
	union {
		struct mc_wire_start start;
		struct mc_wire_commit commit;
	} u;
};

/* The last SLAB that came on a stream. */
struct order_place {
	uint64_t epoch;
	uint32_t seq;
	bool seen;
};

/* Backup (order.c). */
struct order {
	struct order_slab slab[ORDER_HELD];
	struct order_ctl ctl[ORDER_CTL];
	uint32_t held, nctl;
	uint64_t floor; /* epochs up to here are over, or void */
	struct order_place last[MC_STREAMS_MAX];
};

struct transport {
	struct mc_worker *w;
	struct mc_arena *a;
	enum mc_side side;
	struct link *link;   /* up: HELLO exchanged; or (primary) connecting */
	struct link *corpse; /* closed, to be freed outside of its callbacks */
	bool up;
	bool no_rdma; /* auto: RDMA was found impossible */
	struct rdma_listener *listener;
	sd_event_source *ping;
	struct tls_creds *tls; /* NULL: plain, or (tls_bad) there should be some */
	bool tls_bad;
	char told[256]; /* the last refusal that was logged, and when */
	uint64_t told_at;
	struct primary p;
	struct backup b;
	struct streams s;
	struct order o;
};

extern const struct mc_worker_ops transport_ops;

/* transport.c */
enum mc_state transport_state(const struct transport *t);
/* Silence of the peer after which it counts as dead, ns. */
uint64_t transport_failure_ns(const struct transport *t);
void transport_note_security(struct transport *t, const struct link *l);
void transport_set_link(struct transport *t, bool up);
void transport_start_clock(struct transport *t);
/* Primary: an epoch was answered, which says as much as a PONG: the next PING isn't due so soon. */
void transport_answered(struct transport *t);
/* What to do about a link that ended with @error, or can't be made, as the end of a sentence. */
const char *transport_remedy(int error);
void transport_bury(struct transport *t, struct link *l);
void transport_fill_hello(struct transport *t, struct mc_hello *h);
int transport_send_hello(struct transport *t, struct link *l, struct mc_hello *h);
int transport_send_reason(struct link *l, enum mc_msg type, uint64_t epoch, uint32_t reason,
                          const char *text);
/* Logs and reports why a peer, or we by it, was refused; the same one again only every minute. */
void transport_tell_refusal(struct transport *t, const char *text);
/* Names the first thing in which two HELLOs differ that must be equal; 0: none. */
int transport_compare(const struct transport *t, const struct mc_hello *theirs, char *why,
                      size_t why_len);

/* connect.c */
/* Primary: begins a link, t->link. Errors as of tcp_connect(). */
int connect_start(struct transport *t);
/* Primary: begins one more connection to the same peer, of the main link's kind. */
int connect_stream(struct transport *t, struct link **ret, const struct link_events *events);
/* Primary: the link ended, or could not be made. */
void connect_ended(struct transport *t, const struct link *l, int error, const char *why);
/* Backup: an RDMA_ASK came on a link that is no more than that. 0 or negative errno. */
int connect_asked(struct transport *t, struct link *l, const void *payload);

/* primary.c */
int primary_start(struct transport *t);
int primary_work(struct transport *t);
/* True once the backup may hold an epoch. */
bool primary_armed(const struct transport *t);
/* SYNCING -> STOPPED, with the sentence that says why. */
void primary_stop_syncing(struct transport *t, enum mc_reason why, const char *text);
/* Moves the state, rings all. 0; -ESTALE (not in @from). */
int primary_move(struct transport *t, enum mc_state from, enum mc_state to, enum mc_reason why);
/* From whichever of the running states. */
void primary_move_any(struct transport *t, enum mc_state to, enum mc_reason why);
extern const struct link_events primary_events;

/* Begins a connection, or tries to later. */
void primary_connect(struct transport *t);

/* acks.c: what the primary is answered.  Negative errno closes the link. */
int acks_take(struct transport *t, uint64_t epoch);
int acks_take_nack(struct transport *t, uint64_t epoch, const void *payload, size_t len);
void acks_take_pong(struct transport *t, const struct mc_wire_ping *p);
/*
 * Commits what was acknowledged.  The ACK may overtake the last worker's mark in the journal
 * (STAGED): then the rest is done when that worker rings.  1: something was.
 */
int acks_apply(struct transport *t);

/* ask.c: a primary whose standby is gone for good asks for a new one. */
#define ASK_US 2000000
bool ask_wanted(const struct transport *t);
int ask_step(struct transport *t);
/* The answer; closes the link. */
int ask_answered(struct transport *t, const struct mc_hello *theirs);

/* ending.c: negative errno closes the link. */
int ending_take_end(struct transport *t, const struct mc_wire_header *h, const void *payload);
int ending_take_end_ack(struct transport *t);
/* The standby that we filled is gone for certain: another one answers in its place. */
int ending_standby_replaced(struct transport *t);
/* END, once it is wanted and nothing is on its way. 1 sent. */
int ending_send(struct transport *t);
/* Without a link an end can only come while nothing was armed. 1: it came. */
int ending_unlinked(struct transport *t);

/* again.c. True when the first copy may rest on what the standby held (@keeps: and holds). */
bool again_begun(const struct transport *t, bool keeps);
/* A first copy that broke off. True while capture hasn't begun it again. */
bool again_pending(const struct transport *t);
/* Asks capture for it. False: too often, or nobody knows that the backup isn't armed. */
bool again_begin(struct transport *t);
/* A successor begins again what its predecessor was in the middle of; true: a first copy. */
bool again_after_death(struct transport *t);
/*
 * Capture held the guest at the moment at which the copy was to begin again: the backup is certain
 * not to be armed, so the guest is let go, HELD -> DEGRADED, and a new standby asked for.  True:
 * done.
 */
bool again_held(struct transport *t);

/* hashes.c. Primary: what the peer can. -EPROTO: it contradicts itself. */
int hashes_hello(struct transport *t, const struct mc_wire_hello *theirs);
/* 1: sent some. Without a link, or a peer that can, they are answered here: it can't be told. */
int hashes_ask(struct transport *t);
int hashes_take(struct transport *t, const struct mc_wire_header *h, const void *payload);
/* Backup: what came on another link isn't answered on this one. */
void hashes_reset(struct transport *t);
int hashes_asked(struct transport *t, const struct mc_wire_header *h, const void *payload);
int hashes_answer(struct transport *t); /* 1: sent some */

/* handover.c: a planned switchover. */
bool handover_may_send(struct transport *t);     /* END(failover) may go out now */
bool handover_stands(const struct transport *t); /* it went out, and nobody withdrew it */

/* send.c: 1 sent something, 0 nothing to send or no room. */
int send_sync(struct transport *t);
int send_epochs(struct transport *t);
void send_slab_sent(void *ctx, struct link *l, uint64_t cookie);
int send_on_bandwidth(sd_event_source *s, uint64_t usec, void *userdata);

/* collect.c: what comes from the stage workers. */
int collect_step(struct transport *t);
struct out_epoch *collect_find(struct transport *t, uint64_t epoch);
struct out_epoch *collect_oldest(struct transport *t, uint64_t after);
void collect_drop(struct transport *t, struct out_epoch *e);
int collect_recover(struct transport *t);

/* backup.c */
int backup_start(struct transport *t);
int backup_work(struct transport *t);
int backup_connection(struct transport *t, int fd);
/* A link on which no HELLO has come yet. */
void backup_link(struct transport *t, struct link *l);
extern const struct link_events backup_events;

/* receive.c: an epoch as it comes in. */
int receive_start(struct transport *t, const struct mc_wire_header *h,
                  const struct mc_wire_start *s);
uint64_t receive_lend(struct transport *t, unsigned stream, void **data);
void receive_give_back(struct transport *t, mc_handle slab);
int receive_slab(struct transport *t, const struct mc_wire_header *h, const struct mc_wire_slab *s,
                 mc_handle slab);
int receive_commit(struct transport *t, const struct mc_wire_header *h,
                   const struct mc_wire_commit *c);
void receive_refused(struct transport *t, uint64_t epoch, int error);
/* To be called a few times within failure_timeout. May close the link. */
void receive_look_at_starvation(struct transport *t);
void receive_abort(struct transport *t, uint64_t epoch);
void receive_reset(struct transport *t);
int receive_recover(struct transport *t);

#endif
