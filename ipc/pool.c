/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pool.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "util.h"

#define GEN_MASK 0xfffffU

static uint32_t handle_index(mc_handle h)
{
	return (uint32_t)h;
}

static uint32_t handle_gen(mc_handle h)
{
	return (uint32_t)(h >> 32);
}

static mc_handle make_handle(uint64_t index, uint32_t gen)
{
	return index | (uint64_t)gen << 32;
}

static uint64_t load(const _Atomic uint64_t *w)
{
	return atomic_load_explicit(w, memory_order_acquire);
}

static bool cas(_Atomic uint64_t *w, uint64_t from, uint64_t to)
{
	return atomic_compare_exchange_strong_explicit(w, &from, to, memory_order_acq_rel,
	                                               memory_order_acquire);
}

static void count(_Atomic uint64_t *c)
{
	atomic_fetch_add_explicit(c, 1, memory_order_relaxed);
}

int mc_pool_init(struct mc_pool_shm *shm, uint64_t unit, uint64_t max)
{
	if (!unit || unit % 4096 || !max || max >= 1U << 20)
		return -EINVAL;
	memset(shm, 0, sizeof(*shm));
	shm->unit = unit;
	shm->max = max;
	atomic_store(&shm->strikes_max, 1);
	shm->magic = MC_POOL_MAGIC;
	return 0;
}

/* Counts afresh what the words say; counters can be off by what died between word and counter. */
static void recount(struct mc_pool *p)
{
	uint64_t held = 0, used = 0;

	for (uint64_t i = 0; i < p->max; i++) {
		enum mc_slab_state s = mc_slab_word_state(load(&p->word[i]));

		held += s != MC_SLAB_ABSENT;
		used += s == MC_SLAB_OWNED;
	}
	atomic_store_explicit(&p->shm->held, held, memory_order_relaxed);
	atomic_store_explicit(&p->shm->in_use, used, memory_order_relaxed);
}

static void note_use(struct mc_pool *p)
{
	uint64_t used = atomic_fetch_add_explicit(&p->shm->in_use, 1, memory_order_relaxed) + 1;
	uint64_t peak = atomic_load_explicit(&p->shm->peak, memory_order_relaxed);

	while (used > peak &&
	       !atomic_compare_exchange_weak_explicit(&p->shm->peak, &peak, used,
	                                              memory_order_relaxed, memory_order_relaxed))
		;
}

/* The word of a slab that this role takes: next generation, never 0 (0 names no slab). */
static uint64_t owned_word(const struct mc_pool *p, uint64_t old, uint64_t epoch)
{
	uint32_t gen = (mc_slab_word_gen(old) + 1) & GEN_MASK;

	return mc_slab_word(MC_SLAB_OWNED, p->role, gen ? gen : 1, epoch);
}

/* Takes a slab that is FREE; MC_HANDLE_NONE when there is none. */
static mc_handle take_free(struct mc_pool *p, uint64_t epoch)
{
	uint64_t start = atomic_load_explicit(&p->shm->hint, memory_order_relaxed) % p->max;

	for (uint64_t n = 0; n < p->max; n++) {
		uint64_t i = (start + n) % p->max;
		uint64_t w = load(&p->word[i]);
		uint64_t to;

		if (mc_slab_word_state(w) != MC_SLAB_FREE)
			continue;
		to = owned_word(p, w, epoch);
		if (!cas(&p->word[i], w, to))
			continue;
		memset(&p->meta[i], 0, sizeof(p->meta[i]));
		p->meta[i].epoch = epoch;
		return make_handle(i, mc_slab_word_gen(to));
	}
	return MC_HANDLE_NONE;
}

