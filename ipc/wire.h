/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Wire format between the transports of two hosts.  Little-endian, packed by hand, version
 * first; reserved fields are 0 and checked.  Every message is a header and `length` bytes
 * of payload.  The checksum is the XXH3 64-bit hash of the header with checksum = 0,
 * followed by the payload.
 *
 * Order on a link (p = primary, b = backup):
 *
 *   p HELLO                                  first message after connecting
 *   b HELLO (accepts) or END(reason, text)   refusal
 *   p SLAB* (epoch 0)                        first copy, in sequence
 *   p START(N) SLAB*(N) COMMIT(N)            an epoch; N+1 may follow at once
 *   p ABORT(N)                               everything from N on is void
 *   b ACK(N) | NACK(N, reason)               N and all before are committed | N and later refused
 *   p HASH_ASK(N), b HASHES(N)               hashes of pages as of epoch N (0: in the first copy)
 *   p PING, b PONG                           PONG echoes the PING's stamp; not after a takeover
 *   either END(reason), other END_ACK        protection ends; END_ACK after disarming
 *
 * More connections (streams) may carry SLABs as well: each begins with a HELLO that names the main
 * link, the backup answers with HELLO or closes it, then come SLABs, in the order of epoch and seq
 * within each stream, at last BYE.  All other messages stay on the main link; COMMIT counts once
 * all SLABs of its epoch are there.  A stream that ends without BYE ends the main link.
 *
 * A connection that begins with RDMA_ASK carries nothing else: the backup answers RDMA_OFFER, and
 * the link is made by RDMA (wire-rdma.h).
 *
 * A link with TLS begins in the clear with TLS(guest) from the primary, which the backup answers
 * with an empty TLS, or END(reason, text) and the end of the connection.  All that counts follows
 * within TLS 1.3, HELLO first; what came before only says where the connection goes.
 *
 * A receiver checks header, type, term, length against the limits below *before* anything
 * is allocated or read on; a violation ends the link (NACK if an epoch is open, a log
 * line), never the process.
 */
#ifndef MC_IPC_WIRE_H
#define MC_IPC_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "control.h"
#include "hashes.h"

#define MC_WIRE_MAGIC   0x5057434dU /* "MCWP" */
#define MC_WIRE_VERSION 1
#define MC_DEFAULT_PORT 7911

enum mc_msg {
	MC_MSG_HELLO = 1,
	MC_MSG_START = 2,
	MC_MSG_SLAB = 3,
	MC_MSG_COMMIT = 4,
	MC_MSG_ACK = 5,
	MC_MSG_NACK = 6,
	MC_MSG_ABORT = 7,
	MC_MSG_END = 8,
	MC_MSG_END_ACK = 9,
	MC_MSG_PING = 10,
	MC_MSG_PONG = 11,
	MC_MSG_RDMA_ASK = 12,
	MC_MSG_RDMA_OFFER = 13,
	MC_MSG_TLS = 14,
	MC_MSG_BYE = 15,
	MC_MSG_HASH_ASK = 16,
	MC_MSG_HASHES = 17,
	MC_MSG_TYPES = 18,
};

struct mc_wire_header {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t length; /* payload bytes */
	uint32_t reserved;
	uint64_t term;
	uint64_t term_id;
	uint64_t epoch;
	uint64_t checksum;
};
#define MC_WIRE_HEADER 48
_Static_assert(sizeof(struct mc_wire_header) == MC_WIRE_HEADER, "wire");

/* Features in HELLO; both ends use the intersection. */
enum mc_feature {
	MC_FEATURE_DELTA = 1,
	MC_FEATURE_HASHES = 2, /* HASH_ASK and HASHES; HELLO with resync 2 */
};

struct mc_wire_block {
	char name[MC_NAME_MAX];
	uint64_t size;
};
_Static_assert(sizeof(struct mc_wire_block) == 72, "wire");

