/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The letters (A)-(D) are explained at the head of ring.h. */
#include "ring.h"

#include <errno.h>
#include <string.h>

static int is_power_of_two(uint64_t n)
{
	return n && (n & (n - 1)) == 0;
}

size_t mc_ring_size(uint64_t nslots)
{
	return sizeof(struct mc_ring) + nslots * sizeof(uint64_t);
}

int mc_ring_init(struct mc_ring *ring, uint64_t nslots)
{
	if (!is_power_of_two(nslots))
		return -EINVAL;
	memset(ring, 0, mc_ring_size(nslots));
	ring->magic = MC_RING_MAGIC;
	ring->nslots = nslots;
	return 0;
}

static int attach(struct mc_ring_end *e, struct mc_ring *ring, uint64_t nslots)
{
	uint64_t h, t;

	if (!is_power_of_two(nslots) || ring->magic != MC_RING_MAGIC || ring->nslots != nslots)
		return -EBADMSG;
	h = atomic_load_explicit(&ring->head, memory_order_acquire);
	t = atomic_load_explicit(&ring->tail, memory_order_acquire);
	/* The other side may move between the two loads, but only within the window. */
	if (h - t > nslots && t - h > nslots)
		return -EBADMSG;
	*e = (struct mc_ring_end){.ring = ring, .nslots = nslots};
	return 0;
}

int mc_ring_attach_producer(struct mc_ring_end *e, struct mc_ring *ring, uint64_t nslots)
{
	int r = attach(e, ring, nslots);

	if (r < 0)
		return r;
	e->own = atomic_load_explicit(&ring->head, memory_order_acquire);
	e->peer = atomic_load_explicit(&ring->tail, memory_order_acquire);
	return e->own - e->peer > nslots ? -EBADMSG : 0;
}

int mc_ring_attach_consumer(struct mc_ring_end *e, struct mc_ring *ring, uint64_t nslots)
{
	int r = attach(e, ring, nslots);

	if (r < 0)
		return r;
	e->own = atomic_load_explicit(&ring->tail, memory_order_acquire);
	e->peer = atomic_load_explicit(&ring->head, memory_order_acquire);
	return e->peer - e->own > nslots ? -EBADMSG : 0;
}

int mc_ring_push_burst(struct mc_ring_end *e, const uint64_t *handles, size_t n)
{
	struct mc_ring *ring = e->ring;
	uint64_t mask = e->nslots - 1;

	if (n > e->nslots)
		return -ENOSPC;
	if (e->own - e->peer > e->nslots - n) {
		uint64_t t = atomic_load_explicit(&ring->tail, memory_order_acquire); /* (A) */

		if (e->own - t > e->nslots)
			return -EBADMSG;
		e->peer = t;
		if (e->own - t > e->nslots - n)
			return -ENOSPC;
	}
	for (size_t i = 0; i < n; i++)
		atomic_store_explicit(&ring->slot[(e->own + i) & mask], handles[i],
		                      memory_order_relaxed);
	e->own += n;
	atomic_store_explicit(&ring->head, e->own, memory_order_release); /* (B) */
	return 0;
}

int mc_ring_push(struct mc_ring_end *e, uint64_t handle)
{
	return mc_ring_push_burst(e, &handle, 1);
}

/* Entries from the tail on, after a look at the shared head when the cache has fewer than @want. */
static int64_t available(struct mc_ring_end *e, uint64_t want)
{
	if (e->peer - e->own < want) {
		uint64_t h = atomic_load_explicit(&e->ring->head, memory_order_acquire); /* (C) */

		if (h - e->own > e->nslots)
			return -EBADMSG;
		e->peer = h;
	}
	return (int64_t)(e->peer - e->own);
}

int mc_ring_peek(struct mc_ring_end *e, uint64_t ahead, uint64_t *ret)
{
	int64_t n;

	if (ahead >= e->nslots)
		return 0;
	n = available(e, ahead + 1);
	if (n < 0)
		return (int)n;
	if ((uint64_t)n <= ahead)
		return 0;
	*ret = atomic_load_explicit(&e->ring->slot[(e->own + ahead) & (e->nslots - 1)],
	                            memory_order_relaxed);
	return 1;
}

int mc_ring_peek_burst(struct mc_ring_end *e, uint64_t *handles, size_t max)
{
	int64_t n = available(e, max < e->nslots ? max : e->nslots);

	if (n < 0)
		return (int)n;
	if ((uint64_t)n > max)
		n = (int64_t)max;
	for (int64_t i = 0; i < n; i++)
		handles[i] = atomic_load_explicit(
		        &e->ring->slot[(e->own + (uint64_t)i) & (e->nslots - 1)],
		        memory_order_relaxed);
	return (int)n;
}

void mc_ring_advance(struct mc_ring_end *e, uint64_t n)
{
	e->own += n;
	atomic_store_explicit(&e->ring->tail, e->own, memory_order_release); /* (D) */
}

uint64_t mc_ring_depth(const struct mc_ring *ring)
{
	uint64_t t = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	uint64_t d = atomic_load_explicit(&ring->head, memory_order_relaxed) - t;

	return d > ring->nslots ? 0 : d;
}

int mc_ring_contains(const struct mc_ring *ring, uint64_t nslots, uint64_t handle)
{
	uint64_t t = atomic_load_explicit(&ring->tail, memory_order_acquire);
	uint64_t h = atomic_load_explicit(&ring->head, memory_order_acquire);

	if (h - t > nslots) /* the consumer moved on between the loads: its window is smaller */
		t = h - nslots;
	for (uint64_t i = t; i != h; i++)
		if (atomic_load_explicit(&ring->slot[i & (nslots - 1)], memory_order_relaxed) ==
		    handle)
			return 1;
	return 0;
}
