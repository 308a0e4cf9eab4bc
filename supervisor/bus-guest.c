/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Objects /org/microcheckpoint1/guest/NAME, interface Guest. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

#define PREFIX        MC_BUS_ROOT "/guest"
#define CHECKPOINT_US 10000000

void bus_guest_path(const struct guest *g, char *buf, size_t len)
{
	char *path = NULL;

	buf[0] = '\0';
	if (sd_bus_path_encode(PREFIX, g->name, &path) >= 0)
		snprintf(buf, len, "%s", path);
	free(path);
}

static void ring(struct guest *g)
{
	mc_arena_ring_all(&g->arena);
}

static int only_primary(struct guest *g, sd_bus_error *e)
{
	enum mc_state s = guest_state(g);

	if (g->side == MC_SIDE_PRIMARY && (s == MC_STATE_PROTECTED || s == MC_STATE_SYNCING))
		return 0;
	return bus_error(e, -EPERM, "guest %s is %s (%s): that is for a protected primary", g->name,
	                 mc_state_name(s), g->side == MC_SIDE_PRIMARY ? "primary" : "backup");
}

static int on_checkpoint_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	watch_finish_checkpoint(userdata, -ETIMEDOUT, "no epoch was committed within 10 s");
	return 0;
}

static int method_checkpoint(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;

	if (guest_state(g) != MC_STATE_PROTECTED || g->side != MC_SIDE_PRIMARY)
		return bus_error(e, -EPERM, "guest %s is %s: only a protected primary takes epochs",
		                 g->name, mc_state_name(guest_state(g)));
	if (g->checkpoint)
		return bus_error(e, -EBUSY, "guest %s: a checkpoint is being waited for already",
		                 g->name);
	g->checkpoint = sd_bus_message_ref(msg);
	g->checkpoint_after = atomic_load(&g->arena.journal.shm->last_begun) + 1;
	(void)sd_event_add_time_relative(g->m->event, &g->checkpoint_limit, CLOCK_MONOTONIC,
	                                 CHECKPOINT_US, 0, on_checkpoint_limit, g);
	atomic_fetch_add(&g->arena.control->want_checkpoint, 1);
	ring(g);
	return 1;
}

static int method_failover(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;
	int planned, r = sd_bus_message_read(msg, "b", &planned);
	char who[32];

	if (r < 0)
		return r;
	if (planned)
		return switchover_begin(g, msg, e);
	if (g->side != MC_SIDE_BACKUP || guest_state(g) != MC_STATE_PROTECTED)
		return bus_error(
		        e, -EPERM,
		        "guest %s is %s (%s): failover is for a backup that holds a committed "
		        "epoch",
		        g->name, mc_state_name(guest_state(g)),
		        g->side == MC_SIDE_PRIMARY ? "primary" : "backup");
	bus_caller(msg, who, sizeof(who));
	event_write_by(g, "failover", who, bus_guest_committed_epoch(g),
	               "an operator lets the standby take over");
	atomic_store_explicit(&g->arena.control->want_takeover, MC_REASON_FAILOVER,
	                      memory_order_release);
	ring(g);
	return sd_bus_reply_method_return(msg, NULL);
}

static int method_rehearse(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	return rehearse_begin(userdata, msg, e);
}

static int set_hold(sd_bus_message *msg, struct guest *g, uint64_t on, sd_bus_error *e)
{
	int r = only_primary(g, e);
	char who[32];

	if (r < 0)
		return r;
	atomic_store_explicit(&g->arena.control->want_hold, on, memory_order_release);
	bus_caller(msg, who, sizeof(who));
	event_write_by(g, on ? "hold" : "resume", who, 0,
	               on ? "epochs are held by an operator; output waits" : "epochs go on");
	ring(g);
	return sd_bus_reply_method_return(msg, NULL);
}

static int method_hold(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	return set_hold(msg, userdata, 1, e);
}

static int method_resume(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	return set_hold(msg, userdata, 0, e);
}

