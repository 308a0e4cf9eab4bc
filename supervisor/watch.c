/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the words of a guest say: state changes, commits, progress; and what follows. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

/* Bells closer together than this are answered together. */
#define THROTTLE_US 20000

static struct mc_bell *bell_of(struct guest *g)
{
	return &g->arena.proc[MC_ROLE_SUPERVISOR].bell;
}

void watch_answer(struct guest *g, sd_bus_message **call, sd_event_source **limit, int error,
                  const char *kind, const char *text)
{
	sd_bus_message *m = *call;

	if (!m)
		return;
	*call = NULL;
	*limit = sd_event_source_disable_unref(*limit);
	if (error < 0)
		(void)sd_bus_reply_method_errorf(m, kind, "guest %s: %s", g->name, text);
	else
		(void)sd_bus_reply_method_return(m, NULL);
	sd_bus_message_unref(m);
}

void watch_finish_checkpoint(struct guest *g, int error, const char *text)
{
	watch_answer(g, &g->checkpoint, &g->checkpoint_limit, error, MC_ERROR("Failed"), text);
}

void watch_finish_unprotect(struct guest *g, int error, const char *text)
{
	watch_answer(g, &g->unprotect, &g->unprotect_limit, error, MC_ERROR("Refused"), text);
}

/* A primary whose standby is gone keeps its transport: that one asks for a new one. */
bool watch_asks(const struct guest *g)
{
	uint64_t word = atomic_load_explicit(&g->arena.control->state, memory_order_acquire);
	enum mc_reason why = mc_state_reason(word);

	return g->side == MC_SIDE_PRIMARY && mc_state_of(word) == MC_STATE_DEGRADED &&
	       (why == MC_REASON_STANDBY_LOST || why == MC_REASON_RESOLVED ||
	        why == MC_REASON_ARBITER);
}

/* Which processes have done their work once a final state is reached. */
static void settle(struct guest *g, enum mc_state s)
{
	bool primary_over =
	        g->side == MC_SIDE_PRIMARY &&
	        (s == MC_STATE_STOPPED || s == MC_STATE_ENDED || s == MC_STATE_DEGRADED);
	bool backup_over = g->side == MC_SIDE_BACKUP &&
	                   (s == MC_STATE_ACTIVE || s == MC_STATE_ENDED || s == MC_STATE_STOPPED);

	if (g->settled || (!primary_over && !backup_over))
		return;
	g->settled = true;
	if (primary_over) {
		child_quit(&g->child[MC_ROLE_CAPTURE]);
		if (!watch_asks(g))
			child_quit(&g->child[MC_ROLE_TRANSPORT]);
		for (unsigned i = 0; i < MC_STAGES_MAX; i++)
			child_quit(&g->child[mc_role_stage(i)]);
	} else {
		/* transport stays: it tells a primary that comes back what happened. */
		child_quit(&g->child[MC_ROLE_RESTORE]);
	}
	watch_finish_unprotect(g, 0, NULL);
	switchover_finish(g, -ECANCELED, "the protection ended otherwise; see mcctl events");
	rehearse_look(g);
	rehearse_finish(g, -ECANCELED,
	                "the standby is needed, or has ended; mcctl events says which");
	watch_finish_checkpoint(g, -ECANCELED, "the protection ended; mcctl events says why");
}

/* Terms that came with a peer, or with a takeover, are kept across restarts. */
static void keep_terms(struct guest *g, enum mc_state s)
{
	struct mc_control *c = g->arena.control;
	struct mc_config *cfg = g->arena.config;
	struct term_record t;
	int r;

	if (g->side != MC_SIDE_BACKUP || term_load(g->m->state_dir, g->name, &t) < 0)
		return;
	if (s == MC_STATE_SYNCING) {
		t.current = (struct mc_term){.number = atomic_load(&c->peer_term_number),
		                             .id = atomic_load(&c->peer_term_id)};
		t.reserved = term_next(&t);
		r = term_store(g->m->state_dir, g->name, &t);
		if (r == 0)
			cfg->takeover_term = t.reserved;
	} else if (s == MC_STATE_ACTIVE && t.reserved.number > t.current.number) {
		t.current = t.reserved;
		r = term_store(g->m->state_dir, g->name, &t);
	} else {
		return;
	}
	if (r < 0)
		event_write(g, "error", 0,
		            "its term can't be written under %s: %s; look at that folder's space "
		            "and rights",
		            g->m->state_dir, strerror(-r));
}

static bool has_sentence(enum mc_reason r)
{
	return r == MC_REASON_REFUSED || r == MC_REASON_ERROR || r == MC_REASON_PEER_LOST ||
	       r == MC_REASON_CONFLICT || r == MC_REASON_OVERLOAD || r == MC_REASON_TRACKING;
}

/* How long it was in the state that it leaves; for a takeover also how long that took. */
static void timings(struct guest *g, enum mc_state was, enum mc_state now, char *buf, size_t len)
{
	const struct mc_control *c = g->arena.control;
	uint64_t t = mc_now_ns();

	buf[0] = '\0';
	if (now == MC_STATE_ACTIVE)
		snprintf(buf, len, ", guest running after %.1f ms",
		         (double)(atomic_load(&c->took_over) - atomic_load(&c->takeover_began)) /
		                 1e6);
	else if (g->state_since && was != MC_STATE_NONE)
		snprintf(buf, len, ", after %.3f s", (double)(t - g->state_since) / 1e9);
	g->state_since = t;
}

