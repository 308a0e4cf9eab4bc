/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "control.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "util.h"

#define SUP  (1U << MC_ROLE_SUPERVISOR)
#define CAP  (1U << MC_ROLE_CAPTURE)
#define TRA  (1U << MC_ROLE_TRANSPORT)
#define GATE (1U << MC_ROLE_NETGATE)
#define RES  (1U << MC_ROLE_RESTORE)
#define STG  (1U << MC_ROLE_STAGE0)
#define ANY  (SUP | CAP | TRA | GATE | RES | STG)

struct move {
	enum mc_state from, to;
	uint32_t roles;
};

static const struct move primary_moves[] = {
        {MC_STATE_NONE, MC_STATE_SYNCING, SUP},
        {MC_STATE_SYNCING, MC_STATE_PROTECTED, TRA},
        {MC_STATE_SYNCING, MC_STATE_STOPPED, ANY},
        {MC_STATE_SYNCING, MC_STATE_HELD, CAP},
        {MC_STATE_SYNCING, MC_STATE_ENDED, TRA | SUP},
        {MC_STATE_SYNCING, MC_STATE_DEGRADED, TRA},
        {MC_STATE_PROTECTED, MC_STATE_HELD, CAP | TRA},
        {MC_STATE_PROTECTED, MC_STATE_DEGRADED, TRA | CAP},
        {MC_STATE_PROTECTED, MC_STATE_STOPPED, TRA},
        {MC_STATE_PROTECTED, MC_STATE_ENDED, TRA | SUP},
        {MC_STATE_HELD, MC_STATE_PROTECTED, TRA | CAP | SUP},
        {MC_STATE_HELD, MC_STATE_DEGRADED, SUP | TRA | CAP},
        {MC_STATE_HELD, MC_STATE_STOPPED, SUP | TRA | CAP},
        {MC_STATE_HELD, MC_STATE_ENDED, TRA | SUP},
        {MC_STATE_DEGRADED, MC_STATE_ENDED, TRA | SUP},
};

static const struct move backup_moves[] = {
        {MC_STATE_NONE, MC_STATE_WAITING, SUP},
        {MC_STATE_WAITING, MC_STATE_SYNCING, TRA},
        {MC_STATE_SYNCING, MC_STATE_WAITING, RES},
        {MC_STATE_SYNCING, MC_STATE_PROTECTED, RES},
        {MC_STATE_PROTECTED, MC_STATE_TAKING_OVER, RES},
        {MC_STATE_TAKING_OVER, MC_STATE_ACTIVE, RES},
        {MC_STATE_TAKING_OVER, MC_STATE_STOPPED, RES | SUP},
        {MC_STATE_WAITING, MC_STATE_ENDED, RES | SUP},
        {MC_STATE_WAITING, MC_STATE_STOPPED, RES | SUP},
        {MC_STATE_SYNCING, MC_STATE_ENDED, RES | SUP},
        {MC_STATE_SYNCING, MC_STATE_STOPPED, RES | SUP},
        {MC_STATE_PROTECTED, MC_STATE_ENDED, RES | SUP},
        {MC_STATE_PROTECTED, MC_STATE_STOPPED, RES | SUP},
        {MC_STATE_ACTIVE, MC_STATE_ENDED, RES | SUP},
};

static const char *const state_names[MC_STATES] = {
        "NONE",        "SYNCING", "PROTECTED", "HELD",  "DEGRADED",
        "TAKING_OVER", "ACTIVE",  "STOPPED",   "ENDED", "WAITING",
};

static const char *const reason_names[MC_REASONS] = {
        "none",        "started",        "first-commit", "peer-lost",     "peer-back",
        "guest-died",  "guest-shutdown", "host-signal",  "unprotect",     "taken-over",
        "resolved",    "link-closed",    "silence",      "failover",      "refused",
        "hotplug",     "overload",       "error",        "conflict",      "standby-lost",
        "guest-panic", "foreign",        "arbiter",      "tracking-lost", "relieved",
};

const char *mc_state_name(enum mc_state s)
{
	return (unsigned)s < MC_STATES ? state_names[s] : "?";
}

const char *mc_reason_name(enum mc_reason r)
{
	return (unsigned)r < MC_REASONS ? reason_names[r] : "?";
}

static bool may_move(const struct move *table, size_t n, enum mc_role role, enum mc_state from,
                     enum mc_state to)
{
	uint32_t bit = 1U << (mc_role_is_stage(role) ? MC_ROLE_STAGE0 : role);

