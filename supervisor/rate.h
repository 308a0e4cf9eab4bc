/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How often somebody may do something: a bucket of tokens that fills again with time. */
#ifndef MC_SUPERVISOR_RATE_H
#define MC_SUPERVISOR_RATE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct rate {
	unsigned tokens; /* what may be done now */
	uint64_t at;     /* ns: when they were counted last; 0: a full bucket */
};

/* Takes a token at @now (ns); false: none is left. @burst at once, then one every @refill_ns. */
bool rate_take(struct rate *r, unsigned burst, uint64_t refill_ns, uint64_t now);

#define CALLERS_MAX  64
#define CALLER_NAME  64
#define CALLER_BURST 20        /* calls of one stranger at once, */
#define CALLER_NS    100000000 /* and then one every 100 ms */

/* One connection to the bus, as it is remembered. Zeroed: an empty place. */
struct caller {
	char name[CALLER_NAME]; /* unique on the bus, never used twice */
	uid_t uid;
	struct rate rate;
	uint64_t used; /* ns */
};

/* Who is called so, or NULL. */
struct caller *callers_find(struct caller list[CALLERS_MAX], const char *name);

/*
 * Remembers one more, in the place of whom we heard of longest ago.  A newcomer has a full bucket:
 * who comes by ever new connections is held back by what all strangers have together (access.c),
 * and by the bus' limit of connections.
 */
struct caller *callers_add(struct caller list[CALLERS_MAX], const char *name, uid_t uid,
                           uint64_t now);

#endif
