/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hashes of the pages that a standby's RAM holds, so that only what differs is sent to it.
 *
 * Questions and answers pass through a box in the arena, each end having its own:
 *
 *   primary   capture asks, transport answers with what the peer says
 *   backup    transport asks for the peer, restore answers
 *
 * A box has MC_HASH_SLOTS slots, whatever the size of the RAM: a question covers at most
 * MC_HASH_PAGES pages, and its slot is used anew once its answer was taken.  Numbers run freely
 * and are never reset; question n lies in slot n % MC_HASH_SLOTS.
 *
 *   asker (one process)                        answerer (one process)
 *   t = own count of taken ones                a = load_acquire(asked)                 (B)
 *   if (asked - t >= MC_HASH_SLOTS) busy       if (answered == a) nothing to do
 *   write slot's question                      write slot's answer
 *   store_release(asked, asked + 1)      (A)   store_release(answered, answered + 1)   (C)
 *   load_acquire(answered)               (D)
 *   A pairs with B: the question is there before its number.  C pairs with D: so is the answer.
 *
 * A successor of either goes on with the two numbers alone.  Each rings the other's bell.
 */
#ifndef MC_IPC_HASHES_H
#define MC_IPC_HASHES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MC_HASH_PAGES 1024 /* of one question; a multiple of 64 */
#define MC_HASH_SLOTS 16

/* Of one page: seeded XXH3, 128 bits; both 0: all of the page is zero. */
struct mc_page_hash {
	uint64_t low, high;
};
_Static_assert(sizeof(struct mc_page_hash) == 16, "wire");

struct mc_hash_question {
	uint64_t seed;  /* chosen by the primary at random: nobody can prepare collisions */
	uint64_t epoch; /* which the RAM must be as of; 0: the first copy */
	uint64_t first; /* page, as numbered in bitmaps; a multiple of 64 */
	uint64_t pages; /* 1 .. MC_HASH_PAGES */
};

struct mc_hash_slot {
	struct mc_hash_question q;
	uint64_t known; /* answer: 1: hash[0 .. q.pages) is it; 0: it can't be told */
	uint64_t reserved[3];
	struct mc_page_hash hash[MC_HASH_PAGES];
};
_Static_assert(sizeof(struct mc_hash_slot) == 64 + MC_HASH_PAGES * 16, "ABI");

struct mc_hash_box {
	_Atomic uint64_t asked; /* written by the asker */
	uint8_t pad0[56];
	_Atomic uint64_t answered; /* written by the answerer */
	uint8_t pad1[56];
	struct mc_hash_slot slot[MC_HASH_SLOTS];
};
_Static_assert(sizeof(struct mc_hash_box) == 128 + MC_HASH_SLOTS * sizeof(struct mc_hash_slot),
               "ABI");

/* Hash of the 4096 bytes at @page, which may change meanwhile (then the result is any). */
struct mc_page_hash mc_hash_page(const void *page, uint64_t seed);

static inline bool mc_hash_is_zero(const struct mc_page_hash *h)
{
	return !(h->low | h->high);
}

static inline bool mc_hash_equal(const struct mc_page_hash *a, const struct mc_page_hash *b)
{
	return a->low == b->low && a->high == b->high;
}

/* One process' end as asker; private. */
struct mc_hash_asker {
	struct mc_hash_box *box;
	uint64_t taken; /* answers up to here were taken */
	uint64_t base;  /* older questions are nobody's: their answers are dropped */
};

/* Begins to ask, or forgets all that was asked: answers of before are dropped. */
void mc_hash_asker_init(struct mc_hash_asker *a, struct mc_hash_box *box);
/* How many questions fit now. */
unsigned mc_hash_room(struct mc_hash_asker *a);
/* Puts a question. 0; -EBUSY: all slots are in use; -EBADMSG: the box is damaged. */
int mc_hash_ask(struct mc_hash_asker *a, const struct mc_hash_question *q);
/* The answer to the oldest question, until mc_hash_taken(); NULL: it isn't there yet. */
struct mc_hash_slot *mc_hash_answer(struct mc_hash_asker *a);
void mc_hash_taken(struct mc_hash_asker *a);

/*
 * Answerer: the question number @n (answered <= n < asked), or NULL: there is none.  What is in
 * it must be checked.
 */
struct mc_hash_slot *mc_hash_question(struct mc_hash_box *box, uint64_t n);
/* The oldest question is answered: by what is in its slot's hash[] (@known), or not at all. */
void mc_hash_answered(struct mc_hash_box *box, bool known);
/* None of the questions is answered; how many there were. */
unsigned mc_hash_drain(struct mc_hash_box *box);

/*
 * HASHES payload: struct mc_wire_hashes, a bit for each of its pages that isn't zero (rounded up
 * to 64), then their hashes.  @buf: MC_WIRE_HASHES_MAX bytes; returns the length.
 */
size_t mc_hashes_pack(const struct mc_hash_slot *s, void *buf);
/*
 * The reverse: @s gets first, pages (0: it can't be told) and hashes, those of zero pages too.  0,
 * or -EPROTO: lengths and counts contradict each other, or are out of range.
 */
int mc_hashes_parse(const void *payload, size_t len, struct mc_hash_slot *s);

#endif
