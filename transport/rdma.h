/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A link by RDMA.  Private to rdma*.c:
 *
 *   rdma.c          life of a link; what the state machines call
 *   rdma-cm.c       connecting (primary) and accepting (backup); the objects of the device
 *   rdma-listen.c   what an accepted connection comes from
 *   rdma-memory.c   control buffers; registration of slabs that are sent
 *   rdma-send.c     messages and slabs on their way out
 *   rdma-receive.c  messages in; slabs lent to the peer
 *   rdma-events.c   completions, events of connection and device
 */
#ifndef MC_TRANSPORT_RDMA_H
#define MC_TRANSPORT_RDMA_H

#include "../ipc/pool.h"
#include "../ipc/wire-rdma.h"
#include "../verbs/verbs.h"
#include "backend.h"

#define SENDS      64             /* control messages queued or on their way, beside HELLO */
#define SEND_LARGE SENDS          /* number of HELLO's buffer */
#define CHUNK      (1024 * 1024U) /* bytes of one RDMA WRITE */
#define CHUNKS     4              /* writes on their way */
#define CQ_ENTRIES (SENDS + 1 + CHUNKS + MC_RDMA_RECVS)
#define RETRIES    3 /* of a packet, before the connection is given up */

enum rdma_state {
	RDMA_ASKING,     /* primary: TCP connection for RDMA_ASK and RDMA_OFFER */
	RDMA_RESOLVING,  /* primary: address and route */
	RDMA_CONNECTING, /* request or acceptance is out */
	RDMA_UP,
	RDMA_DEAD,
};

/* A control message that is queued or on its way. */
struct out {
	bool used, slab;
	uint32_t len;
	/* slab */
	const uint8_t *data;
	uint32_t bytes, written;
	uint64_t cookie;
	bool have_credit, waited, registered;
	uint32_t lkey;
	struct mc_rdma_credit credit;
};

/* A slab of ours that the peer may write to. */
struct slot {
	uint64_t slab; /* 0: free slot */
	uint8_t *data;
	struct ibv_mr *mr;
};

/* Registration of the slabs that are sent: by index, made when one is first sent. */
struct sent_slabs {
	struct sent_slab {
		struct ibv_mr *mr;
		uint64_t shrunk; /* pool's shm->shrunk when it was registered */
		uint32_t in_flight;
	} * slab;        /* [pool->max] */
	uint64_t shrunk; /* as of the last look */
};

struct rdma {
	struct link l;
	sd_event *event;
	struct rdma_options opt;
	enum rdma_state state;
	bool broken; /* nothing can be sent any more */
	bool orphan; /* freed by its owner: what was sent last is still on its way */
	/* connection */
	struct link *ask; /* primary: RDMA_ASK, and its answer */
	uint64_t token[2];
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	sd_event_source *channel_io, *comp_io, *async_io, *limit, *spin;
	/* objects of the device */
	struct ibv_pd *pd;
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	uint8_t *area; /* control buffers */
	struct ibv_mr *area_mr;
	/* out */
	struct out out[SENDS + 1];
	uint8_t queue[SENDS + 1]; /* numbers of out[], in order */
	uint8_t urgent[SENDS + 1];
	unsigned first, queued, nurgent, used; /* used: entries of out[] */
	unsigned chunks;                       /* writes on their way */
	unsigned sends;                        /* sends on their way */
	uint32_t sent, peer_consumed;
	struct mc_rdma_credit credit[MC_RDMA_SLOTS];
	unsigned credit_first, credits;
	uint32_t slots_held; /* bit: slot of the peer that we may write to, or do */
	struct sent_slabs mem;
	/* in */
	uint32_t consumed, told;
	struct slot slot[MC_RDMA_SLOTS];
};

/* rdma.c */
struct rdma *rdma_new(sd_event *event, const struct rdma_options *opt,
                      const struct link_events *events, void *ctx);
/* Reports the end of the link, once. */
void rdma_closed(struct rdma *r, int error, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));
/* The connection stands. */
void rdma_up(struct rdma *r);
/* Last act of every callback: true when an orphan had nothing left to do and is gone. */
bool rdma_linger_over(struct rdma *r);

/* rdma-memory.c */
int memory_new(struct rdma *r);
/*
 * With a device: registers the control buffers. -ENOMEM also when RLIMIT_MEMLOCK is too small for
 * @slabs slabs at once.
 */
int memory_open(struct rdma *r, uint64_t slabs);
void memory_free(struct rdma *r);
uint8_t *memory_send_buffer(const struct rdma *r, unsigned i);
uint8_t *memory_recv_buffer(const struct rdma *r, unsigned i, uint32_t *len);
/* The key of a slab that is sent; registers it at its first time. */
int memory_lkey(struct rdma *r, const uint8_t *data, uint32_t *lkey);
void memory_done(struct rdma *r, const uint8_t *data);
/* Deregisters what the pool may have given back since. */
void memory_trim(struct rdma *r);
/* Negative errno of a registration as a sentence with the remedy. */
const char *memory_why(int error, char *buf, size_t len);
int memory_register(struct rdma *r, void *p, size_t len, int access, struct ibv_mr **ret);
void memory_deregister(struct rdma *r, struct ibv_mr **mr);

/* rdma-send.c */
int rdma_send(struct link *l, enum mc_msg type, uint64_t epoch, const void *payload, size_t len);
int rdma_send_slab(struct link *l, uint64_t epoch, const struct mc_wire_slab *s, const void *data,
                   uint64_t cookie, uint64_t *checksum);
/* Posts what may be posted. */
void send_pump(struct rdma *r);
/* Credits of the peer. 0 or -EPROTO. */
int send_take_credits(struct rdma *r, const struct mc_rdma_credit *c, unsigned n);
/* A message of kind CREDIT; also tells the peer what was consumed. 0, -ENOBUFS. */
int send_credits(struct rdma *r, const struct mc_rdma_credit *c, unsigned n);
bool send_may_credit(const struct rdma *r);
void send_completed(struct rdma *r, unsigned i);
void send_free(struct rdma *r);

/* rdma-receive.c */
int receive_post_all(struct rdma *r);
void receive_completed(struct rdma *r, unsigned i, uint32_t len);
/* Lends the peer what the owner has; tells it what was consumed. */
void receive_tend(struct rdma *r);
void receive_free(struct rdma *r);

/* rdma-events.c */
#define WR_SEND  (1ULL << 32)
#define WR_WRITE (2ULL << 32)
#define WR_RECV  (3ULL << 32)
int events_watch_device(struct rdma *r);
void events_drain(struct rdma *r);

/* rdma-cm.c */
int cm_ask(struct rdma *r, int fd, const struct tls_creds *creds, const char *guest);
/* Accepts a connection whose @id it takes over; one that can't be made is refused. */
int cm_accept(struct rdma *r, struct rdma_cm_id *id);
void cm_refuse(struct rdma_cm_id *id, int error);
/* Ends all access of the device to memory. */
void cm_end_io(struct rdma *r);
void cm_free(struct rdma *r);
/* Address of our end of a TCP socket, port 0. */
int cm_local_address(int fd, struct sockaddr_storage *a);

#endif
