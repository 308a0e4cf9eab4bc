/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "hot.h"

#include <errno.h>
#include <stdlib.h>

#include "../ipc/copyset.h"
#include "../ipc/util.h"

#define HOT_PAGES  64 /* fewer faults aren't worth a system call more */
#define STREAK     3
#define REST_FIRST 2
#define COOL       64

int hot_init(struct hot *h, uint64_t size)
{
	*h = (struct hot){.units = size / HOT_UNIT + 1};
	h->unit = calloc(h->units, sizeof(*h->unit));
	return h->unit ? 0 : -ENOMEM;
}

void hot_done(struct hot *h)
{
	free(h->unit);
	*h = (struct hot){0};
}

uint64_t hot_stretch(const struct hot *h, uint64_t from, uint64_t to, bool *protects)
{
	bool rests = h->unit[from / HOT_UNIT].left;
	uint64_t at = from;

	*protects = !rests;
	while (at < to && !h->unit[at / HOT_UNIT].left == !rests)
		at = (at / HOT_UNIT + 1) * HOT_UNIT;
	return mc_min_u64(at, to);
}

void hot_count(struct hot *h, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint64_t end = mc_min_u64((from / HOT_UNIT + 1) * HOT_UNIT, to);

		h->unit[from / HOT_UNIT].pages += (uint16_t)((end - from) / MC_PAGE_SIZE);
		from = end;
	}
}

/* At most a third more. */
static bool within(uint16_t pages, uint16_t usual)
{
	return 3U * pages <= 4U * usual;
}

/* It was protected by this scan and the one before it. */
static void judge(struct hot *h, struct hot_unit *u)
{
	bool same = within(u->pages, u->usual) && within(u->usual, u->pages);

	u->usual = u->pages;
	if (u->cool) {
		u->cool--;
		return;
	}
	if (u->pages < HOT_PAGES || !same) {
		u->streak = u->rest = 0;
		return;
	}
	if ((u->streak < STREAK && ++u->streak < STREAK) || h->resting == HOT_UNITS_MAX)
		return;
	u->rest = u->rest ? (uint8_t)mc_min_u64(u->rest * 2, HOT_REST_MAX) : REST_FIRST;
	u->left = u->rest;
	h->resting++;
}

/* It rested in this scan. */
static void go_on_resting(struct hot *h, struct hot_unit *u)
{
	u->left--;
	if (!within(u->pages, u->usual)) {
		u->left = u->rest = u->streak = 0;
		u->cool = COOL;
	}
	u->settling = u->left == 0;
	h->resting -= u->settling;
}

void hot_scanned(struct hot *h)
{
	for (size_t i = 0; i < h->units; i++) {
		struct hot_unit *u = &h->unit[i];

		if (u->left) {
			go_on_resting(h, u);
		} else if (u->settling) {
			u->settling = false;
		} else if (u->pages || u->usual || u->cool) {
			judge(h, u);
		}
		u->pages = 0;
	}
}