static void state_changed(struct guest *g, uint64_t was, uint64_t now)
{
	enum mc_state s = mc_state_of(now);
	const char *why = mc_reason_name(mc_state_reason(now));
	char text[MC_WHY_MAX] = "", took[64], by[32];

	if (has_sentence(mc_state_reason(now)) && g->arena.control->refusal[0])
		snprintf(text, sizeof(text), ": %.*s", MC_WHY_MAX - 3, g->arena.control->refusal);
	if (s == MC_STATE_STOPPED && mc_state_reason(now) == MC_REASON_TAKEN_OVER)
		switchover_finish(g, 0, NULL);
	keep_terms(g, s);
	snprintf(by, sizeof(by), "mc-%s", mc_role_name(mc_state_role(now)));
	timings(g, mc_state_of(was), s, took, sizeof(took));
	event_write_by(g, "state", by, atomic_load(&g->arena.journal.shm->last_begun),
	               "%s -> %s (%s%s)%s", mc_state_name(mc_state_of(was)), mc_state_name(s), why,
	               took, text);
	bus_guest_changed(g, mc_state_name(mc_state_of(was)), mc_state_name(s), why);
	if (s == MC_STATE_ACTIVE)
		bus_guest_failed_over(g);
	settle(g, s);
}

void watch_adopt(struct guest *g)
{
	g->seen_state = atomic_load_explicit(&g->arena.control->state, memory_order_acquire);
	g->state_since = mc_now_ns();
	settle(g, mc_state_of(g->seen_state));
}

static void look_at_commits(struct guest *g)
{
	struct mc_control *c = g->arena.control;
	uint64_t n = g->side == MC_SIDE_PRIMARY ? atomic_load(&g->arena.journal.shm->last_committed)
	                                        : mc_commit_epoch(atomic_load(&c->commit));

	if (n == g->seen_committed)
		return;
	g->seen_committed = n;
	bus_guest_committed(g, n);
	if (g->checkpoint && n >= g->checkpoint_after)
		watch_finish_checkpoint(g, 0, NULL);
}

static void look_at_progress(struct guest *g)
{
	struct mc_control *c = g->arena.control;
	uint64_t done = atomic_load(&c->sync_bytes);

	if (g->side != MC_SIDE_PRIMARY || guest_state(g) != MC_STATE_SYNCING ||
	    done - g->seen_sync < 8 << 20)
		return;
	g->seen_sync = done;
	bus_guest_progress(g, done, atomic_load(&c->sync_total));
}

void watch_retire(struct guest *g)
{
	uint32_t n = atomic_load(&g->arena.config->stage_workers);

	for (uint32_t i = n; g->side == MC_SIDE_PRIMARY && i < MC_STAGES_MAX; i++) {
		struct child *c = &g->child[mc_role_stage(i)];

		if (c->pid && c->wanted && !mc_ring_depth(g->arena.ring_stage[i]))
			child_quit(c);
	}
}

void watch_look(struct guest *g)
{
	uint64_t now = atomic_load_explicit(&g->arena.control->state, memory_order_acquire);

	if (now != g->seen_state) {
		uint64_t was = g->seen_state;

		g->seen_state = now;
		state_changed(g, was, now);
	}
	look_at_commits(g);
	look_at_progress(g);
	rehearse_look(g);
	gate_look(g);
	watch_retire(g);
	again_look(g);
}

/* Announces sleep, then looks once more (bell.h). */
static int on_throttle(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct guest *g = userdata;

	(void)s;
	(void)usec;
	g->looked_at = mc_now_ns();
	mc_bell_sleep(bell_of(g));
	watch_look(g);
	return 0;
}

static int on_bell(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct guest *g = userdata;
	uint64_t now = mc_now_ns();

	(void)s;
	(void)revents;
	mc_bell_awake(bell_of(g), fd);
	/* Seldom enough: the next bell may ring at once. */
	if (now - g->looked_at > THROTTLE_US * MC_NS_PER_US) {
		g->looked_at = now;
		mc_bell_sleep(bell_of(g));
		watch_look(g);
		return 0;
	}
	watch_look(g);
	(void)sd_event_source_set_time_relative(g->throttle, THROTTLE_US);
	(void)sd_event_source_set_enabled(g->throttle, SD_EVENT_ONESHOT);
	return 0;
}

int watch_start(struct guest *g)
{
	int r = sd_event_add_io(g->m->event, &g->bell, g->arena.bell_fd[MC_ROLE_SUPERVISOR],
	                        EPOLLIN, on_bell, g);

	if (r >= 0)
		r = sd_event_add_time_relative(g->m->event, &g->throttle, CLOCK_MONOTONIC, 0, 1000,
		                               on_throttle, g);
	return r < 0 ? r : 0;
}

void watch_stop(struct guest *g)
{
	g->bell = sd_event_source_disable_unref(g->bell);
	g->throttle = sd_event_source_disable_unref(g->throttle);
}
