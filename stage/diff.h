/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What differs between a page and its base, in the form of a DELTA page (copyset.h). */
#ifndef MC_STAGE_DIFF_H
#define MC_STAGE_DIFF_H

#include <stdint.h>

#include "../ipc/copyset.h"

#define DIFF_MAX (8 + MC_PAGE_SIZE / MC_LINE_SIZE + MC_PAGE_SIZE) /* bytes that one may take */

/*
 * Writes the difference to @to (room for DIFF_MAX bytes) and makes @base equal to @page.
 * @words: scratch of MC_PAGE_SIZE + 64 bytes.  Returns the length, 0 when they are equal.
 */
typedef unsigned (*diff_fn)(uint8_t *to, const uint8_t *page, uint8_t *base, uint64_t *words);

/* Runs everywhere; the other one needs what diff_best() looks for. */
unsigned diff_plain(uint8_t *to, const uint8_t *page, uint8_t *base, uint64_t *words);

/* The fastest one that this processor has. */
diff_fn diff_best(void);

#endif