	for (size_t i = 0; i < n; i++)
		if (table[i].from == from && table[i].to == to)
			return table[i].roles & bit;
	return false;
}

int mc_state_move(struct mc_control *c, enum mc_side side, enum mc_role role, enum mc_state from,
                  enum mc_state to, enum mc_reason why)
{
	uint64_t old = atomic_load_explicit(&c->state, memory_order_acquire);
	bool ok = side == MC_SIDE_PRIMARY
	                  ? may_move(primary_moves, MC_ARRAY_SIZE(primary_moves), role, from, to)
	                  : may_move(backup_moves, MC_ARRAY_SIZE(backup_moves), role, from, to);

	if (!ok)
		return -EPERM;
	do {
		if (mc_state_of(old) != from)
			return -ESTALE;
	} while (!atomic_compare_exchange_weak_explicit(
	        &c->state, &old,
	        ((old >> 24) + 1) << 24 | (uint64_t)role << 16 | (uint64_t)why << 8 | to,
	        memory_order_acq_rel, memory_order_acquire));
	return 0;
}

int mc_commit_advance(struct mc_control *c, uint64_t term, uint64_t epoch)
{
	uint64_t old = atomic_load_explicit(&c->commit, memory_order_acquire);

	do {
		if (old & (MC_COMMIT_TAKEN | MC_COMMIT_DISARMED) || mc_commit_term(old) != term ||
		    epoch <= mc_commit_epoch(old))
			return -EPERM;
	} while (!atomic_compare_exchange_weak_explicit(
	        &c->commit, &old, mc_commit_word(term, epoch), memory_order_acq_rel,
	        memory_order_acquire));
	return 0;
}

int mc_commit_take(struct mc_control *c)
{
	uint64_t old = atomic_load_explicit(&c->commit, memory_order_acquire);

	do {
		if (old & MC_COMMIT_TAKEN)
			return -EALREADY;
		if (old & MC_COMMIT_DISARMED || !mc_commit_epoch(old))
			return -EPERM;
	} while (!atomic_compare_exchange_weak_explicit(&c->commit, &old, old | MC_COMMIT_TAKEN,
	                                                memory_order_acq_rel,
	                                                memory_order_acquire));
	return 0;
}

int mc_commit_disarm(struct mc_control *c)
{
	uint64_t old = atomic_load_explicit(&c->commit, memory_order_acquire);

	do {
		if (old & MC_COMMIT_TAKEN)
			return -EPERM;
	} while (!atomic_compare_exchange_weak_explicit(&c->commit, &old, old | MC_COMMIT_DISARMED,
	                                                memory_order_acq_rel,
	                                                memory_order_acquire));
	return 0;
}

int mc_commit_reset(struct mc_control *c, uint64_t term)
{
	uint64_t old = atomic_load_explicit(&c->commit, memory_order_acquire);

	do {
		if (old & MC_COMMIT_TAKEN || (mc_commit_epoch(old) && !(old & MC_COMMIT_DISARMED)))
			return -EPERM;
	} while (!atomic_compare_exchange_weak_explicit(&c->commit, &old, mc_commit_word(term, 0),
	                                                memory_order_acq_rel,
	                                                memory_order_acquire));
	return 0;
}

bool mc_control_passes(const struct mc_control *c, enum mc_side side)
{
	enum mc_state s = mc_state_of(atomic_load_explicit(&c->state, memory_order_acquire));
	uint64_t armed = atomic_load_explicit(&c->armed_epoch, memory_order_acquire);

	if (side == MC_SIDE_BACKUP)
		return s == MC_STATE_ACTIVE && atomic_load(&c->commit) & MC_COMMIT_TAKEN;
	switch (s) {
	case MC_STATE_NONE:
	case MC_STATE_SYNCING:
		/* Shut by the barrier of the first epoch, before the guest goes on. */
		return !armed || atomic_load(&c->barrier_req) < armed;
	case MC_STATE_DEGRADED:
		return true;
	case MC_STATE_ENDED:
		return atomic_load(&c->end_acked);
	case MC_STATE_STOPPED:
		/* Nothing was ever sent that could be taken over: the guest is as free as before.
		 */
		return !atomic_load(&c->peer_taken) &&
		       (!atomic_load(&c->first_sent) || atomic_load(&c->end_acked));
	default:
		return false;
	}
}

void mc_control_refuse(struct mc_control *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->refusal, sizeof(c->refusal), fmt, ap);
	va_end(ap);
}
