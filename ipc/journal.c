/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "journal.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "fault.h"
#include "util.h"

/* Bit set of roles; all stage workers share one bit. */
#define CAPTURE   (1U << MC_ROLE_CAPTURE)
#define TRANSPORT (1U << MC_ROLE_TRANSPORT)
#define NETGATE   (1U << MC_ROLE_NETGATE)
#define RESTORE   (1U << MC_ROLE_RESTORE)
#define STAGE     (1U << MC_ROLE_STAGE0)

/* Who may make a transition, by side. What isn't here nobody may. */
static const struct {
	enum mc_epoch_state from, to;
	uint32_t primary, backup;
} transitions[] = {
        {MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED, CAPTURE, TRANSPORT},
        {MC_EPOCH_CAPTURED, MC_EPOCH_STAGED, STAGE, RESTORE},
        {MC_EPOCH_STAGED, MC_EPOCH_SENT, TRANSPORT, 0},
        {MC_EPOCH_SENT, MC_EPOCH_COMMITTED, TRANSPORT, 0},
        {MC_EPOCH_STAGED, MC_EPOCH_COMMITTED, 0, RESTORE},
        {MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED, NETGATE, RESTORE},
        {MC_EPOCH_CAPTURING, MC_EPOCH_ABORTED, CAPTURE, TRANSPORT | RESTORE},
        {MC_EPOCH_CAPTURED, MC_EPOCH_ABORTED, CAPTURE | STAGE | TRANSPORT, TRANSPORT | RESTORE},
        {MC_EPOCH_STAGED, MC_EPOCH_ABORTED, CAPTURE | TRANSPORT, RESTORE},
        {MC_EPOCH_SENT, MC_EPOCH_ABORTED, TRANSPORT, 0},
};

static const char *const names[MC_EPOCH_STATES] = {
        "FREE", "CAPTURING", "CAPTURED", "STAGED", "SENT", "COMMITTED", "RELEASED", "ABORTED",
};

const char *mc_epoch_state_name(enum mc_epoch_state s)
{
	return (unsigned)s < MC_EPOCH_STATES ? names[s] : "?";
}

static uint64_t make_word(uint64_t epoch, enum mc_epoch_state s)
{
	return epoch << 8 | s;
}

static uint64_t word_epoch(uint64_t w)
{
	return w >> 8;
}

static enum mc_epoch_state word_state(uint64_t w)
{
	return (enum mc_epoch_state)(w & 0xff);
}

static uint32_t role_bit(enum mc_role r)
{
	return 1U << (mc_role_is_stage(r) ? MC_ROLE_STAGE0 : r);
}

static bool allowed(const struct mc_journal *j, enum mc_epoch_state from, enum mc_epoch_state to)
{
	for (size_t i = 0; i < MC_ARRAY_SIZE(transitions); i++)
		if (transitions[i].from == from && transitions[i].to == to)
			return (j->side == MC_SIDE_PRIMARY ? transitions[i].primary
			                                   : transitions[i].backup) &
			       role_bit(j->role);
	return false;
}

static struct mc_journal_record *slot(const struct mc_journal *j, uint64_t epoch)
{
	return &j->shm->rec[epoch % MC_JOURNAL_SLOTS];
}

static uint64_t load_word(const struct mc_journal_record *r)
{
	return atomic_load_explicit(&r->word, memory_order_acquire);
}

/* Raises a counter that never goes back. */
static void raise_to(_Atomic uint64_t *w, uint64_t v)
{
	uint64_t old = atomic_load_explicit(w, memory_order_relaxed);

	while (old < v && !atomic_compare_exchange_weak_explicit(w, &old, v, memory_order_release,
	                                                         memory_order_relaxed))
		;
}

int mc_journal_init(struct mc_journal_shm *shm, enum mc_side side)
{
	if (side != MC_SIDE_PRIMARY && side != MC_SIDE_BACKUP)
		return -EINVAL;
	memset(shm, 0, sizeof(*shm));
	shm->side = side;
	shm->magic = MC_JOURNAL_MAGIC;
	return 0;
}

