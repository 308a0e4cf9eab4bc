/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What differs between a page and its base, in the form of a DELTA page (copyset.h). */
#ifndef MC_STAGE_DIFF_H
#define MC_STAGE_DIFF_H

#include <stdint.h>

#include "../ipc/copyset.h"

#define DIFF_LINES 47 /* of a page in which more differ little is left to be saved */
/* What one takes at most: map, a byte a line, a byte a word, the bytes. */
#define DIFF_MAX  (8 + DIFF_LINES * (1 + MC_LINE_SIZE / 8 + MC_LINE_SIZE))
#define DIFF_FULL (~0U)

/* Parts of a difference that are written at the same time; behind each room for a whole register.
 */
struct diff_scratch {
	uint8_t map[MC_PAGE_SIZE / 8 + 8];
	uint8_t byte[MC_PAGE_SIZE + MC_LINE_SIZE];
};

/*
 * Writes the difference to @to (room for DIFF_MAX bytes) and makes @base equal to @page.  Returns
 * the length, 0 when they are equal; DIFF_FULL: more than DIFF_LINES lines differ, the page is to
 * be sent whole (@base is made equal all the same).
 */
typedef unsigned (*diff_fn)(uint8_t *to, const uint8_t *page, uint8_t *base,
                            struct diff_scratch *s);

/* Runs everywhere; the other one needs what diff_best() looks for. */
unsigned diff_plain(uint8_t *to, const uint8_t *page, uint8_t *base, struct diff_scratch *s);

/* The fastest one that this processor has. */
diff_fn diff_best(void);

#endif
