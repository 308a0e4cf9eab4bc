/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is special about a link by RDMA (reliable connection).  Little-endian; reserved fields
 * are 0 and checked.
 *
 *   connection request  private data: struct mc_rdma_request with the token of the RDMA_OFFER
 *   refusal             private data: struct mc_rdma_refusal
 *   SEND                struct mc_rdma_head, then
 *     MESSAGE             a message of wire.h: header and payload
 *     SLAB                its header and struct mc_wire_slab; the content was written before, in
 *                         order, by RDMA WRITE to the start of the slab in slot head.slot
 *     CREDIT              head.count times struct mc_rdma_credit: empty slabs to write to
 *
 * Each side has MC_RDMA_RECVS receives posted, the first large enough for HELLO, which is the
 * first message each way; it says in head.consumed how many messages it has taken off them, and
 * tells when half of them were used and nothing else was to be said.  A sender has at most
 * MC_RDMA_RECVS messages on the way, the last MC_RDMA_RESERVED only of type CREDIT.  A slot is used
 * once: the receiver ends remote access to it before it looks at the slab.
 */
#ifndef MC_IPC_WIRE_RDMA_H
#define MC_IPC_WIRE_RDMA_H

#include <stdint.h>

#include "wire.h"

#define MC_RDMA_MAGIC    0x4452434dU /* "MCRD" */
#define MC_RDMA_VERSION  1U
#define MC_RDMA_RECVS    32
#define MC_RDMA_RESERVED 2
#define MC_RDMA_SLOTS    16

struct mc_rdma_request {
	uint32_t magic;
	uint16_t version;
	uint16_t reserved;
	uint64_t token[2];
};
_Static_assert(sizeof(struct mc_rdma_request) == 24, "wire");

struct mc_rdma_refusal {
	uint32_t magic;
	uint16_t version; /* that the backup speaks */
	uint16_t reserved;
	uint32_t error; /* errno value */
};
_Static_assert(sizeof(struct mc_rdma_refusal) == 12, "wire");

enum mc_rdma_kind {
	MC_RDMA_MESSAGE = 1,
	MC_RDMA_SLAB = 2,
	MC_RDMA_CREDIT = 3,
};

struct mc_rdma_head {
	uint32_t magic;
	uint16_t kind;     /* enum mc_rdma_kind */
	uint16_t count;    /* CREDIT: credits that follow; else 0 */
	uint32_t consumed; /* messages of the peer taken so far, modulo 2^32 */
	uint32_t slot;     /* SLAB: where its content is; else 0 */
};
_Static_assert(sizeof(struct mc_rdma_head) == 16, "wire");

struct mc_rdma_credit {
	uint64_t addr;
	uint32_t rkey;
	uint32_t slot; /* < MC_RDMA_SLOTS, not among those that the peer has */
};
_Static_assert(sizeof(struct mc_rdma_credit) == 16, "wire");

/* Small messages: all but HELLO. */
#define MC_RDMA_SMALL 1024
_Static_assert(sizeof(struct mc_rdma_head) + MC_WIRE_HEADER + sizeof(struct mc_wire_reason) +
                               MC_WHY_MAX <=
                       MC_RDMA_SMALL,
               "a message with a text is small");
#define MC_RDMA_LARGE (sizeof(struct mc_rdma_head) + MC_WIRE_HEADER + MC_WIRE_HELLO_MAX)

#endif