static int method_resolve(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;
	const char *how;
	char who[32];
	bool promote;
	int r = sd_bus_message_read(msg, "s", &how);

	if (r < 0)
		return r;
	promote = strcmp(how, "promote") == 0;
	if (!promote && strcmp(how, "demote") != 0)
		return bus_error(e, -EINVAL,
		                 "resolve: '%.32s' isn't allowed; it must be promote (this "
		                 "guest goes on) or demote (it stays stopped)",
		                 how);
	if (g->side != MC_SIDE_PRIMARY)
		return bus_error(e, -EPERM, "guest %s: resolve is for the primary that is HELD",
		                 g->name);
	if (!promote)
		atomic_store(&g->arena.control->peer_taken, 1);
	r = mc_state_move(g->arena.control, MC_SIDE_PRIMARY, MC_ROLE_SUPERVISOR, MC_STATE_HELD,
	                  promote ? MC_STATE_DEGRADED : MC_STATE_STOPPED, MC_REASON_RESOLVED);
	if (r < 0) {
		if (!promote && guest_state(g) != MC_STATE_STOPPED)
			atomic_store(&g->arena.control->peer_taken, 0);
		return bus_error(e, -EPERM, "guest %s is %s, not HELD: there is nothing to resolve",
		                 g->name, mc_state_name(guest_state(g)));
	}
	bus_caller(msg, who, sizeof(who));
	event_write_by(g, "resolve", who, 0, "an operator decides: %s",
	               promote ? "this guest goes on, unprotected" : "this guest stays stopped");
	atomic_store(&g->arena.control->resolved, promote ? 1 : 2);
	ring(g);
	watch_look(g);
	return sd_bus_reply_method_return(msg, NULL);
}

static int method_set(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;
	struct request *rq = malloc(sizeof(*rq));
	char who[32];
	int r;

	if (!rq)
		return -ENOMEM;
	request_init(rq);
	rq->cfg = *g->arena.config;
	r = bus_read_options(msg, rq, true, e);
	if (r >= 0) {
		request_apply_running(rq, g->arena.config);
		ring(g);
		bus_caller(msg, who, sizeof(who));
		event_write_by(
		        g, "set", who, 0,
		        "interval %g ms, max-in-flight %u, zstd-level %d, max-bandwidth %llu",
		        atomic_load(&rq->cfg.interval_us) / 1000.0,
		        atomic_load(&rq->cfg.max_in_flight), (int)atomic_load(&rq->cfg.zstd_level),
		        (unsigned long long)atomic_load(&rq->cfg.max_bandwidth));
		r = sd_bus_reply_method_return(msg, NULL);
	}
	free(rq);
	return r;
}

static int method_workers(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	const char *stage;
	uint32_t n;
	int r = sd_bus_message_read(msg, "su", &stage, &n);

	if (r >= 0)
		r = workers_set(userdata, stage, n, e);
	return r < 0 ? r : sd_bus_reply_method_return(msg, NULL);
}

/* --- properties ------------------------------------------------------------------------- */

uint64_t bus_guest_committed_epoch(const struct guest *g)
{
	return g->side == MC_SIDE_PRIMARY ? atomic_load(&g->arena.journal.shm->last_committed)
	                                  : mc_commit_epoch(atomic_load(&g->arena.control->commit));
}

static uint64_t quantile(const struct guest *g, enum mc_histogram_id h, double q)
{
	return mc_histogram_quantile(&g->arena.metrics[mc_histogram_role(h)].hist[h], q);
}

static int property_text(sd_bus *bus, const char *path, const char *iface, const char *prop,
                         sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	static const char *const gates[] = {"none", "relay", "plug"};
	struct guest *g = userdata;
	uint64_t s = atomic_load(&g->arena.control->state);
	char text[MC_WHY_MAX];
	const char *v = g->name;

	(void)bus, (void)path, (void)iface, (void)e;
	if (strcmp(prop, "State") == 0)
		v = mc_state_name(mc_state_of(s));
	else if (strcmp(prop, "Reason") == 0)
		v = mc_reason_name(mc_state_reason(s));
	else if (strcmp(prop, "Role") == 0)
		v = g->side == MC_SIDE_PRIMARY ? "primary" : "backup";
	else if (strcmp(prop, "Peer") == 0)
		v = g->arena.config->peer;
	else if (strcmp(prop, "Qmp") == 0)
		v = g->arena.config->qmp;
	else if (strcmp(prop, "Gate") == 0)
		v = gates[g->arena.config->gate % 3];
	else if (strcmp(prop, "Tracker") == 0)
		v = mc_tracker_name((enum mc_tracker)(atomic_load(&g->arena.control->tracker)
		                                              ?: g->arena.config->tracker));
	else if (strcmp(prop, "Message") == 0)
		v = (snprintf(text, sizeof(text), "%.*s", MC_WHY_MAX - 1,
		              g->arena.control->refusal),
		     text);
	else if (strcmp(prop, "Security") == 0)
		v = (snprintf(text, sizeof(text), "%.*s",
		              (int)sizeof(g->arena.control->security) - 1,
		              g->arena.control->security),
		     text);
	return sd_bus_message_append(reply, "s", v);
}

