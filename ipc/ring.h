/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Single-producer single-consumer ring of 64-bit handles in shared memory.
 *
 *   producer (sole writer of head, slots)      consumer (sole writer of tail)
 *   t = load_acquire(tail)              (A)    s = load_acquire(slot[tail & mask])   (C)
 *   if (head - t >= nslots) full               if (lap bit of s isn't tail's) empty
 *   store_release(slot[head & mask],           use the handle in s
 *                 handle | lap bit)     (B)    store_release(tail, tail + 1)         (D)
 *   store_release(head, head + 1)
 *   ring the consumer's bell (E)
 *
 *   B pairs with C: what was written before a push is visible to who sees the handle.
 *   D pairs with A: the consumer has read the slot before the producer may reuse it.
 *   E and F (the sleeping peer) are in bell.h.
 *
 * Indices are free-running 64-bit counters, compared by difference only; the number of
 * slots is a power of two.  A slot itself says that it was pushed: its highest bit
 * alternates from one round over the ring to the next.  So one cache line passes from
 * producer to consumer for eight handles, and none but that one: a consumer that looked at
 * head took its line away at every look, and who followed closely paid two transfers a
 * handle.  (FastForward, Giacomoni et al., PPoPP 2008, has the same end by writing NULL
 * back; here the consumer writes nothing into the slots.)  The producer keeps the tail that
 * it saw last in its own private struct (mc_ring_end) and looks again when that says full.
 *
 * head counts what was pushed: for who takes a whole burst (one look at it instead of one at
 * each slot), and for whoever looks on.  It may be behind by what its producer was pushing
 * when it died: its successor counts on over the slots that are pushed.
 * The consumer peeks, works, pushes its result on, and only then advances: after
 * a death the successor finds the entry again.
 *
 * A peer may be dead, hung or malicious: its index is read once per call and checked
 * against nslots before it is used, a slot's bits that are neither handle nor lap must be
 * zero; -EBADMSG means that the ring can't be trusted any more (the owner of the data must
 * be restarted).
 */
#ifndef MC_IPC_RING_H
#define MC_IPC_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct mc_ring {
	_Atomic uint64_t head; /* pushes so far; producer's line */
	uint8_t pad0[56];
	_Atomic uint64_t tail; /* next slot to read; consumer's line */
	uint8_t pad1[56];
	uint64_t magic; /* MC_RING_MAGIC; written once, before the ring is shared */
	uint64_t nslots;
	uint8_t pad2[48];
	_Atomic uint64_t slot[];
};
#define MC_RING_MAGIC  0x32676e697263636dULL
#define MC_RING_HANDLE ((1ULL << 52) - 1) /* index and generation of a slab (pool.h) */
#define MC_RING_LAP    (1ULL << 63)
_Static_assert(offsetof(struct mc_ring, tail) == 64, "ABI");
_Static_assert(offsetof(struct mc_ring, slot) == 192, "ABI");

/* One process' private end of a ring. */
struct mc_ring_end {
	struct mc_ring *ring;
	uint64_t nslots; /* private copy: the shared one can't be trusted later */
	uint64_t own;    /* head of the producer, tail of the consumer */
	uint64_t peer;   /* the other side's index as last seen */
};

/* Bytes of a ring with @nslots (a power of two) slots. */
size_t mc_ring_size(uint64_t nslots);

/* Initialises memory that no other process sees yet.  Returns -EINVAL for a bad nslots. */
int mc_ring_init(struct mc_ring *ring, uint64_t nslots);

/*
 * Attach as producer or consumer; a successor goes on behind what its predecessor pushed, or
 * where it advanced to.  @nslots is what the arena's layout says; -EBADMSG when the ring differs
 * or its indices are impossible.  Only one process at a time may hold each end: the
 * predecessor has been reaped.
 */
int mc_ring_attach_producer(struct mc_ring_end *e, struct mc_ring *ring, uint64_t nslots);
int mc_ring_attach_consumer(struct mc_ring_end *e, struct mc_ring *ring, uint64_t nslots);

/*
 * Pushes one handle, of MC_RING_HANDLE's bits. 0, -ENOSPC (full: can't happen while
 * nslots >= pool size), -EINVAL (not a handle), -EBADMSG.
 */
int mc_ring_push(struct mc_ring_end *e, uint64_t handle);

/*
 * Pushes @n handles when there is room for all of them, else none.  The consumer may take the
 * first ones before the last are there.
 */
int mc_ring_push_burst(struct mc_ring_end *e, const uint64_t *handles, size_t n);

/* Reads the handle @ahead places behind the tail, leaves it there. 1, 0 (empty), -EBADMSG. */
int mc_ring_peek(struct mc_ring_end *e, uint64_t ahead, uint64_t *ret);

/* Reads up to @max handles, leaves them there. Number of handles, or -EBADMSG. */
int mc_ring_peek_burst(struct mc_ring_end *e, uint64_t *handles, size_t max);

/* Gives @n peeked slots back to the producer. */
void mc_ring_advance(struct mc_ring_end *e, uint64_t n);

/*
 * Entries between tail and head as anyone sees them: no ordering, clamped, and without what a
 * producer that died had pushed but not counted.
 */
uint64_t mc_ring_depth(const struct mc_ring *ring);

/*
 * True when @handle was pushed and not advanced over, counted or not.  For one of the two ends,
 * or its successor that must know what its predecessor had pushed.  The other end may run: an
 * entry that it takes meanwhile may be reported as absent, but then it has claimed the slab
 * word first (pool.h).
 */
int mc_ring_contains(const struct mc_ring *ring, uint64_t nslots, uint64_t handle);

#endif
