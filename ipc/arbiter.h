/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Arbiter: an operator's command that decides which of two ends that can't see each other may
 * run the guest.  The backup asks before it takes over, the primary before it leaves HELD on its
 * own.  Option arbiter = "none" (nobody is asked: the backup may, the primary waits), or
 * "exec:COMMAND", run by /bin/sh with
 *
 *   MC_GUEST   its name             MC_SIDE   primary or backup: who asks
 *   MC_REASON  why, as on the bus   MC_TERM, MC_EPOCH   term, and newest committed epoch
 *
 * Exit status 0: won, this end may run the guest.  1 .. 125: lost, the other end may.  Anything
 * else (a signal, not found, no end within arbiter-timeout): no answer; it is asked again.
 *
 * The command needs rights that the process that asks has given up. A helper is forked before that:
 * it keeps them, takes guest and command as they are at that moment, and is told nothing later
 * but reason, term and epoch. The command runs beside the process that asks, which goes on with its
 * work; it dies with it.
 */
#ifndef MC_IPC_ARBITER_H
#define MC_IPC_ARBITER_H

#include <systemd/sd-event.h>

#include "config.h"
#include "control.h"

enum mc_verdict {
	MC_VERDICT_PENDING,
	MC_VERDICT_WON,
	MC_VERDICT_LOST,
	MC_VERDICT_FAILED, /* no answer; ask again, not before 1 s */
};

struct mc_arbiter;

/* True when there is one to be asked. */
bool mc_arbiter_configured(const struct mc_config *cfg);

/*
 * Forks the helper "mc-arbiter". fd to ask it by, to be closed by the caller, which ends it; or
 * negative errno. The caller may leave its end to be reaped by whoever inherits it.
 */
int mc_arbiter_start(const struct mc_config *cfg);

/*
 * Begins to ask, one question at a time. Never blocks; the event loop turns when the answer is
 * there. @e: the caller's loop (a reference is held); it is left with status 1 when the helper
 * turns out to be gone, since a successor of this process gets a new one. @limit_ms:
 * arbiter-timeout. 0, or negative errno (no memory, no helper): as good as FAILED.
 */
int mc_arbiter_ask(struct mc_arbiter **ret, sd_event *e, int helper, uint32_t limit_ms,
                   enum mc_reason why, uint64_t term, uint64_t epoch);

enum mc_verdict mc_arbiter_verdict(const struct mc_arbiter *a);

/* What it came to, for messages: "exited with status 1" and the like.  Valid until freed. */
const char *mc_arbiter_text(const struct mc_arbiter *a);

/* Forgets the question; a command that still runs is killed.  NULL ok; returns NULL. */
struct mc_arbiter *mc_arbiter_free(struct mc_arbiter *a);

#endif
