/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When epochs begin. */
#ifndef MC_CAPTURE_PACE_H
#define MC_CAPTURE_PACE_H

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

#endif
