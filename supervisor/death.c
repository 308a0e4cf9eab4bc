/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What follows the end of a guest's process: the obituary, a successor, or giving up. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "../ipc/worker.h"
#include "supervisor.h"
#include "text.h"

#define DEATH_WINDOW (10 * MC_NS_PER_S)
#define AT_ONCE      8 /* deaths within the window whose successor starts without delay */
#define DELAY_MIN_MS 10
#define DELAY_MAX_MS 500
#define BUSY_MIN_MS  4 /* a place whose owner is dead */

/* How it ended, and what it said last. */
static void obituary(struct child *c, const siginfo_t *si)
{
	const struct mc_proc *p = &c->g->arena.proc[c->role];
	uint64_t epoch = atomic_load(&c->g->arena.journal.shm->last_begun);
	char words[sizeof(p->last_words)], how[96];

	if (c->asked) {
		event_write(c->g, "restarted", epoch, "mc-%s %u (pid %d) ended as asked",
		            mc_role_name(c->role), mc_role_index(c->role), (int)c->pid);
		return;
	}
	snprintf(words, sizeof(words), "%.*s", (int)sizeof(words) - 1, p->last_words);
	text_clean(words, false);
	if (!si)
		snprintf(how, sizeof(how), "ended (not our child)");
	else if (si->si_code == CLD_EXITED)
		snprintf(how, sizeof(how), "exited with status %d", si->si_status);
	else
		snprintf(how, sizeof(how), "was killed by signal %d", si->si_status);
	if (c->hung)
		snprintf(how, sizeof(how), "hung and was killed");
	event_write(c->g, "process-died", epoch, "mc-%s %u (pid %d) %s%s%s", mc_role_name(c->role),
	            mc_role_index(c->role), (int)c->pid, how, words[0] ? "; its last words: " : "",
	            words);
	bus_guest_stage_died(c->g, c, how, words);
}

/* Deaths within the window, this one included; the oldest that is kept counts as well. */
static unsigned recent_deaths(struct child *c)
{
	uint64_t now = mc_now_ns();
	unsigned n = 0;

	memmove(c->death, c->death + 1, sizeof(c->death) - sizeof(c->death[0]));
	c->death[DEATHS_KEPT - 1] = now;
	for (int i = 0; i < DEATHS_KEPT; i++)
		n += c->death[i] && now - c->death[i] < DEATH_WINDOW;
	return n;
}

/* The pipeline of a primary can't run: the protection is ended as far as the rest of it can. */
static void end_primary(struct child *c, const char *why)
{
	struct mc_control *ctl = c->g->arena.control;

	mc_control_refuse(ctl, "%s", why);
	if (c->role == MC_ROLE_CAPTURE)
		atomic_store(&ctl->capture_ready, 1); /* in the dead one's place */
	(void)mc_state_move(ctl, MC_SIDE_PRIMARY, MC_ROLE_SUPERVISOR, MC_STATE_SYNCING,
	                    MC_STATE_STOPPED, MC_REASON_ERROR);
	atomic_store_explicit(&ctl->want_end, MC_REASON_ERROR, memory_order_release);
}

/*
 * Nobody commits or takes over any more: disarmed in the dead restore's place, which transport
 * tells the primary.  Once taken over there is nothing to go back to.
 */
static void end_backup(struct child *c, const char *why)
{
	static const enum mc_state from[] = {MC_STATE_WAITING, MC_STATE_SYNCING, MC_STATE_PROTECTED,
	                                     MC_STATE_TAKING_OVER};
	struct mc_control *ctl = c->g->arena.control;

	if (c->role != MC_ROLE_RESTORE)
		return; /* the link ends with transport: restore takes over, or waits */
	(void)mc_commit_disarm(ctl);
	mc_control_refuse(ctl, "%s", why);
	for (size_t i = 0; i < MC_ARRAY_SIZE(from); i++)
		if (mc_state_move(ctl, MC_SIDE_BACKUP, MC_ROLE_SUPERVISOR, from[i],
		                  MC_STATE_STOPPED, MC_REASON_ERROR) == 0)
			break;
}

/* A guest whose pipeline can't run must not look protected. */
static void give_up(struct child *c, const char *why)
{
	c->given_up = true;
	c->wanted = false;
	event_write(c->g, "given-up", 0, "no successor of mc-%s %u is started: %s",
	            mc_role_name(c->role), mc_role_index(c->role), why);
	if (c->g->side == MC_SIDE_PRIMARY)
		end_primary(c, why);
	else
		end_backup(c, why);
	mc_arena_ring_all(&c->g->arena);
	watch_look(c->g);
}

static void start_successor(struct child *c)
{
	char why[320];

	if (child_spawn(c) >= 0)
		return;
	snprintf(
	        why, sizeof(why),
	        "mc-%s can't be started; journalctl -u mc-supervisor says why, mcctl restart %s %s "
	        "tries again",
	        mc_role_name(c->role), c->g->name, mc_role_name(c->role));
	give_up(c, why);
}

static int on_again(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct child *c = userdata;

	(void)s;
	(void)usec;
	c->again = sd_event_source_unref(c->again);
	if (c->wanted && !c->pid)
		start_successor(c);
	return 0;
}

