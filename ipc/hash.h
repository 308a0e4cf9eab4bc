/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * XXH3, 64 bits: the hash of pages and the checksum of messages.  On x86 libxxhash has code for
 * each vector width and chooses at run time: three times as fast as the inlined SSE2 one.
 */
#ifndef MC_IPC_HASH_H
#define MC_IPC_HASH_H

#include <stddef.h>
#include <stdint.h>

#include <xxhash.h>
#ifdef __x86_64__
#include <xxh_x86dispatch.h>
#endif

static inline uint64_t mc_hash(const void *p, size_t len)
{
	return XXH3_64bits(p, len);
}

#endif
