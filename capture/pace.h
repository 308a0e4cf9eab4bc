/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When epochs begin, and whether a pre-scan is worth its stop. */
#ifndef MC_CAPTURE_PACE_H
#define MC_CAPTURE_PACE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * When the next epoch is due, after one that was due at @due and began at @began; all in ns.
 * Epochs keep to a grid of @interval: what a wake-up was late is made up by the next epoch.
 * One that is late by an interval or more has missed its place, and one that began before it was
 * due was asked for: the grid begins anew there.  So never more than one epoch is made up for.
 */
static inline uint64_t pace_next(uint64_t due, uint64_t began, uint64_t interval)
{
	return (began >= due && began - due < interval ? due : began) + interval;
}

#define PACE_PRESCAN 2048 /* pages: more than this may be worth a drained pre-scan */

/*
 * A guest that keeps writing the same pages has written them again before they are copied: the
 * pre-scan then costs a stop and a second fault of each page, and copies for nothing.  Only a try
 * tells; the longer it doesn't pay, the rarer it is tried.
 */
struct pace_prescan {
	uint32_t skip, wait; /* epochs without, still to come and in all */
	uint64_t pages;      /* of the epoch whose pre-scan didn't pay */
};

/* What a pre-scan brought and cost. */
struct pace_tried {
	uint64_t pages, struck; /* copied while the guest ran; of those written again since */
	uint64_t copy_ns;       /* for all of them */
	uint64_t stop_ns;       /* guest stopped for it */
};

/* Whether the next epoch, which will have about @pages, begins with one; once an epoch. */
bool pace_wants_prescan(struct pace_prescan *p, uint64_t pages);
void pace_prescan_done(struct pace_prescan *p, const struct pace_tried *t);

#endif
