/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Parts of a RAM block in which the guest writes the same pages all the time.  To protect them anew
 * at each scan only costs it a fault for each of them in each epoch; what is left unprotected
 * is reported as written by every scan, and so is in every epoch.  That is never too little.
 * That it is too much shows at once where other pages are written each time: the reports grow.
 * Whether they are written at all any more only a scan with protection tells, so a part rests
 * for a few scans, and for more of them as long as it is.
 */
#ifndef MC_CAPTURE_HOT_H
#define MC_CAPTURE_HOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HOT_UNIT      (2ULL << 20) /* bytes */
#define HOT_UNITS_MAX 32           /* that rest at a time */
#define HOT_REST_MAX  16           /* scans */

struct hot_unit {
	uint16_t pages; /* reported by the scan that is on */
	uint16_t usual; /* by the last one that tells what is written between two */
	uint8_t streak; /* scans in a row that reported about as much */
	uint8_t rest;   /* scans that it rested the last time */
	uint8_t left;   /* scans that it is still to rest; 0: it is protected by each */
	uint8_t cool;   /* scans until it is looked at again */
	bool settling;  /* what the next scan reports is of all the time that it rested */
};

/* Of one block. */
struct hot {
	struct hot_unit *unit; /* owned */
	size_t units, resting;
};

/* 0 or -ENOMEM. */
int hot_init(struct hot *h, uint64_t size);
void hot_done(struct hot *h);

/*
 * From byte @from on, to @to at most: the end of what is of one kind.  @protects: whether the scan
 * is to protect it.
 */
uint64_t hot_stretch(const struct hot *h, uint64_t from, uint64_t to, bool *protects);
/* The scan that is on reports bytes [@from, @to); two threads may count, but not in the same unit.
 */
void hot_count(struct hot *h, uint64_t from, uint64_t to);
/* The scan is over, and all of it went well. */
void hot_scanned(struct hot *h);

#endif
