/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SetWorkers: what "workers" are of each stage, and how many it may have. */
#include <errno.h>
#include <string.h>

#include "../ipc/util.h"
#include "supervisor.h"

static int set_stage_workers(struct guest *g, uint32_t n)
{
	uint32_t had = atomic_load(&g->arena.config->stage_workers);
	int r = 0;

	for (uint32_t i = had; i < n && r >= 0; i++) {
		struct child *c = &g->child[mc_role_stage(i)];

		c->given_up = false;
		if (!c->pid)
			r = child_spawn(c);
		c->wanted = true;
	}
	if (r < 0)
		return r;
	/* Fewer: no new work from here on; what is in their rings they finish (watch.c ends them).
	 */
	atomic_store(&g->arena.config->stage_workers, n);
	atomic_fetch_add(&g->arena.config->generation, 1);
	mc_arena_ring_all(&g->arena);
	watch_retire(g);
	return 0;
}

/* Connections and threads: the process follows the configuration. */
static int set_streams(struct guest *g, uint32_t n)
{
	atomic_store(&g->arena.config->streams, n);
	return 0;
}

static int set_decoders(struct guest *g, uint32_t n)
{
	atomic_store(&g->arena.config->decoders, n);
	return 0;
}

static const struct {
	enum mc_role role;
	enum mc_side side;
	uint32_t max;
	int (*set)(struct guest *g, uint32_t n);
	const char *what, *why_one;
} stages[] = {
        {MC_ROLE_STAGE0, MC_SIDE_PRIMARY, MC_STAGES_MAX, set_stage_workers, "encoders", NULL},
        {MC_ROLE_TRANSPORT, MC_SIDE_PRIMARY, MC_STREAMS_MAX, set_streams, "streams", NULL},
        {MC_ROLE_RESTORE, MC_SIDE_BACKUP, MC_DECODERS_MAX, set_decoders, "decoders", NULL},
        {MC_ROLE_CAPTURE, MC_SIDE_PRIMARY, 1, NULL, NULL,
         "a guest has one monitor connection, and one pause"},
        {MC_ROLE_NETGATE, MC_SIDE_PRIMARY, 1, NULL, NULL,
         "all NICs get their barriers at one instant"},
};

static bool has_ended(const struct guest *g)
{
	enum mc_state s = guest_state(g);

	return guest_replaceable(g) || s == MC_STATE_TAKING_OVER;
}

int workers_set(struct guest *g, const char *stage, uint32_t n, sd_bus_error *e)
{
	enum mc_role role;
	size_t i = 0;
	int r;

	if (mc_role_parse(stage, 0, &role) < 0 || role == MC_ROLE_SUPERVISOR)
		return bus_error(e, -EINVAL,
		                 "there is no stage '%.32s'; stages are capture, stage, "
		                 "transport, netgate, restore",
		                 stage);
	while (stages[i].role != role)
		i++;
	if (!stages[i].set)
		return n == 1 ? 0
		              : bus_error(e, -EINVAL, "%s works with exactly 1 process: %s", stage,
		                          stages[i].why_one);
	if (n < 1 || n > stages[i].max)
		return bus_error(e, -EINVAL, "%s: %u %s aren't allowed; 1..%u are", stage, n,
		                 stages[i].what, stages[i].max);
	if (g->side != stages[i].side || has_ended(g))
		return bus_error(e, -EPERM, "guest %s is %s (%s): the number of %s is set on a %s",
		                 g->name, mc_state_name(guest_state(g)),
		                 g->side == MC_SIDE_PRIMARY ? "primary" : "backup", stages[i].what,
		                 stages[i].side == MC_SIDE_PRIMARY ? "protected primary"
		                                                   : "backup that waits");
	r = stages[i].set(g, n);
	if (r < 0)
		return bus_error(e, r,
		                 "guest %s: the number of %s can't be changed: %s; try again, or "
		                 "mcctl events %s",
		                 g->name, stages[i].what, strerror(-r), g->name);
	mc_arena_ring_all(&g->arena);
	return 0;
}