uint64_t bus_guest_term(const struct guest *g)
{
	const struct mc_control *c = g->arena.control;

	if (g->side == MC_SIDE_PRIMARY)
		return g->arena.config->term.number;
	return atomic_load(&c->commit) & MC_COMMIT_TAKEN ? g->arena.config->takeover_term.number
	                                                 : atomic_load(&c->peer_term_number);
}

/* What is left after the rounds of the first copy travels in the first epoch. */
static uint64_t sync_done(const struct guest *g)
{
	const struct mc_control *c = g->arena.control;
	uint64_t done = atomic_load(&c->sync_bytes), total = atomic_load(&c->sync_total);

	return bus_guest_committed_epoch(g) ? mc_max_u64(done, total) : done;
}

static uint64_t number(const struct guest *g, const char *p)
{
	const struct mc_control *c = g->arena.control;
	const struct mc_metrics_block *net = &g->arena.metrics[MC_ROLE_NETGATE];

	if (strcmp(p, "Term") == 0)
		return bus_guest_term(g);
	if (strcmp(p, "Epoch") == 0)
		return atomic_load(&g->arena.journal.shm->last_begun);
	if (strcmp(p, "CommittedEpoch") == 0)
		return bus_guest_committed_epoch(g);
	if (strcmp(p, "TookOver") == 0)
		return atomic_load(&c->took_over);
	if (strcmp(p, "SyncDone") == 0)
		return sync_done(g);
	if (strcmp(p, "SyncTotal") == 0)
		return atomic_load(&c->sync_total);
	if (strcmp(p, "PauseP50") == 0)
		return quantile(g, MC_H_PAUSE, 0.5);
	if (strcmp(p, "PauseP99") == 0)
		return quantile(g, MC_H_PAUSE, 0.99);
	if (strcmp(p, "PauseMax") == 0)
		return quantile(g, MC_H_PAUSE, 1);
	if (strcmp(p, "CommitP50") == 0)
		return quantile(g, MC_H_COMMIT, 0.5);
	if (strcmp(p, "CommitP99") == 0)
		return quantile(g, MC_H_COMMIT, 0.99);
	if (strcmp(p, "ReleaseP50") == 0)
		return quantile(g, MC_H_RELEASE, 0.5);
	if (strcmp(p, "ReleaseP99") == 0)
		return quantile(g, MC_H_RELEASE, 0.99);
	if (strcmp(p, "GuestClockLag") == 0)
		return mc_metric_get(&g->arena.metrics[MC_ROLE_CAPTURE], MC_M_GUEST_CLOCK_LAG);
	if (strcmp(p, "HeldPackets") == 0)
		return mc_metric_get(net, MC_M_HELD_PACKETS);
	if (strcmp(p, "Slabs") == 0)
		return atomic_load(&g->arena.slabs.shm->held);
	if (strcmp(p, "SlabsUsed") == 0)
		return atomic_load(&g->arena.slabs.shm->in_use);
	if (strcmp(p, "Strikes") == 0)
		return atomic_load(&g->arena.slabs.shm->strikes);
	if (strcmp(p, "Workers") == 0)
		return atomic_load(&g->arena.config->stage_workers);
	if (strcmp(p, "Streams") == 0)
		return atomic_load(&g->arena.config->streams);
	if (strcmp(p, "Decoders") == 0)
		return atomic_load(&g->arena.config->decoders);
	return 0;
}

