/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "shadow.h"

#include <errno.h>
#include <string.h>

#include "copyset.h"

#define BUSY_MASK 0xffULL

uint64_t mc_shadow_sets(uint64_t bytes)
{
	uint64_t per_set = MC_SHADOW_WAYS * (MC_PAGE_SIZE + sizeof(struct mc_shadow_entry));
	uint64_t sets = 1;

	if (bytes < per_set)
		return 0;
	while (sets * 2 * per_set <= bytes)
		sets *= 2;
	return sets;
}

int mc_shadow_init(struct mc_shadow_shm *shm, uint64_t sets)
{
	if (!sets || (sets & (sets - 1)))
		return -EINVAL;
	memset(shm, 0, sizeof(*shm));
	shm->sets = sets;
	shm->magic = MC_SHADOW_MAGIC;
	return 0;
}

static struct mc_shadow_entry *set_of(const struct mc_shadow *s, uint64_t key)
{
	uint64_t h = key * 0x9e3779b97f4a7c15ULL;

	return s->entry + ((h >> 32) & (s->sets - 1)) * MC_SHADOW_WAYS;
}

static uint64_t load(const _Atomic uint64_t *w)
{
	return atomic_load_explicit(w, memory_order_acquire);
}

static bool claim(struct mc_shadow *s, struct mc_shadow_entry *e, uint64_t old, uint64_t key)
{
	return atomic_compare_exchange_strong_explicit(&e->word, &old,
	                                               (key + 1) << 8 | (uint64_t)s->role,
	                                               memory_order_acq_rel, memory_order_acquire);
}

/* The way that holds the key, else the one to give up: empty, or the oldest content. */
static struct mc_shadow_entry *choose(struct mc_shadow *s, uint64_t key, bool *found)
{
	struct mc_shadow_entry *set = set_of(s, key), *best = NULL;
	uint64_t best_tag = UINT64_MAX;

	*found = false;
	for (int i = 0; i < MC_SHADOW_WAYS; i++) {
		uint64_t w = load(&set[i].word);

		if (w >> 8 == key + 1) {
			*found = true;
			return &set[i];
		}
		if (w & BUSY_MASK)
			continue;
		if (!(w >> 8)) {
			if (best_tag) {
				best = &set[i];
				best_tag = 0;
			}
		} else if (load(&set[i].tag) < best_tag) {
			best = &set[i];
			best_tag = load(&set[i].tag);
		}
	}
	return best;
}

uint8_t *mc_shadow_open(struct mc_shadow *s, uint64_t key, uint64_t epoch, bool *has_base,
                        struct mc_shadow_entry **ret)
{
	struct mc_shadow_entry *e;
	uint64_t w, tag;
	bool found;

	*has_base = false;
	if (!s->shm)
		return NULL;
	e = choose(s, key, &found);
	if (!e)
		return NULL;
	w = load(&e->word);
	if (w & BUSY_MASK || (found && w >> 8 != key + 1) || !claim(s, e, w, key))
		return NULL;
	tag = load(&e->tag);
	if (found) {
		*has_base = tag && tag < epoch;
	} else {
		/* Another page's content: never a base, whatever happens next. */
		atomic_store_explicit(&e->tag, 0, memory_order_release);
		if (w >> 8)
			atomic_fetch_add_explicit(&s->shm->evictions, 1, memory_order_relaxed);
	}
	atomic_fetch_add_explicit(*has_base ? &s->shm->hits : &s->shm->misses, 1,
	                          memory_order_relaxed);
	*ret = e;
	return s->data + (uint64_t)(e - s->entry) * MC_PAGE_SIZE;
}

void mc_shadow_near_set(const struct mc_shadow *s, uint64_t key)
{
	const struct mc_shadow_entry *set = set_of(s, key);

	__builtin_prefetch(set);
	__builtin_prefetch(set + MC_SHADOW_WAYS / 2);
}

void mc_shadow_near_base(const struct mc_shadow *s, uint64_t key)
{
	const struct mc_shadow_entry *set = set_of(s, key);

	for (int i = 0; i < MC_SHADOW_WAYS; i++) {
		const uint8_t *base = s->data + (uint64_t)(set + i - s->entry) * MC_PAGE_SIZE;

		if (atomic_load_explicit(&set[i].word, memory_order_relaxed) >> 8 != key + 1)
			continue;
		for (int at = 0; at < MC_NEAR; at += 64)
			__builtin_prefetch(base + at, 1);
	}
}

void mc_shadow_begin_write(struct mc_shadow_entry *e)
{
	atomic_store_explicit(&e->tag, 0, memory_order_relaxed);
	/* The tag must be 0 before any byte of the content changes. */
	atomic_thread_fence(memory_order_seq_cst);
}

void mc_shadow_close(struct mc_shadow *s, struct mc_shadow_entry *e, uint64_t epoch)
{
	uint64_t w = atomic_load_explicit(&e->word, memory_order_relaxed);

	(void)s;
	atomic_store_explicit(&e->tag, epoch, memory_order_release);
	atomic_store_explicit(&e->word, w & ~BUSY_MASK, memory_order_release);
}

void mc_shadow_drop(struct mc_shadow *s, uint64_t key)
{
	struct mc_shadow_entry *e;
	bool found;
	uint64_t w;

	if (!s->shm)
		return;
	e = choose(s, key, &found);
	if (!found)
		return;
	w = load(&e->word);
	if (w & BUSY_MASK || w >> 8 != key + 1 || !claim(s, e, w, key))
		return;
	atomic_store_explicit(&e->tag, 0, memory_order_release);
	atomic_store_explicit(&e->word, 0, memory_order_release);
}

void mc_shadow_unlock(struct mc_shadow *s)
{
	for (uint64_t i = 0; s->shm && i < s->sets * MC_SHADOW_WAYS; i++) {
		uint64_t w = load(&s->entry[i].word);

		if ((w & BUSY_MASK) != (uint64_t)s->role)
			continue;
		atomic_store_explicit(&s->entry[i].tag, 0, memory_order_release);
		atomic_store_explicit(&s->entry[i].word, 0, memory_order_release);
	}
}

void mc_shadow_clear(struct mc_shadow *s)
{
	for (uint64_t i = 0; s->shm && i < s->sets * MC_SHADOW_WAYS; i++) {
		atomic_store_explicit(&s->entry[i].tag, 0, memory_order_relaxed);
		atomic_store_explicit(&s->entry[i].word, 0, memory_order_release);
	}
}
