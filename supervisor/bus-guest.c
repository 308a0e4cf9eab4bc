/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Objects /org/microcheckpoint1/guest/NAME, interface Guest. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "access.h"
#include "bus-props.h"
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

static int on_primary_only(const struct guest *g, sd_bus_error *e)
{
	return bus_error(e, -EPERM,
	                 "guest %s: this is its backup (%s); do that on the host of the primary",
	                 g->name, mc_state_name(guest_state(g)));
}

static int only_primary(struct guest *g, sd_bus_error *e)
{
	enum mc_state s = guest_state(g);

	if (g->side == MC_SIDE_PRIMARY && (s == MC_STATE_PROTECTED || s == MC_STATE_SYNCING))
		return 0;
	if (g->side == MC_SIDE_BACKUP)
		return on_primary_only(g, e);
	return bus_error(e, -EPERM,
	                 "guest %s is %s: that is for a protected primary; mcctl events %s says "
	                 "how it came to this",
	                 g->name, mc_state_name(s), g->name);
}

static int on_checkpoint_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	watch_finish_checkpoint(userdata, -ETIMEDOUT,
	                        "no epoch was committed within 10 s; mcctl status and mcctl events "
	                        "say what is in its way");
	return 0;
}

static int method_checkpoint(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;

	if (g->side == MC_SIDE_BACKUP)
		return on_primary_only(g, e);
	if (guest_state(g) != MC_STATE_PROTECTED)
		return bus_error(e, -EPERM,
		                 "guest %s is %s: only a protected primary takes epochs; wait for "
		                 "PROTECTED, or mcctl events %s",
		                 g->name, mc_state_name(guest_state(g)), g->name);
	if (g->checkpoint)
		return bus_error(
		        e, -EBUSY,
		        "guest %s: a checkpoint is being waited for already; wait for its answer",
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
		return bus_error(e, -EPERM,
		                 "guest %s is %s (%s): failover is for a backup that holds a "
		                 "committed epoch; on a primary it is mcctl failover %s --planned",
		                 g->name, mc_state_name(guest_state(g)),
		                 g->side == MC_SIDE_PRIMARY ? "primary" : "backup", g->name);
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
	struct guest *g = userdata;

	/* Without a backup that answers it is HELD again at once. */
	if (guest_relieve(g) == 0)
		watch_look(g);
	return set_hold(msg, g, 0, e);
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
		return bus_error(e, -EPERM,
		                 "guest %s: resolve is for the primary that is HELD; this is its "
		                 "backup, which mcctl failover %s lets take over",
		                 g->name, g->name);
	if (promote && guest_overloaded(g) &&
	    atomic_load(&g->arena.control->lease_until) > mc_now_ns())
		return bus_error(e, -EPERM,
		                 "guest %s: its backup answers and would take over; use mcctl "
		                 "resume %s (epochs are tried again) or mcctl unprotect %s",
		                 g->name, g->name, g->name);
	if (!promote)
		atomic_store(&g->arena.control->peer_taken, 1);
	r = mc_state_move(g->arena.control, MC_SIDE_PRIMARY, MC_ROLE_SUPERVISOR, MC_STATE_HELD,
	                  promote ? MC_STATE_DEGRADED : MC_STATE_STOPPED, MC_REASON_RESOLVED);
	if (r < 0) {
		if (!promote && guest_state(g) != MC_STATE_STOPPED)
			atomic_store(&g->arena.control->peer_taken, 0);
		return bus_error(e, -EPERM,
		                 "guest %s is %s, not HELD: there is nothing to resolve (mcctl "
		                 "status shows who waits for a decision)",
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
		        "interval %g ms, max-in-flight %u, zstd-level %d, max-bandwidth %llu, "
		        "gate-limit %llu",
		        atomic_load(&rq->cfg.interval_us) / 1000.0,
		        atomic_load(&rq->cfg.max_in_flight), (int)atomic_load(&rq->cfg.zstd_level),
		        (unsigned long long)atomic_load(&rq->cfg.max_bandwidth),
		        (unsigned long long)atomic_load(&rq->cfg.gate_limit));
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

#define TEXT(n)   SD_BUS_PROPERTY(n, "s", guest_property_text, 0, 0)
#define TOTAL(n)  SD_BUS_PROPERTY(n, "t", guest_property_total, 0, 0)
#define NUMBER(n) SD_BUS_PROPERTY(n, "t", guest_property_number, 0, 0)

GUARD_GUEST(checkpoint, ACCESS_PROTECT)
GUARD_GUEST(failover, ACCESS_FAILOVER)
GUARD_GUEST(rehearse, ACCESS_PROTECT)
GUARD_GUEST(hold, ACCESS_PROTECT)
GUARD_GUEST(resume, ACCESS_PROTECT)
GUARD_GUEST(resolve, ACCESS_RESOLVE)
GUARD_GUEST(set, ACCESS_PROTECT)
GUARD_GUEST(workers, ACCESS_PROTECT)

static const sd_bus_vtable guest_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD("Checkpoint", NULL, NULL, guarded_checkpoint, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Failover", SD_BUS_ARGS("b", planned), SD_BUS_NO_RESULT,
                                guarded_failover, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Rehearse", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", result),
                                guarded_rehearse, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD("Hold", NULL, NULL, guarded_hold, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD("Resume", NULL, NULL, guarded_resume, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Resolve", SD_BUS_ARGS("s", how), SD_BUS_NO_RESULT, guarded_resolve,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Set", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, guarded_set,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("SetWorkers", SD_BUS_ARGS("s", stage, "u", number),
                                SD_BUS_NO_RESULT, guarded_workers, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_PROPERTY("State", "s", guest_property_text, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
        SD_BUS_PROPERTY("Reason", "s", guest_property_text, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
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
        NUMBER("StopTime"),
        NUMBER("ScanTime"),
        NUMBER("CopyTime"),
        NUMBER("BarrierTime"),
        NUMBER("StateTime"),
        NUMBER("ContTime"),
        NUMBER("GuestClockLag"),
        NUMBER("HeldPackets"),
        NUMBER("Slabs"),
        NUMBER("SlabsUsed"),
        NUMBER("Strikes"),
        NUMBER("Workers"),
        NUMBER("Streams"),
        NUMBER("Decoders"),
        SD_BUS_PROPERTY("Interval", "d", guest_property_interval, 0, 0),
        SD_BUS_PROPERTY("Ratio", "d", guest_property_ratio, 0, 0),
        SD_BUS_PROPERTY("Link", "b", guest_property_link, 0, 0),
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
	                         bus_guest_term(g), bus_guest_committed_epoch(g), took / 1000);
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
