/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copies guest pages into slabs by a device: RDMA WRITEs on a queue pair that leads back to this
 * process, instead of memcpy.  The CPU posts requests and waits.
 *
 * Both memories must be registered, which pins them and takes time: it is done outside of the
 * pause (rdma_copy_prepare()), of guest RAM in chunks, as they are found to be written to, up to a
 * limit, and only where all of a chunk exists (registering would allocate holes).  A page of a
 * chunk that isn't registered, or for a slab that isn't, is copied by memcpy.
 */
#ifndef MC_CAPTURE_RDMA_COPY_H
#define MC_CAPTURE_RDMA_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../ipc/pool.h"

#define RDMA_COPY_BLOCKS 16

struct rdma_copy;

struct rdma_copy_stats {
	uint64_t by_device, by_cpu; /* bytes copied */
	uint64_t pinned;            /* bytes registered now */
	uint64_t registrations;
};

/*
 * Opens the host's first RDMA device.  @pool: where slabs lie; @limit: bytes of guest RAM pinned at
 * most.  -ENODEV, -ENETDOWN, or what the device answered.
 */
int rdma_copy_new(struct rdma_copy **ret, const struct mc_pool *pool, uint64_t limit);
/* NULL ok; returns NULL. */
struct rdma_copy *rdma_copy_free(struct rdma_copy *c);

/* A RAM block by its file (not kept). -errno: it is copied by memcpy. */
int rdma_copy_add_block(struct rdma_copy *c, unsigned block, int fd, uint64_t size);

/*
 * Outside of the pause: registers slabs that are free or ours, and up to a few chunks of guest RAM
 * whose pages came by memcpy since the last call.  May take milliseconds.
 */
void rdma_copy_prepare(struct rdma_copy *c);

/*
 * Copies @len bytes (whole pages) at @off of @block, which this process also sees at @from, to @to
 * in a slab: begins it, or does it by memcpy.
 */
void rdma_copy(struct rdma_copy *c, unsigned block, uint64_t off, const uint8_t *from, uint8_t *to,
               size_t len);

/*
 * Waits until all that was begun is copied.  When the device fails or takes longer than a
 * tenth of a second it is not used any more, and everything is copied again by memcpy: 0, or the
 * device's negative errno, once.  The content is right either way.
 */
int rdma_copy_finish(struct rdma_copy *c);

void rdma_copy_get_stats(const struct rdma_copy *c, struct rdma_copy_stats *ret);

#endif