/*
 * HELLO payload: this struct, then blocks * struct mc_wire_block, then `description`
 * bytes of text (no NUL).  The guest's name comes first at a fixed place: the supervisor
 * that accepts connections peeks at header + name to find the guest.
 */
struct mc_wire_hello {
	char guest[MC_NAME_MAX];
	char build[32];
	uint64_t instance[2];      /* of the sender */
	uint64_t peer_instance[2]; /* primary: the backup's that it knows, 0: none (first copy
	                              wanted) */
	uint64_t slab_size;
	uint64_t max_epoch; /* bytes of one epoch, decoded, that the sender can take */
	uint64_t features;
	uint64_t last_committed; /* backup: counts as ACK */
	uint32_t strikes;
	uint32_t interval_us;
	uint32_t failure_timeout_ms; /* the backup's must be the primary's: lease */
	uint32_t taken_over; /* backup: 1: I run the guest now; term in the header is mine */
	uint32_t blocks;
	uint32_t description;
	uint32_t side;    /* enum mc_side of the sender */
	uint32_t resync;  /* backup: 1: holds nothing of yours, do the first copy; 2 (only to one
	                     with  MC_FEATURE_HASHES): likewise, but its RAM isn't empty: compare */
	uint64_t link_id; /* primary: random, of the main link; a stream says which one it joins */
	uint32_t
	        stream; /* 0: the main link; 1 .. MC_STREAMS_MAX - 1: one that carries SLABs only */
	uint32_t ask;   /* primary: 1: only asks whether a standby waits; no link comes of it */
};
_Static_assert(sizeof(struct mc_wire_hello) == 64 + 32 + 8 * 8 + 8 * 4 + 16, "wire");
#define MC_WIRE_HELLO_MAX                                                                          \
	(sizeof(struct mc_wire_hello) + MC_BLOCKS_MAX * sizeof(struct mc_wire_block) + MC_DESC_TEXT)

struct mc_wire_start {
	uint64_t base;       /* epoch that this one builds on; 0: the first copy */
	uint64_t raw_bytes;  /* decoded size */
	uint64_t sync_slabs; /* base 0: slabs of the first copy that must have been applied */
	uint32_t slabs;      /* 1 .. MC_EPOCH_SLABS_MAX */
	uint32_t strikes;    /* current: an interval change reaches the backup here */
	uint32_t start_seq;  /* first slab of the copyset (device state) */
	uint32_t interval_us;
};
_Static_assert(sizeof(struct mc_wire_start) == 40, "wire");

/* SLAB payload: this, then the encoded slab (copyset.h), at most slab_size bytes. */
struct mc_wire_slab {
	uint32_t seq;
	uint32_t of_kind;
	uint64_t bytes; /* = length - sizeof(this) */
};
_Static_assert(sizeof(struct mc_wire_slab) == 16, "wire");

struct mc_wire_commit {
	uint64_t wire_bytes; /* sum of mc_wire_slab.bytes */
	uint64_t digest;     /* XOR of the checksums of the epoch's SLAB messages */
	uint32_t slabs;
	uint32_t reserved;
};
_Static_assert(sizeof(struct mc_wire_commit) == 24, "wire");

/* ACK and ABORT: no payload, epoch in the header. NACK, END: reason and text. */
struct mc_wire_reason {
	uint32_t reason; /* END: enum mc_reason; NACK: errno value */
	uint32_t length; /* bytes of text that follow (no NUL), < MC_WHY_MAX */
};
_Static_assert(sizeof(struct mc_wire_reason) == 8, "wire");

/* TLS, primary: header and this are as long as what the supervisor peeks at to find the guest. */
struct mc_wire_tls {
	char guest[MC_NAME_MAX];
};

/*
 * HASH_ASK: which content do these pages have?  Asked in the first copy after HELLO with resync 2,
 * and of an armed backup; at most MC_HASH_SLOTS / 2 at a time; answered in order.
 */
