/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Doorbells: waking a sleeping process.
 *
 * Every role of a guest has one eventfd (all processes of the guest inherit all of
 * them) and one `sleeping` word in the arena.  A process that changed something that
 * another one waits for (ring index, journal state, control word) rings that one's bell;
 * the system call is only made when it sleeps.
 *
 *   ringer                                sleeper
 *   store_release(thing)          (B)     store(sleeping, 1)
 *   fence(seq_cst)                (E)     fence(seq_cst)                    (F)
 *   if (load(sleeping))                   look at every thing once more     (C)
 *           write(eventfd)                nothing to do: block on eventfd
 *                                         woken: store(sleeping, 0)
 *
 * E pairs with F: of "thing stored" and "sleeping stored" at least one is seen by the
 * other side, so a wake-up can't be lost.  B pairs with C (acquire): whoever sees the
 * thing sees what was written before it.
 */
#ifndef MC_IPC_BELL_H
#define MC_IPC_BELL_H

#include <stdatomic.h>
#include <stdint.h>

#include "role.h"

struct mc_bell {
	_Atomic uint32_t sleeping;
	uint32_t reserved[15]; /* a cache line of its own */
};
_Static_assert(sizeof(struct mc_bell) == 64, "ABI");

/*
 * Rings a bell.  Caller: any process, after its release-store of what is announced.
 * @bell: the sleeper's word in the arena.  @fd: the sleeper's eventfd, or -1 (then only
 * the word is looked at).  Never blocks: the eventfd is non-blocking, a full counter is
 * as good as a ring.
 */
void mc_bell_ring(struct mc_bell *bell, int fd);

/* Same, made whether or not the peer claims to sleep: after taking over from a dead one. */
void mc_bell_ring_always(int fd);

/*
 * Announces sleep: store and fence (F).  The caller must then look at all its things once
 * more before it blocks.
 */
void mc_bell_sleep(struct mc_bell *bell);

/* Ends sleep and empties the eventfd. */
void mc_bell_awake(struct mc_bell *bell, int fd);

#endif
