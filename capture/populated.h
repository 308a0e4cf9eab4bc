/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which parts of a RAM block were ever touched, by what its file holds: the rest needs no scan, and
 * no page tables that a scan would make.  An area is a hole until a page of it is in the file.
 */
#ifndef MC_CAPTURE_POPULATED_H
#define MC_CAPTURE_POPULATED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define POPULATED_AREA (16ULL << 20) /* bytes */

struct populated {
	int fd; /* of the block's file, owned; -1: all of the block counts as populated */
	uint64_t size;
	uint8_t *area; /* owned; 1: populated */
};

/* A part of the block, bytes from its start. */
struct populated_run {
	uint64_t from, to;
	bool fresh; /* one area that was a hole when it was looked at last */
};

/*
 * Takes @fd, in any case, and looks at what is there.  Of other files than tmpfs's all counts as
 * populated, since not each tells its holes at once.  0 or negative errno.
 */
int populated_init(struct populated *p, int fd, uint64_t size);
void populated_done(struct populated *p);

/*
 * The next run from @r->to on.  1: it is in @r; 0: there is none; negative errno.  Nobody may
 * write to the block while it is walked through.
 */
int populated_next(struct populated *p, struct populated_run *r);

/*
 * Takes out of the bitmaps (@also may be NULL) those pages of @r that aren't in the file; page 0
 * of the block is bit @first.  The number of bits of @bitmap that were set, or negative errno.
 */
int64_t populated_strike_holes(const struct populated *p, const struct populated_run *r,
                               uint64_t first, _Atomic uint64_t *bitmap, _Atomic uint64_t *also);

#endif