/* Sum and number of what a histogram holds: their growth is the mean of a moment. */
static int property_total(sd_bus *bus, const char *path, const char *iface, const char *prop,
                          sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	const struct guest *g = userdata;
	enum mc_histogram_id h = strncmp(prop, "Pause", 5) == 0    ? MC_H_PAUSE
	                         : strncmp(prop, "Commit", 6) == 0 ? MC_H_COMMIT
	                                                           : MC_H_RELEASE;
	const struct mc_histogram *hist = &g->arena.metrics[mc_histogram_role(h)].hist[h];

	(void)bus, (void)path, (void)iface, (void)e;
	return sd_bus_message_append(reply, "t",
	                             atomic_load(strstr(prop, "Sum") ? &hist->sum : &hist->count));
}

static int property_number(sd_bus *bus, const char *path, const char *iface, const char *prop,
                           sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	(void)bus, (void)path, (void)iface, (void)e;
	return sd_bus_message_append(reply, "t", number(userdata, prop));
}

static int property_interval(sd_bus *bus, const char *path, const char *iface, const char *prop,
                             sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;

	(void)bus, (void)path, (void)iface, (void)prop, (void)e;
	return sd_bus_message_append(reply, "d",
	                             atomic_load(&g->arena.config->interval_us) / 1000.0);
}

/* Bytes before encoding by bytes after it, over all stage workers; 0 when nothing was encoded. */
static int property_ratio(sd_bus *bus, const char *path, const char *iface, const char *prop,
                          sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;
	uint64_t in = 0, out = 0;

	(void)bus, (void)path, (void)iface, (void)prop, (void)e;
	for (unsigned i = 0; i < MC_STAGES_MAX; i++) {
		const struct mc_metrics_block *m = &g->arena.metrics[mc_role_stage(i)];

		in += mc_metric_get(m, MC_M_BYTES_IN);
		out += mc_metric_get(m, MC_M_BYTES_OUT);
	}
	return sd_bus_message_append(reply, "d", out ? (double)in / (double)out : 0.0);
}

static int property_link(sd_bus *bus, const char *path, const char *iface, const char *prop,
                         sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;

	(void)bus, (void)path, (void)iface, (void)prop, (void)e;
	return sd_bus_message_append(reply, "b",
	                             atomic_load(&g->arena.control->link) == MC_LINK_UP);
}

#define TEXT(n)   SD_BUS_PROPERTY(n, "s", property_text, 0, 0)
#define TOTAL(n)  SD_BUS_PROPERTY(n, "t", property_total, 0, 0)
#define NUMBER(n) SD_BUS_PROPERTY(n, "t", property_number, 0, 0)

