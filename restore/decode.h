/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From an encoded slab (copyset.h) to pages, every one of them verified by its hash.
 */
#ifndef MC_RESTORE_DECODE_H
#define MC_RESTORE_DECODE_H

#include <stdint.h>

#include "../ipc/copyset.h"

struct decoder;

/* @unit: slab size. -ENOMEM. */
int decoder_new(struct decoder **ret, uint64_t unit);
struct decoder *decoder_free(struct decoder *d); /* NULL ok; returns NULL */

/*
 * Copies an encoded slab to where no other process can change it any more, and checks it
 * (mc_enc_parse()).  The view is valid until the next call.
 */
int decoder_open(struct decoder *d, const void *slab, uint64_t len, const struct mc_enc_limits *lim,
                 struct mc_enc_view *ret);

/*
 * Called for each page of a slab, in order: @content 4096 bytes, verified, or NULL for a zero
 * page; valid during the call.  Negative errno ends the decoding.
 */
typedef int (*decode_page_fn)(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content);

/*
 * Decodes an opened PAGES slab.  @ram: the blocks' current content, base of DELTA pages.
 * 0; -EBADMSG (malformed, or a hash that doesn't fit); what @fn returned.
 */
int decode_pages(struct decoder *d, const struct mc_enc_view *v, uint8_t *const *ram,
                 decode_page_fn fn, void *ctx);

/* Decodes an opened STATE slab into @out (h.raw_len bytes, at most unit). 0 or -EBADMSG. */
int decode_state(struct decoder *d, const struct mc_enc_view *v, void *out);

#endif