static int unit_allocate(const struct mc_pool *p, uint64_t i)
{
	while (fallocate(p->fd, 0, (off_t)(p->data_off + i * p->unit), (off_t)p->unit) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int unit_punch(const struct mc_pool *p, uint64_t i)
{
	while (fallocate(p->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	                 (off_t)(p->data_off + i * p->unit), (off_t)p->unit) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* Makes one ABSENT slab FREE. 0 or -ENOSPC. */
static int grow(struct mc_pool *p)
{
	for (uint64_t i = 0; i < p->max; i++) {
		uint64_t w = load(&p->word[i]);
		uint32_t gen = mc_slab_word_gen(w);
		uint64_t growing = mc_slab_word(MC_SLAB_GROWING, p->role, gen, 0);

		if (mc_slab_word_state(w) != MC_SLAB_ABSENT || !cas(&p->word[i], w, growing))
			continue;
		if (unit_allocate(p, i) < 0) {
			/* A partial allocation is given back before the slab is absent again. */
			(void)unit_punch(p, i);
			cas(&p->word[i], growing, w);
			break;
		}
		count(&p->shm->held);
		count(&p->shm->grown);
		atomic_store_explicit(&p->shm->hint, i, memory_order_relaxed);
		cas(&p->word[i], growing, mc_slab_word(MC_SLAB_FREE, MC_ROLE_NONE, gen, 0));
		return 0;
	}
	return -ENOSPC;
}

int mc_pool_alloc(struct mc_pool *p, uint64_t epoch, bool in_pause, mc_handle *ret)
{
	/* A slab that we grow may be taken by somebody else: try again, each time one more exists.
	 */
	for (uint64_t tries = 0; tries <= p->max; tries++) {
		mc_handle h = take_free(p, epoch);

		if (h != MC_HANDLE_NONE) {
			note_use(p);
			*ret = h;
			return 0;
		}
		if (grow(p) < 0)
			break;
		if (in_pause)
			count(&p->shm->grown_in_pause);
	}
	count(&p->shm->failed);
	return -ENOSPC;
}

/*
 * Maps what is allocated already; an error only costs faults later.  Once is enough until
 * somebody shrinks the pool: walking the pages of a mapped slab costs as much as an epoch.
 */
static void map_for_writing(struct mc_pool *p, uint64_t i)
{
	uint64_t shrunk = atomic_load_explicit(&p->shm->shrunk, memory_order_relaxed);

	if (shrunk != p->mapped_shrunk) {
		memset(p->mapped, 0, sizeof(p->mapped));
		p->mapped_shrunk = shrunk;
	}
	if (i < MC_POOL_MAPPED && p->mapped[i / 64] >> i % 64 & 1)
		return;
	(void)madvise(p->data + i * p->unit, p->unit, MADV_POPULATE_WRITE);
	if (i < MC_POOL_MAPPED)
		p->mapped[i / 64] |= 1ULL << i % 64;
}

int mc_pool_reserve(struct mc_pool *p, uint64_t n)
{
	uint64_t have = 0;

	if (n > p->max)
		n = p->max;
	for (;;) {
		have = 0;
		for (uint64_t i = 0; i < p->max && have < n; i++) {
			if (mc_slab_word_state(load(&p->word[i])) != MC_SLAB_FREE)
				continue;
			map_for_writing(p, i);
			have++;
		}
		if (have >= n || grow(p) < 0)
			return (int)have;
	}
}

/* Index of a handle whose generation is current, or -1. */
static int64_t current(const struct mc_pool *p, mc_handle h, uint64_t *word)
{
	uint64_t i = handle_index(h);

	if (h == MC_HANDLE_NONE || i >= p->max)
		return -1;
	*word = load(&p->word[i]);
	if (mc_slab_word_state(*word) != MC_SLAB_OWNED || mc_slab_word_gen(*word) != handle_gen(h))
		return -1;
	return (int64_t)i;
}

int mc_pool_claim(struct mc_pool *p, mc_handle h, enum mc_role from)
{
	uint64_t w, to;
	int64_t i = current(p, h, &w);

	if (i < 0)
		return -ESTALE;
	if (mc_slab_word_owner(w) == p->role)
		return 0;
	if (mc_slab_word_owner(w) != from)
		return -ESTALE;
	to = mc_slab_word(MC_SLAB_OWNED, p->role, mc_slab_word_gen(w), w);
	return cas(&p->word[i], w, to) ? 0 : -ESTALE;
}

int mc_pool_free(struct mc_pool *p, mc_handle h)
{
	uint64_t w;
	int64_t i = current(p, h, &w);

	if (i < 0 || mc_slab_word_owner(w) != p->role)
		return -ESTALE;
	/* The owner field names who freed it: only for a reader of a dead arena. */
	if (!cas(&p->word[i], w, mc_slab_word(MC_SLAB_FREE, MC_ROLE_NONE, mc_slab_word_gen(w), 0)))
		return -ESTALE;
	atomic_fetch_sub_explicit(&p->shm->in_use, 1, memory_order_relaxed);
	atomic_store_explicit(&p->shm->hint, (uint64_t)i, memory_order_relaxed);
	return 0;
}

static int64_t own_index(const struct mc_pool *p, mc_handle h)
{
	uint64_t w;
	int64_t i = current(p, h, &w);

	return i >= 0 && mc_slab_word_owner(w) == p->role ? i : -1;
}

void *mc_pool_data(const struct mc_pool *p, mc_handle h)
{
	int64_t i = own_index(p, h);

	return i < 0 ? NULL : p->data + (uint64_t)i * p->unit;
}

struct mc_slab_meta *mc_pool_meta(const struct mc_pool *p, mc_handle h)
{
	int64_t i = own_index(p, h);

	return i < 0 ? NULL : &p->meta[i];
}

void *mc_pool_data_any(const struct mc_pool *p, mc_handle h)
{
	uint64_t w;
	int64_t i = current(p, h, &w);

	return i < 0 ? NULL : p->data + (uint64_t)i * p->unit;
}

/* Ends a growth or a shrinking that the predecessor left: the slab becomes absent. */
static void finish_for_the_dead(struct mc_pool *p, uint64_t i, uint64_t w)
{
	if (unit_punch(p, i) == 0)
		cas(&p->word[i], w,
		    mc_slab_word(MC_SLAB_ABSENT, MC_ROLE_NONE, mc_slab_word_gen(w), 0));
}

int mc_pool_reclaim(struct mc_pool *p, bool (*fn)(void *ctx, mc_handle h), void *ctx)
{
	int freed = 0;

	for (uint64_t i = 0; i < p->max; i++) {
		uint64_t w = load(&p->word[i]);
		mc_handle h = make_handle(i, mc_slab_word_gen(w));

		if (mc_slab_word_owner(w) != p->role)
			continue;
		if (mc_slab_word_state(w) == MC_SLAB_GROWING ||
		    mc_slab_word_state(w) == MC_SLAB_SHRINKING)
			finish_for_the_dead(p, i, w);
		/*
		 * fn looks into the outgoing ring; a consumer that takes the slab meanwhile
		 * changes the word first, so that this CAS fails.
		 */
		else if (mc_slab_word_state(w) == MC_SLAB_OWNED && fn(ctx, h) &&
		         cas(&p->word[i], w,
		             mc_slab_word(MC_SLAB_FREE, MC_ROLE_NONE, mc_slab_word_gen(w), 0)))
			freed++;
	}
	recount(p);
	return freed;
}

/* Gives the memory of up to @n free slabs back, the last ones first. */
static int shrink(struct mc_pool *p, uint64_t n)
{
	int done = 0;

	for (uint64_t i = p->max; i-- > 0 && n;) {
		uint64_t w = load(&p->word[i]);
		uint32_t gen = mc_slab_word_gen(w);
		uint64_t shrinking = mc_slab_word(MC_SLAB_SHRINKING, p->role, gen, 0);

		if (mc_slab_word_state(w) != MC_SLAB_FREE || !cas(&p->word[i], w, shrinking))
			continue;
		if (unit_punch(p, i) < 0) {
			cas(&p->word[i], shrinking, w);
			break;
		}
		atomic_fetch_sub_explicit(&p->shm->held, 1, memory_order_relaxed);
		count(&p->shm->shrunk);
		cas(&p->word[i], shrinking, mc_slab_word(MC_SLAB_ABSENT, MC_ROLE_NONE, gen, 0));
		n--;
		done++;
	}
	return done;
}

int mc_pool_epoch_done(struct mc_pool *p)
{
	uint64_t used = atomic_load_explicit(&p->shm->in_use, memory_order_relaxed);
	uint64_t held = atomic_load_explicit(&p->shm->held, memory_order_relaxed);
	uint64_t peak = atomic_exchange_explicit(&p->shm->peak, used, memory_order_relaxed);
	uint64_t limit = atomic_load_explicit(&p->shm->strikes_max, memory_order_relaxed);
	uint64_t half;

	if (!limit || peak >= held || held <= 1) {
		atomic_store_explicit(&p->shm->strikes, 0, memory_order_relaxed);
		return 0;
	}
	if (atomic_fetch_add_explicit(&p->shm->strikes, 1, memory_order_relaxed) + 1 < limit)
		return 0;
	atomic_store_explicit(&p->shm->strikes, 0, memory_order_relaxed);
	half = held / 2;
	if (held - half < used)
		half = held > used ? held - used : 0;
	return shrink(p, half);
}

void mc_pool_set_strikes(struct mc_pool *p, uint64_t shrink_delay_s, uint64_t interval_ms)
{
	uint64_t n = interval_ms ? shrink_delay_s * 1000 / interval_ms : 1;

	atomic_store_explicit(&p->shm->strikes_max, n ? n : 1, memory_order_relaxed);
	atomic_store_explicit(&p->shm->strikes, 0, memory_order_relaxed);
}
