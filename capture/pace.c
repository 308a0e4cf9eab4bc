/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pace.h"

#include "../ipc/util.h"

#define FAULT_NS   1000 /* about what the first write to a protected page costs a guest */
#define WAIT_FIRST 4
#define WAIT_MOST  64

bool pace_wants_prescan(struct pace_prescan *p, uint64_t pages)
{
	bool skipped = p->skip > 0;

	/* A small epoch counts as well: the guest does something else meanwhile. */
	if (skipped)
		p->skip--;
	if (pages <= PACE_PRESCAN)
		return false;
	/* A guest that writes much more than it did then is another case. */
	return !skipped || pages > 2 * p->pages;
}

void pace_prescan_done(struct pace_prescan *p, const struct pace_tried *t)
{
	uint64_t kept = t->pages - mc_min_u64(t->struck, t->pages);
	uint64_t saved = t->pages ? kept * t->copy_ns / t->pages : 0;
	uint64_t cost = t->stop_ns + t->struck * FAULT_NS;

	/* One long stop is worse than two short ones: what is saved of it counts twice. */
	if (2 * saved >= cost) {
		*p = (struct pace_prescan){0};
		return;
	}
	p->wait = p->wait ? (uint32_t)mc_min_u64(p->wait * 2, WAIT_MOST) : WAIT_FIRST;
	p->skip = p->wait;
	p->pages = t->pages;
}
