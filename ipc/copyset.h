/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copysets: the content of slabs, raw (capture -> stage) and encoded (stage -> restore).
 *
 * Raw PAGES slab: pages of 4096 bytes (but ZEROED ones), one after the other; its descriptors are
 * an array of struct mc_page_desc in the block meta.desc of the descriptor pool, same order. Raw
 * STATE slab: meta.used bytes of QEMU device state.
 *
 * ENCODED slab, as it travels, self-contained:
 *
 *   struct mc_enc_header
 *   struct mc_enc_page   [pages]      (STATE: none)
 *   struct mc_enc_chunk  [chunks]
 *   chunk bytes, one after the other
 *
 * The content stream is, page after page: nothing for a ZERO page, 4096 bytes for a FULL
 * page; for a DELTA page what differs from its base (the page as of the epoch
 * mc_enc_header.base): a 64-bit map of the 64-byte lines that differ; for each of them a byte
 * that maps its eight words; for each of those words a byte that maps its eight bytes; then content
 * XOR base of each of those bytes.  Nothing at all when the page equals its base.  For STATE it is
 * the device state.  The stream is cut into chunks of at most MC_CHUNK_MAX raw bytes, each a zstd
 * frame, or plain where zstd would not make it smaller; so no page is sent larger than itself.
 * Every page carries the XXH3 64-bit hash of its decoded content.
 *
 * All fields little-endian.  The decoder trusts nothing: every count and length is
 * checked against the slab's used bytes and the negotiated limits.
 *
 * A raw PAGES slab holds at most mc_copyset_pages_max(unit) pages, so that its encoded form
 * always fits one slab of the same size.
 */
#ifndef MC_IPC_COPYSET_H
#define MC_IPC_COPYSET_H

#include <stddef.h>
#include <stdint.h>

#define MC_PAGE_SIZE 4096ULL
#define MC_CHUNK_MAX (256ULL * 1024)

enum mc_page_flags {
	MC_PAGE_NOBASE = 1, /* the backup may lack the previous content: no delta */
	MC_PAGE_ZEROED = 4, /* all zero: no bytes in the slab (restore, and the first copy) */
	MC_PAGE_STRUCK = 2, /* superseded by a later copy in this epoch: not to be sent */
};

/* Descriptor of one captured page. */
struct mc_page_desc {
	uint32_t block;  /* index into the RAM block table */
	uint32_t flags;  /* enum mc_page_flags */
	uint64_t offset; /* in the block, bytes, a multiple of 4096 */
	uint64_t hash;   /* XXH3 of the content; written by stage, 0 before */
};
_Static_assert(sizeof(struct mc_page_desc) == 24, "ABI");

enum mc_page_method {
	MC_PAGE_ZERO = 0,
	MC_PAGE_FULL = 1,
	MC_PAGE_DELTA = 2,
};

enum mc_chunk_codec {
	MC_CHUNK_PLAIN = 0,
	MC_CHUNK_ZSTD = 1,
};

#define MC_ENC_MAGIC   0x5345434dU /* "MCES" */
#define MC_ENC_VERSION 2

struct mc_enc_header {
	uint32_t magic;
	uint16_t version; /* MC_ENC_VERSION */
	uint16_t of_kind; /* MC_KIND_STATE, MC_KIND_PAGES */
	uint64_t epoch;   /* 0: a round of the first copy */
	uint64_t base;    /* epoch of the delta bases; 0: no deltas in here */
	uint32_t seq;
	uint32_t pages;
	uint32_t chunks;
	uint32_t reserved; /* 0 */
	uint64_t raw_len;  /* of the content stream */
	uint64_t hash;     /* STATE: XXH3 of the device state; PAGES: 0 */
};
_Static_assert(sizeof(struct mc_enc_header) == 56, "ABI");

#define MC_LINE_SIZE 64ULL
#define MC_DELTA_MAX (MC_PAGE_SIZE - 8) /* a longer one is sent as FULL */

struct mc_enc_page {
	uint32_t page; /* number within its block */
	uint8_t block;
	uint8_t method;
	uint16_t length; /* in the content stream */
	uint64_t hash;
};
_Static_assert(sizeof(struct mc_enc_page) == 16, "ABI");

/* Offset of the page in its block, bytes. */
static inline uint64_t mc_enc_page_offset(const struct mc_enc_page *p)
{
	return p->page * MC_PAGE_SIZE;
}

struct mc_enc_chunk {
	uint32_t raw_len;
	uint32_t enc_len;
	uint32_t codec;
	uint32_t reserved; /* 0 */
};
_Static_assert(sizeof(struct mc_enc_chunk) == 16, "ABI");

/* Pages that a raw slab of @unit bytes may hold (its encoded form fits @unit bytes). */
uint64_t mc_copyset_pages_max(uint64_t unit);

/* Largest device state in bytes that one STATE slab may hold (same reason). */
uint64_t mc_copyset_state_max(uint64_t unit);

/*
 * Parsed and validated view of an encoded slab; points into it.
 */
struct mc_enc_view {
	struct mc_enc_header h; /* a private copy */
	const struct mc_enc_page *page;
	const struct mc_enc_chunk *chunk;
	const uint8_t *bytes;
	size_t bytes_len;
};

/* What a decoder accepts. */
struct mc_enc_limits {
	uint64_t unit;    /* slab size */
	uint32_t nblocks; /* RAM blocks */
	const uint64_t *block_size;
};

/*
 * Checks an encoded slab completely: magic, version, counts, sums of lengths, blocks and
 * offsets, methods, reserved fields.  0, or -EBADMSG (malformed), -EPROTONOSUPPORT
 * (version).  The chunks' content is checked by whoever decompresses.  The memory at @buf
 * must not be writable by anybody else.
 */
int mc_enc_parse(const void *buf, size_t len, const struct mc_enc_limits *lim,
                 struct mc_enc_view *ret);

#endif
