/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Taps and sockets, in a network namespace other than our own where asked. */
#ifndef MC_NETGATE_TAP_H
#define MC_NETGATE_TAP_H

#include <stddef.h>

/*
 * Opens tap @name (made if it isn't there) in namespace @netns ("" our own; a name under
 * /run/netns, or a path).  Non-blocking fd, or negative errno with a sentence in @why.
 */
int tap_open(const char *name, const char *netns, char *why, size_t why_len);

/*
 * A unix datagram socket bound to @path (an old socket file there is replaced; @path empty:
 * not bound), with net.unix.max_dgram_qlen raised before, where permitted.
 */
int dgram_open(const char *path, char *why, size_t why_len);

#endif
