/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The properties of a guest on the bus, read from its arena. */
#include "bus-props.h"

#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "text.h"

uint64_t bus_guest_committed_epoch(const struct guest *g)
{
	return g->side == MC_SIDE_PRIMARY ? atomic_load(&g->arena.journal.shm->last_committed)
	                                  : mc_commit_epoch(atomic_load(&g->arena.control->commit));
}

static uint64_t quantile(const struct guest *g, enum mc_histogram_id h, double q)
{
	return mc_histogram_quantile(&g->arena.metrics[mc_histogram_role(h)].hist[h], q);
}

int guest_property_text(sd_bus *bus, const char *path, const char *iface, const char *prop,
                        sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	static const char *const gates[] = {"none", "relay", "plug"};
	struct guest *g = userdata;
	uint64_t s = atomic_load(&g->arena.control->state);
	const char *v = g->name;
	char text[MC_WHY_MAX];
	int max = MC_WHY_MAX - 1;

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
		v = g->arena.control->refusal;
	else if (strcmp(prop, "Security") == 0) {
		v = g->arena.control->security;
		max = (int)sizeof(g->arena.control->security) - 1;
	}
	/* What the guest's processes wrote may be anything. */
	snprintf(text, sizeof(text), "%.*s", max, v);
	return sd_bus_message_append(reply, "s", text_clean(text, true));
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

/* What the newest pause consisted of, ns. */
static const struct {
	const char *name;
	enum mc_metric metric;
} phases[] = {
        {"StopTime", MC_M_STOP_TIME},     {"ScanTime", MC_M_LOG_DIRTY_TIME},
        {"CopyTime", MC_M_RAM_COPY_TIME}, {"BarrierTime", MC_M_BARRIER_TIME},
        {"StateTime", MC_M_STATE_TIME},   {"ContTime", MC_M_CONT_TIME},
};

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
	for (size_t i = 0; i < MC_ARRAY_SIZE(phases); i++)
		if (strcmp(p, phases[i].name) == 0)
			return mc_metric_get(&g->arena.metrics[MC_ROLE_CAPTURE], phases[i].metric);
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
int guest_property_total(sd_bus *bus, const char *path, const char *iface, const char *prop,
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

int guest_property_number(sd_bus *bus, const char *path, const char *iface, const char *prop,
                          sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	(void)bus, (void)path, (void)iface, (void)e;
	return sd_bus_message_append(reply, "t", number(userdata, prop));
}

int guest_property_interval(sd_bus *bus, const char *path, const char *iface, const char *prop,
                            sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;

	(void)bus, (void)path, (void)iface, (void)prop, (void)e;
	return sd_bus_message_append(reply, "d",
	                             atomic_load(&g->arena.config->interval_us) / 1000.0);
}

/* Bytes before encoding by bytes after it, over all stage workers; 0 when nothing was encoded. */
int guest_property_ratio(sd_bus *bus, const char *path, const char *iface, const char *prop,
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

int guest_property_link(sd_bus *bus, const char *path, const char *iface, const char *prop,
                        sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	struct guest *g = userdata;

	(void)bus, (void)path, (void)iface, (void)prop, (void)e;
	return sd_bus_message_append(reply, "b",
	                             atomic_load(&g->arena.control->link) == MC_LINK_UP);
}
