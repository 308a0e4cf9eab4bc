/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The letters (A)-(D) and the lap bit are explained at the head of ring.h. */
#include "ring.h"

#include <errno.h>
#include <stdbool.h>
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

/* What a slot's lap bit is once @index was pushed; new memory is of no lap. */
static uint64_t lap_of(uint64_t index, uint64_t nslots)
{
	return index & nslots ? 0 : MC_RING_LAP;
}

/* A slot less the lap bit that it has when @index was pushed: with that bit, it wasn't. */
static uint64_t slot_at(const struct mc_ring *ring, uint64_t nslots, uint64_t index)
{
	return atomic_load_explicit(&ring->slot[index & (nslots - 1)],
	                            memory_order_acquire) ^ /* (C) */
	       lap_of(index, nslots);
}

static int attach(struct mc_ring_end *e, struct mc_ring *ring, uint64_t nslots)
{
	uint64_t h, t;

	if (!is_power_of_two(nslots) || ring->magic != MC_RING_MAGIC || ring->nslots != nslots)
		return -EBADMSG;
	h = atomic_load_explicit(&ring->head, memory_order_acquire);
	t = atomic_load_explicit(&ring->tail, memory_order_acquire);
	/* Each may be ahead of the other: head follows what it counts. */
	if (h - t > nslots && t - h > nslots)
		return -EBADMSG;
	*e = (struct mc_ring_end){.ring = ring, .nslots = nslots};
	return 0;
}

int mc_ring_attach_producer(struct mc_ring_end *e, struct mc_ring *ring, uint64_t nslots)
{
	int r = attach(e, ring, nslots);
	uint64_t h, t;

	if (r < 0)
		return r;
	t = atomic_load_explicit(&ring->tail, memory_order_acquire);
	h = atomic_load_explicit(&ring->head, memory_order_acquire);
	if (h - t > nslots)
		h = t; /* taken before it was counted */
	while (h - t < nslots && !(slot_at(ring, nslots, h) & MC_RING_LAP))
		h++;
	e->own = h;
	e->peer = t;
	atomic_store_explicit(&ring->head, h, memory_order_release);
	return 0;
}

int mc_ring_attach_consumer(struct mc_ring_end *e, struct mc_ring *ring, uint64_t nslots)
{
	int r = attach(e, ring, nslots);

	if (r == 0)
		e->own = e->peer = atomic_load_explicit(&ring->tail, memory_order_acquire);
	return r;
}

/* 0 when there is room for @n; looks at the shared tail when the cache says that there is none. */
static int make_room(struct mc_ring_end *e, uint64_t n)
{
	uint64_t t;

	if (n > e->nslots)
		return -ENOSPC;
	if (e->own - e->peer <= e->nslots - n)
		return 0;
	t = atomic_load_explicit(&e->ring->tail, memory_order_acquire); /* (A) */
	if (e->own - t > e->nslots)
		return -EBADMSG;
	e->peer = t;
	return e->own - t > e->nslots - n ? -ENOSPC : 0;
}

/* The slots from @index on, up to @n, that are of one round and follow each other in memory. */
static size_t stretch(uint64_t index, uint64_t nslots, size_t n)
{
	uint64_t left = nslots - (index & (nslots - 1));

	return n < left ? n : left;
}

static void put(struct mc_ring *ring, uint64_t nslots, uint64_t index, const uint64_t *handles,
                size_t n)
{
	_Atomic uint64_t *slot = &ring->slot[index & (nslots - 1)];
	uint64_t lap = lap_of(index, nslots);

	for (size_t i = 0; i < n; i++)
		atomic_store_explicit(&slot[i], handles[i] | lap, memory_order_release); /* (B) */
}

static void count_to(struct mc_ring_end *e, uint64_t own)
{
	e->own = own;
	atomic_store_explicit(&e->ring->head, own, memory_order_release);
}

int mc_ring_push(struct mc_ring_end *e, uint64_t handle)
{
	int r = make_room(e, 1);

	if (r < 0)
		return r;
	if (handle & ~MC_RING_HANDLE)
		return -EINVAL;
	put(e->ring, e->nslots, e->own, &handle, 1);
	count_to(e, e->own + 1);
	return 0;
}

int mc_ring_push_burst(struct mc_ring_end *e, const uint64_t *handles, size_t n)
{
	struct mc_ring *ring = e->ring;
	uint64_t own = e->own, nslots = e->nslots, bits = 0;
	size_t first = stretch(own, nslots, n);
	int r = make_room(e, n);

	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++)
		bits |= handles[i];
	if (bits & ~MC_RING_HANDLE)
		return -EINVAL;
	put(ring, nslots, own, handles, first);
	put(ring, nslots, own + first, handles + first, n - first);
	count_to(e, own + n);
	return 0;
}

int mc_ring_peek(struct mc_ring_end *e, uint64_t ahead, uint64_t *ret)
{
	uint64_t slot;

	if (ahead >= e->nslots)
		return 0;
	slot = slot_at(e->ring, e->nslots, e->own + ahead);
	if (slot & ~MC_RING_HANDLE)
		return slot & MC_RING_LAP ? 0 : -EBADMSG;
	*ret = slot;
	return 1;
}

/* Entries from the tail on that are counted; the shared head is read when the cache has few. */
static int64_t counted(struct mc_ring_end *e, uint64_t want)
{
	if (e->peer - e->own < want || e->peer - e->own > e->nslots) {
		uint64_t h = atomic_load_explicit(&e->ring->head, memory_order_acquire); /* (C) */

		if (h - e->own > e->nslots && e->own - h > e->nslots)
			return -EBADMSG;
		e->peer = h;
	}
	return e->peer - e->own > e->nslots ? 0 : (int64_t)(e->peer - e->own);
}

/* Reads @n counted slots; the bits that are not a handle's in any of them. */
static uint64_t get(const struct mc_ring *ring, uint64_t nslots, uint64_t index, uint64_t *handles,
                    size_t n)
{
	const _Atomic uint64_t *slot = &ring->slot[index & (nslots - 1)];
	uint64_t lap = lap_of(index, nslots), bits = 0;

	for (size_t i = 0; i < n; i++) {
		handles[i] = atomic_load_explicit(&slot[i], memory_order_relaxed) ^ lap;
		bits |= handles[i];
	}
	return bits & ~MC_RING_HANDLE;
}

int mc_ring_peek_burst(struct mc_ring_end *e, uint64_t *handles, size_t max)
{
	uint64_t own = e->own, nslots = e->nslots, bits;
	size_t first;
	int64_t n = counted(e, max < nslots ? max : nslots);

	if (n < 0)
		return (int)n;
	/* A producer that died may not have counted what it pushed. */
	if (n == 0)
		return max ? mc_ring_peek(e, 0, handles) : 0;
	if ((uint64_t)n > max)
		n = (int64_t)max;
	first = stretch(own, nslots, (size_t)n);
	bits = get(e->ring, nslots, own, handles, first);
	bits |= get(e->ring, nslots, own + first, handles + first, (size_t)n - first);
	return bits ? -EBADMSG : (int)n;
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
	uint64_t t = atomic_load_explicit(&ring->tail, memory_order_acquire), slot;

	for (uint64_t i = t; i - t < nslots; i++) {
		slot = slot_at(ring, nslots, i);
		if (slot & MC_RING_LAP)
			break;
		if (slot == handle)
			return 1;
	}
	return 0;
}