struct mc_wire_hash_ask {
	uint64_t seed;  /* of the hashes */
	uint64_t first; /* page, as numbered in bitmaps: each block begins at a multiple of 64 */
	uint32_t pages; /* 1 .. MC_HASH_PAGES */
	uint32_t reserved;
};
_Static_assert(sizeof(struct mc_wire_hash_ask) == 24, "wire");

/* HASHES: this, a bit for each page that isn't zero (rounded up to 64), their hashes (hashes.h). */
struct mc_wire_hashes {
	uint64_t first;  /* as asked */
	uint32_t pages;  /* as asked; 0: it can't be told, the RAM isn't as of that epoch */
	uint32_t hashes; /* how many follow */
};
_Static_assert(sizeof(struct mc_wire_hashes) == 16, "wire");
#define MC_WIRE_HASHES_MAX                                                                         \
	(sizeof(struct mc_wire_hashes) + MC_HASH_PAGES / 8 +                                       \
	 MC_HASH_PAGES * sizeof(struct mc_page_hash))
_Static_assert(MC_WIRE_HASHES_MAX <= MC_WIRE_HELLO_MAX, "no message but SLAB is larger than HELLO");

struct mc_wire_ping {
	uint64_t stamp; /* sender's CLOCK_MONOTONIC; PONG echoes it */
};

/* RDMA_ASK: header and this are as long as what the supervisor peeks at to find the guest. */
struct mc_wire_rdma_ask {
	char guest[MC_NAME_MAX];
};

/* RDMA_OFFER: connect by rdma_cm to this address, port @port, with @token in the request. */
struct mc_wire_rdma_offer {
	uint64_t token[2];
	uint32_t port;   /* 0: not possible; the text says why */
	uint32_t length; /* bytes of text that follow (no NUL), < MC_WHY_MAX */
};
_Static_assert(sizeof(struct mc_wire_rdma_offer) == 24, "wire");

/* What a link has agreed on; limits for the checks. */
struct mc_wire_limits {
	uint64_t slab_size;
	int have_term; /* 1: header terms must be equal to `term` */
	struct mc_term term;
	enum mc_side from; /* side of the sender: which types it may send */
};

/* Fills in a header for a payload whose hash is not yet known (checksum 0). */
void mc_wire_header_init(struct mc_wire_header *h, enum mc_msg type, const struct mc_term *term,
                         uint64_t epoch, uint32_t length);

/*
 * Checksum over header (as if checksum were 0) and payload in up to two pieces (@b may be
 * NULL with @b_len 0).
 */
uint64_t mc_wire_checksum(const struct mc_wire_header *h, const void *a, size_t a_len,
                          const void *b, size_t b_len);

/*
 * Checks a received header before its payload is read. 0; -EPROTO (no such message, bad
 * magic, reserved field, epoch above MC_EPOCH_MAX, length outside the type's limits, type not for
 * this sender), -EPROTONOSUPPORT (version), -ESTALE (another term).  A sentence goes to @why (>=
 * 128).
 */
int mc_wire_header_check(const struct mc_wire_header *h, const struct mc_wire_limits *lim,
                         char *why, size_t why_len);

/* A HELLO taken apart and checked. */
struct mc_hello {
	struct mc_wire_hello h;
	struct mc_wire_block block[MC_BLOCKS_MAX];
	char description[MC_DESC_TEXT];
};
/* Payload to struct. 0, -EPROTO with @why. */
int mc_wire_hello_parse(const void *payload, size_t len, struct mc_hello *ret, char *why,
                        size_t why_len);
/* Struct to payload; returns its length. @buf holds MC_WIRE_HELLO_MAX bytes. */
size_t mc_wire_hello_pack(const struct mc_hello *h, void *buf);

/* NACK/END payload to reason and text; 0 or -EPROTO. @text: MC_WHY_MAX bytes. */
int mc_wire_reason_parse(const void *payload, size_t len, uint32_t *reason, char *text);
size_t mc_wire_reason_pack(uint32_t reason, const char *text, void *buf);

const char *mc_msg_name(unsigned type);

#endif
