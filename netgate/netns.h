/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Being in another network namespace for a moment. */
#ifndef MC_NETGATE_NETNS_H
#define MC_NETGATE_NETNS_H

/*
 * Enters @name: a name under /run/netns or a path; "" stays where we are.  *own is what
 * netns_leave() needs, -1 when nothing was entered.  0 or negative errno.
 */
int netns_enter(const char *name, int *own);
/* Comes back. A process that can't must not go on in the wrong namespace: aborts. */
void netns_leave(int *own);

#endif