/* Later and later, so that one that can't run doesn't spin. */
static void start_later(struct child *c, unsigned deaths)
{
	unsigned doublings = deaths - AT_ONCE - 1;
	uint64_t ms = doublings < 6 ? DELAY_MIN_MS << doublings : DELAY_MAX_MS;

	if (sd_event_add_time_relative(c->g->m->event, &c->again, CLOCK_MONOTONIC,
	                               mc_min_u64(ms, DELAY_MAX_MS) * 1000, 1, on_again, c) < 0)
		start_successor(c);
}

/* Not at once, and less and less often. */
static void try_place_again(struct child *c)
{
	uint64_t ms = BUSY_MIN_MS << (c->busy < 7 ? c->busy : 7);

	c->busy++;
	(void)sd_event_add_time_relative(c->g->m->event, &c->again, CLOCK_MONOTONIC, ms * 1000, 1,
	                                 on_again, c);
}

/*
 * One of the same place runs, started by a supervisor that died at it: it is ours now.  Or it will
 * register; or a child that the dead one forked hasn't let go of the place yet.
 */
static bool place_is_taken(struct child *c)
{
	const struct mc_proc *p = &c->g->arena.proc[c->role];

	if (!mc_arena_place_taken(&c->g->arena, c->role))
		return false;
	if (child_found(c, (pid_t)atomic_load(&p->pid), atomic_load(&p->start_time)) < 0 &&
	    !c->again)
		try_place_again(c);
	return true;
}

static bool exited_with(const siginfo_t *si, int status)
{
	return si->si_code == CLD_EXITED && si->si_status == status;
}

static void succeed(struct child *c, const siginfo_t *si)
{
	unsigned deaths = c->asked ? 0 : recent_deaths(c);
	char why[320];

	c->hung = c->asked = false;
	c->busy = 0;
	if (exited_with(si, MC_EXIT_ABI)) {
		snprintf(why, sizeof(why),
		         "the installed mc-%s has another ABI than the guest's processes; protect "
		         "the guest anew (mcctl unprotect %s, then mcctl protect)",
		         mc_role_name(c->role), c->g->name);
		give_up(c, why);
		return;
	}
	if (deaths >= DEATHS_KEPT) {
		snprintf(why, sizeof(why),
		         "mc-%s died %u times within 10 s; its last words are in mcctl events %s, "
		         "mcctl restart %s %s tries again",
		         mc_role_name(c->role), deaths, c->g->name, c->g->name,
		         mc_role_name(c->role));
		give_up(c, why);
		return;
	}
	c->restarts++;
	if (deaths > AT_ONCE)
		start_later(c, deaths);
	else
		start_successor(c);
}

int death_noticed(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct child *c = userdata;
	siginfo_t si = {0};
	bool ours = c->ours;

	(void)s;
	(void)revents;
	/* Reaped before a successor is started: two of a role never run at once. */
	if (ours && waitid(P_PIDFD, (id_t)fd, &si, WEXITED) < 0)
		mc_warn("guest %s: can't see how mc-%s ended: %s; it is started again", c->g->name,
		        mc_role_name(c->role), strerror(errno));
	(void)mc_fault(MC_FAULT_SUPERVISOR_REAPED);
	if (c->wanted && !c->g->dying) {
		bool busy = exited_with(&si, MC_EXIT_BUSY);

		if (!busy)
			obituary(c, ours ? &si : NULL);
		child_forget(c);
		if (!busy)
			succeed(c, &si);
		else if (!place_is_taken(c))
			try_place_again(c);
		return 0;
	}
	child_forget(c);
	bus_stage_remove(c);
	return 0;
}

/* Does the guest's state ask for this process? */
static bool is_needed(const struct guest *g, enum mc_role role)
{
	enum mc_state s = guest_state(g);
	bool primary = g->side == MC_SIDE_PRIMARY;

	if (role == MC_ROLE_NETGATE)
		return primary || g->arena.config->nnics;
	if (role == MC_ROLE_TRANSPORT && watch_asks(g))
		return true;
	if (primary && (s == MC_STATE_STOPPED || s == MC_STATE_ENDED || s == MC_STATE_DEGRADED))
		return false;
	if (role == MC_ROLE_TRANSPORT)
		return true;
	if (role == MC_ROLE_RESTORE)
		return !primary && s != MC_STATE_ACTIVE && s != MC_STATE_ENDED &&
		       s != MC_STATE_STOPPED;
	if (role == MC_ROLE_CAPTURE)
		return primary;
	if (!primary || !mc_role_is_stage(role))
		return false;
	/* One that was ended finishes what capture, in the middle of a list, gave it after that. */
	return mc_role_index(role) < atomic_load(&g->arena.config->stage_workers) ||
	       mc_ring_depth(g->arena.ring_stage[mc_role_index(role)]);
}

void death_fill_places(struct guest *g)
{
	for (int i = MC_ROLE_CAPTURE; i < MC_ROLE_MAX; i++) {
		struct child *c = &g->child[i];

		if (c->pid || c->given_up || c->again || g->dying || place_is_taken(c) ||
		    !is_needed(g, c->role))
			continue;
		event_write(g, "process-missing", 0, "no mc-%s %u runs; it is started",
		            mc_role_name(c->role), mc_role_index(c->role));
		c->restarts++;
		start_successor(c);
	}
}