static bool on_its_way(enum mc_epoch_state s)
{
	return s != MC_EPOCH_FREE && s != MC_EPOCH_RELEASED && s != MC_EPOCH_ABORTED;
}

static bool may_begin(const struct mc_journal *j)
{
	return j->role == (j->side == MC_SIDE_PRIMARY ? MC_ROLE_CAPTURE : MC_ROLE_TRANSPORT);
}

/* Clears the fields of a record before its word announces the new epoch. */
static void clear_record(struct mc_journal_record *r)
{
	_Atomic uint64_t *const fields[] = {&r->pages,       &r->raw_bytes, &r->wire_bytes,
	                                    &r->state_bytes, &r->base,      &r->digest,
	                                    &r->pause_ns,    &r->longest_ns};

	for (size_t i = 0; i < MC_ARRAY_SIZE(fields); i++)
		atomic_store_explicit(fields[i], 0, memory_order_relaxed);
	atomic_store_explicit(&r->slabs, 0, memory_order_relaxed);
	atomic_store_explicit(&r->reason, 0, memory_order_relaxed);
	for (int i = 0; i < MC_EPOCH_STATES; i++)
		atomic_store_explicit(&r->stamp[i], 0, memory_order_relaxed);
	for (size_t i = 0; i < MC_ARRAY_SIZE(r->done); i++)
		atomic_store_explicit(&r->done[i], 0, memory_order_relaxed);
}

static int begin_from(struct mc_journal *j, uint64_t epoch, uint64_t old)
{
	struct mc_journal_record *r = slot(j, epoch);

	mc_fault_journal(j->role, j->side, MC_EPOCH_CAPTURING, false);
	/* FREE first: nobody reads the fields of a FREE record while they change. */
	if (!atomic_compare_exchange_strong_explicit(&r->word, &old,
	                                             make_word(epoch, MC_EPOCH_FREE),
	                                             memory_order_acq_rel, memory_order_acquire))
		return -EBUSY;
	clear_record(r);
	atomic_store_explicit(&r->stamp[MC_EPOCH_CAPTURING], mc_now_ns(), memory_order_relaxed);
	raise_to(&j->shm->last_begun, epoch);
	atomic_store_explicit(&r->word, make_word(epoch, MC_EPOCH_CAPTURING), memory_order_release);
	mc_fault_journal(j->role, j->side, MC_EPOCH_CAPTURING, true);
	return 0;
}

int mc_journal_begin(struct mc_journal *j, uint64_t epoch)
{
	uint64_t old = load_word(slot(j, epoch));

	if (!may_begin(j))
		return -EPERM;
	if (epoch > MC_EPOCH_MAX ||
	    epoch <= atomic_load_explicit(&j->shm->last_begun, memory_order_acquire))
		return -EINVAL;
	if (on_its_way(word_state(old)))
		return -EBUSY;
	return begin_from(j, epoch, old);
}

int mc_journal_rebegin(struct mc_journal *j, uint64_t epoch)
{
	uint64_t old = load_word(slot(j, epoch));

	if (!may_begin(j) || j->side != MC_SIDE_BACKUP)
		return -EPERM;
	if (epoch > atomic_load_explicit(&j->shm->last_begun, memory_order_acquire))
		return mc_journal_begin(j, epoch);
	if (!epoch || epoch <= atomic_load_explicit(&j->shm->last_committed, memory_order_acquire))
		return -EINVAL;
	if (on_its_way(word_state(old)))
		return -EBUSY;
	return begin_from(j, epoch, old);
}

struct mc_journal_record *mc_journal_get(const struct mc_journal *j, uint64_t epoch)
{
	struct mc_journal_record *r = slot(j, epoch);

	return epoch && word_epoch(load_word(r)) == epoch ? r : NULL;
}

enum mc_epoch_state mc_journal_state(const struct mc_journal *j, uint64_t epoch)
{
	uint64_t w = load_word(slot(j, epoch));

	return epoch && word_epoch(w) == epoch ? word_state(w) : MC_EPOCH_FREE;
}

