/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From a raw slab to an encoded one (copyset.h): zero pages by name, known pages as XOR
 * against the shadow, everything through zstd in chunks, plain where that doesn't help.
 */
#ifndef MC_STAGE_ENCODE_H
#define MC_STAGE_ENCODE_H

#include <stdint.h>

#include "../ipc/copyset.h"
#include "../ipc/pool.h"
#include "../ipc/shadow.h"

struct encoder;

struct encode_stats {
	uint32_t zero, full, delta;
};

/* One encoder a process. @unit: slab size. -ENOMEM. */
int encoder_new(struct encoder **ret, uint64_t unit);
struct encoder *encoder_free(struct encoder *e); /* NULL ok; returns NULL */

/* What the pages of one slab are encoded with. */
struct encode_job {
	const struct mc_slab_meta *meta; /* of the raw slab: a private copy */
	const uint8_t *raw;
	const struct mc_page_desc *desc; /* PAGES only */
	uint32_t nblocks;                /* blocks that a descriptor may name */
	struct mc_shadow *shadow;        /* NULL: no deltas (first copy) */
	uint64_t base;                   /* epoch of the delta bases; 0: none */
	int level;                       /* zstd */
};

/*
 * Encodes into @out (unit bytes).  Returns the encoded length, or -EBADMSG when the raw slab
 * or its descriptors are impossible.  Never writes beyond unit bytes.  A slab whose pages are
 * all struck out becomes one without pages.
 */
int64_t encode_slab(struct encoder *e, const struct encode_job *job, void *out,
                    struct encode_stats *stats);

#endif