static const sd_bus_vtable guest_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD("Checkpoint", NULL, NULL, method_checkpoint, 0),
        SD_BUS_METHOD_WITH_ARGS("Failover", SD_BUS_ARGS("b", planned), SD_BUS_NO_RESULT,
                                method_failover, 0),
        SD_BUS_METHOD_WITH_ARGS("Rehearse", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", result),
                                method_rehearse, 0),
        SD_BUS_METHOD("Hold", NULL, NULL, method_hold, 0),
        SD_BUS_METHOD("Resume", NULL, NULL, method_resume, 0),
        SD_BUS_METHOD_WITH_ARGS("Resolve", SD_BUS_ARGS("s", how), SD_BUS_NO_RESULT, method_resolve,
                                0),
        SD_BUS_METHOD_WITH_ARGS("Set", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, method_set,
                                0),
        SD_BUS_METHOD_WITH_ARGS("SetWorkers", SD_BUS_ARGS("s", stage, "u", number),
                                SD_BUS_NO_RESULT, method_workers, 0),
        SD_BUS_PROPERTY("State", "s", property_text, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
        SD_BUS_PROPERTY("Reason", "s", property_text, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
        TEXT("Name"),
        TEXT("Role"),
        TEXT("Peer"),
        TEXT("Qmp"),
        TEXT("Gate"),
        TEXT("Tracker"),
        TEXT("Message"),
        TEXT("Security"),
        NUMBER("Term"),
        NUMBER("Epoch"),
        NUMBER("CommittedEpoch"),
        NUMBER("TookOver"),
        NUMBER("SyncDone"),
        NUMBER("SyncTotal"),
        NUMBER("PauseP50"),
        NUMBER("PauseP99"),
        NUMBER("PauseMax"),
        NUMBER("CommitP50"),
        NUMBER("CommitP99"),
        NUMBER("ReleaseP50"),
        NUMBER("ReleaseP99"),
        TOTAL("PauseSum"),
        TOTAL("PauseCount"),
        TOTAL("CommitSum"),
        TOTAL("CommitCount"),
        TOTAL("ReleaseSum"),
        TOTAL("ReleaseCount"),
        NUMBER("GuestClockLag"),
        NUMBER("HeldPackets"),
        NUMBER("Slabs"),
        NUMBER("SlabsUsed"),
        NUMBER("Strikes"),
        NUMBER("Workers"),
        NUMBER("Streams"),
        NUMBER("Decoders"),
        SD_BUS_PROPERTY("Interval", "d", property_interval, 0, 0),
        SD_BUS_PROPERTY("Ratio", "d", property_ratio, 0, 0),
        SD_BUS_PROPERTY("Link", "b", property_link, 0, 0),
        SD_BUS_SIGNAL_WITH_ARGS("StateChanged", SD_BUS_ARGS("s", old, "s", now, "s", reason), 0),
        SD_BUS_SIGNAL_WITH_ARGS("Committed", SD_BUS_ARGS("t", epoch), 0),
        SD_BUS_SIGNAL_WITH_ARGS("FailedOver", SD_BUS_ARGS("t", term, "t", epoch, "t", duration_us),
                                0),
        SD_BUS_SIGNAL_WITH_ARGS("StageDied",
                                SD_BUS_ARGS("s", stage, "u", index, "u", pid, "s", how, "t", epoch,
                                            "s", last_words),
                                0),
        SD_BUS_SIGNAL_WITH_ARGS("Progress", SD_BUS_ARGS("t", done, "t", total), 0),
        SD_BUS_VTABLE_END,
};

int bus_guest_register(struct guest *g)
{
	char path[256];

	bus_guest_path(g, path, sizeof(path));
	return sd_bus_add_object_vtable(g->m->bus, &g->object, path, MC_IFACE_GUEST, guest_vtable,
	                                g);
}

void bus_guest_changed(struct guest *g, const char *old, const char *now, const char *reason)
{
	char path[256];

	bus_guest_path(g, path, sizeof(path));
	(void)sd_bus_emit_signal(g->m->bus, path, MC_IFACE_GUEST, "StateChanged", "sss", old, now,
	                         reason);
	(void)sd_bus_emit_properties_changed(g->m->bus, path, MC_IFACE_GUEST, "State", "Reason",
	                                     NULL);
}

void bus_guest_committed(struct guest *g, uint64_t epoch)
{
	char path[256];

	bus_guest_path(g, path, sizeof(path));
	(void)sd_bus_emit_signal(g->m->bus, path, MC_IFACE_GUEST, "Committed", "t", epoch);
}

void bus_guest_failed_over(struct guest *g)
{
	const struct mc_control *c = g->arena.control;
	uint64_t took = atomic_load(&c->took_over) - atomic_load(&c->takeover_began);
	char path[256];

	bus_guest_path(g, path, sizeof(path));
	(void)sd_bus_emit_signal(g->m->bus, path, MC_IFACE_GUEST, "FailedOver", "ttt",
	                         number(g, "Term"), bus_guest_committed_epoch(g), took / 1000);
}

void bus_guest_stage_died(struct guest *g, const struct child *c, const char *how,
                          const char *words)
{
	uint64_t epoch = atomic_load(&g->arena.journal.shm->last_begun);
	char path[256];

	bus_guest_path(g, path, sizeof(path));
	(void)sd_bus_emit_signal(g->m->bus, path, MC_IFACE_GUEST, "StageDied", "suusts",
	                         mc_role_name(c->role), mc_role_index(c->role), (uint32_t)c->pid,
	                         how, epoch, words);
}

void bus_guest_progress(struct guest *g, uint64_t done, uint64_t total)
{
	char path[256];

	bus_guest_path(g, path, sizeof(path));
	(void)sd_bus_emit_signal(g->m->bus, path, MC_IFACE_GUEST, "Progress", "tt", done, total);
}