int mc_journal_move(struct mc_journal *j, uint64_t epoch, enum mc_epoch_state from,
                    enum mc_epoch_state to)
{
	struct mc_journal_record *r = slot(j, epoch);
	uint64_t old = make_word(epoch, from);

	if ((unsigned)to >= MC_EPOCH_STATES || !allowed(j, from, to))
		return -EPERM;
	if (load_word(r) != old)
		return -ESTALE;
	mc_fault_journal(j->role, j->side, to, false);
	atomic_store_explicit(&r->stamp[to], mc_now_ns(), memory_order_relaxed);
	if (!atomic_compare_exchange_strong_explicit(&r->word, &old, make_word(epoch, to),
	                                             memory_order_acq_rel, memory_order_acquire))
		return -ESTALE;
	mc_fault_journal(j->role, j->side, to, true);
	if (to == MC_EPOCH_COMMITTED)
		raise_to(&j->shm->last_committed, epoch);
	if (to == MC_EPOCH_RELEASED)
		raise_to(&j->shm->last_released, epoch);
	return 0;
}

/* Aborts one epoch whatever state it is in. 1 aborted, 0 nothing to abort, -EPERM. */
static int abort_one(struct mc_journal *j, uint64_t epoch, int error)
{
	struct mc_journal_record *r = slot(j, epoch);

	for (;;) {
		uint64_t w = load_word(r);
		enum mc_epoch_state s = word_state(w);

		if (word_epoch(w) != epoch || !on_its_way(s) || s == MC_EPOCH_COMMITTED)
			return 0;
		if (!allowed(j, s, MC_EPOCH_ABORTED))
			return -EPERM;
		atomic_store_explicit(&r->reason, (uint32_t)-error, memory_order_relaxed);
		if (mc_journal_move(j, epoch, s, MC_EPOCH_ABORTED) == 0)
			return 1;
	}
}

uint64_t mc_journal_next(const struct mc_journal *j, uint64_t after)
{
	uint64_t best = 0;

	for (int i = 0; i < MC_JOURNAL_SLOTS; i++) {
		uint64_t e = word_epoch(load_word(&j->shm->rec[i]));

		if (e > after && (!best || e < best))
			best = e;
	}
	return best;
}

int mc_journal_abort_from(struct mc_journal *j, uint64_t epoch, int error)
{
	int aborted = 0;

	/* By the records, not by counting: a peer's numbers may have gaps of any size. */
	for (uint64_t n = epoch ? epoch - 1 : UINT64_MAX; (n = mc_journal_next(j, n));) {
		int r = abort_one(j, n, error);

		if (r < 0)
			return aborted ? aborted : r;
		aborted += r;
	}
	return aborted;
}

bool mc_journal_complete(const struct mc_journal_record *r)
{
	uint32_t n = atomic_load_explicit(&r->slabs, memory_order_acquire);

	if (!n || n > MC_EPOCH_SLABS_MAX)
		return false;
	for (uint32_t i = 0; i < n / 64; i++)
		if (~atomic_load_explicit(&r->done[i], memory_order_acquire))
			return false;
	if (n % 64) {
		uint64_t want = (1ULL << n % 64) - 1;

		if ((atomic_load_explicit(&r->done[n / 64], memory_order_acquire) & want) != want)
			return false;
	}
	return true;
}

bool mc_journal_mark(struct mc_journal_record *r, uint32_t seq)
{
	if (seq >= MC_EPOCH_SLABS_MAX)
		return false;
	atomic_fetch_or_explicit(&r->done[seq / 64], 1ULL << seq % 64, memory_order_seq_cst);
	return mc_journal_complete(r);
}

unsigned mc_journal_in_flight(const struct mc_journal *j)
{
	unsigned n = 0;

	for (int i = 0; i < MC_JOURNAL_SLOTS; i++) {
		enum mc_epoch_state s = word_state(load_word(&j->shm->rec[i]));

		n += on_its_way(s) && s != MC_EPOCH_COMMITTED;
	}
	return n;
}
