/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "hashes.h"

#include <errno.h>
#include <string.h>

#include "copyset.h"
#include "hash.h"
#include "wire.h"

static bool is_zero(const uint8_t *page)
{
	uint64_t first;

	memcpy(&first, page, sizeof(first));
	return first == 0 && memcmp(page, page + 8, MC_PAGE_SIZE - 8) == 0;
}

struct mc_page_hash mc_hash_page(const void *page, uint64_t seed)
{
	XXH128_hash_t h;

	if (is_zero(page))
		return (struct mc_page_hash){0, 0};
	h = XXH3_128bits_withSeed(page, MC_PAGE_SIZE, seed);
	/* 0 means a page of zeros: it must not be taken for one. */
	return (struct mc_page_hash){.low = h.low64 | !(h.low64 | h.high64), .high = h.high64};
}

static uint64_t load(const _Atomic uint64_t *w)
{
	return atomic_load_explicit(w, memory_order_acquire);
}

void mc_hash_asker_init(struct mc_hash_asker *a, struct mc_hash_box *box)
{
	*a = (struct mc_hash_asker){
	        .box = box, .taken = load(&box->answered), .base = load(&box->asked)};
}

/* Answers to forgotten questions free their slots. */
static void drop_old(struct mc_hash_asker *a)
{
	uint64_t answered = load(&a->box->answered);

	while (a->taken < a->base && a->taken != answered)
		a->taken++;
}

unsigned mc_hash_room(struct mc_hash_asker *a)
{
	uint64_t used;

	drop_old(a);
	used = load(&a->box->asked) - a->taken;
	return used < MC_HASH_SLOTS ? (unsigned)(MC_HASH_SLOTS - used) : 0;
}

int mc_hash_ask(struct mc_hash_asker *a, const struct mc_hash_question *q)
{
	uint64_t n = load(&a->box->asked);

	if (n - a->taken > MC_HASH_SLOTS)
		return -EBADMSG;
	if (!mc_hash_room(a))
		return -EBUSY;
	a->box->slot[n % MC_HASH_SLOTS].q = *q;
	a->box->slot[n % MC_HASH_SLOTS].known = 0;
	atomic_store_explicit(&a->box->asked, n + 1, memory_order_release);
	return 0;
}

struct mc_hash_slot *mc_hash_answer(struct mc_hash_asker *a)
{
	drop_old(a);
	if (a->taken == load(&a->box->answered) || a->taken < a->base)
		return NULL;
	return &a->box->slot[a->taken % MC_HASH_SLOTS];
}

void mc_hash_taken(struct mc_hash_asker *a)
{
	a->taken++;
}

struct mc_hash_slot *mc_hash_question(struct mc_hash_box *box, uint64_t n)
{
	uint64_t answered = load(&box->answered), open = load(&box->asked) - answered;

	if (open > MC_HASH_SLOTS || n - answered >= open)
		return NULL;
	return &box->slot[n % MC_HASH_SLOTS];
}

void mc_hash_answered(struct mc_hash_box *box, bool known)
{
	uint64_t n = load(&box->answered);

	box->slot[n % MC_HASH_SLOTS].known = known;
	atomic_store_explicit(&box->answered, n + 1, memory_order_release);
}

unsigned mc_hash_drain(struct mc_hash_box *box)
{
	unsigned n = 0;

	while (mc_hash_question(box, load(&box->answered))) {
		mc_hash_answered(box, false);
		n++;
	}
	return n;
}

/* --- on the wire ----------------------------------------------------------------------- */

static size_t words_of(uint64_t pages)
{
	return (size_t)(pages + 63) / 64;
}

size_t mc_hashes_pack(const struct mc_hash_slot *s, void *buf)
{
	struct mc_wire_hashes w = {.first = s->q.first};
	uint64_t bits[MC_HASH_PAGES / 64] = {0};
	uint8_t *p = buf, *at;

	if (s->known && s->q.pages <= MC_HASH_PAGES)
		w.pages = (uint32_t)s->q.pages;
	at = p + sizeof(w) + words_of(w.pages) * 8;
	for (uint32_t i = 0; i < w.pages; i++) {
		struct mc_page_hash h = s->hash[i];

		if (mc_hash_is_zero(&h))
			continue;
		bits[i / 64] |= 1ULL << i % 64;
		memcpy(at, &h, sizeof(h));
		at += sizeof(h);
		w.hashes++;
	}
	memcpy(p, &w, sizeof(w));
	memcpy(p + sizeof(w), bits, words_of(w.pages) * 8);
	return (size_t)(at - p);
}

int mc_hashes_parse(const void *payload, size_t len, struct mc_hash_slot *s)
{
	uint64_t bits[MC_HASH_PAGES / 64] = {0};
	const uint8_t *p = payload, *at;
	struct mc_wire_hashes w;
	uint32_t set = 0;

	if (len < sizeof(w))
		return -EPROTO;
	memcpy(&w, p, sizeof(w));
	if (w.pages > MC_HASH_PAGES || w.hashes > w.pages || w.first % 64 ||
	    len != sizeof(w) + words_of(w.pages) * 8 + w.hashes * sizeof(s->hash[0]))
		return -EPROTO;
	memcpy(bits, p + sizeof(w), words_of(w.pages) * 8);
	for (size_t i = 0; i < words_of(w.pages); i++)
		set += (uint32_t)__builtin_popcountll(bits[i]);
	if (set != w.hashes || (w.pages % 64 && bits[w.pages / 64] >> w.pages % 64))
		return -EPROTO;
	at = p + sizeof(w) + words_of(w.pages) * 8;
	s->q.first = w.first;
	s->q.pages = w.pages;
	s->known = w.pages != 0;
	for (uint32_t i = 0; i < w.pages; i++) {
		s->hash[i] = (struct mc_page_hash){0, 0};
		if (!(bits[i / 64] >> i % 64 & 1))
			continue;
		memcpy(&s->hash[i], at, sizeof(s->hash[i]));
		if (mc_hash_is_zero(&s->hash[i]))
			return -EPROTO;
		at += sizeof(s->hash[i]);
	}
	return 0;
}
