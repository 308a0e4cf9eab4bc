/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "rate.h"

#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"

bool rate_take(struct rate *r, unsigned burst, uint64_t refill_ns, uint64_t now)
{
	uint64_t fresh = r->at ? (now - r->at) / refill_ns : burst;

	if (fresh) {
		/* What has passed of the next token's time isn't lost. */
		r->at = r->at && fresh < burst ? r->at + fresh * refill_ns : now;
		r->tokens = (unsigned)mc_min_u64(r->tokens + fresh, burst);
	}
	if (!r->tokens)
		return false;
	r->tokens--;
	return true;
}

struct caller *callers_find(struct caller list[CALLERS_MAX], const char *name)
{
	for (int i = 0; i < CALLERS_MAX; i++)
		if (list[i].name[0] && strcmp(list[i].name, name) == 0)
			return &list[i];
	return NULL;
}

struct caller *callers_add(struct caller list[CALLERS_MAX], const char *name, uid_t uid,
                           uint64_t now)
{
	struct caller *c = &list[0];

	for (int i = 1; i < CALLERS_MAX; i++)
		if (list[i].used < c->used)
			c = &list[i];
	*c = (struct caller){.uid = uid, .used = now};
	snprintf(c->name, sizeof(c->name), "%s", name);
	return c;
}
