/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "netgate.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"

static uint64_t load(const _Atomic uint64_t *w)
{
	return atomic_load_explicit(w, memory_order_acquire);
}

enum gate_mode netgate_wanted_mode(const struct mc_control *c, enum mc_side side)
{
	enum mc_state s = mc_state_of(load(&c->state));
	uint64_t armed = load(&c->armed_epoch);

	if (side == MC_SIDE_BACKUP)
		return s == MC_STATE_ACTIVE && load(&c->commit) & MC_COMMIT_TAKEN ? GATE_PASS
		                                                                  : GATE_SHUT;
	switch (s) {
	case MC_STATE_NONE:
	case MC_STATE_SYNCING:
		/* Shut by the barrier of the first epoch, before the guest goes on. */
		return armed && load(&c->barrier_req) >= armed ? GATE_HOLD : GATE_PASS;
	case MC_STATE_PROTECTED:
	case MC_STATE_HELD:
		return GATE_HOLD;
	case MC_STATE_DEGRADED:
		return GATE_PASS;
	case MC_STATE_ENDED:
		return load(&c->end_acked) ? GATE_PASS : GATE_HOLD;
	case MC_STATE_STOPPED:
		/* Nothing was ever sent that could be taken over: the guest is as free as before.
		 */
		return load(&c->peer_taken)                           ? GATE_SHUT
		       : load(&c->first_sent) && !load(&c->end_acked) ? GATE_HOLD
		                                                      : GATE_PASS;
	default:
		return GATE_SHUT;
	}
}

static int each_nic(struct netgate *g, int (*fn)(struct gate_nic *n, uint64_t v), uint64_t v)
{
	int r = 0;

	for (unsigned i = 0; i < g->nnics; i++) {
		int e = fn(g->nic[i], v);

		if (e < 0 && r == 0)
			r = e;
	}
	return r;
}

static int failed(struct netgate *g, int r, const char *what)
{
	mc_log_errno(r, "the gate can't %s; packets stay held", what);
	atomic_store(&g->a->control->gate_error, (uint64_t)(int64_t)r);
	mc_arena_ring(g->a, MC_ROLE_CAPTURE);
	return r;
}

static int one_mode(struct gate_nic *n, uint64_t mode)
{
	return n->ops->set_mode(n, (enum gate_mode)mode);
}

static int one_barrier(struct gate_nic *n, uint64_t epoch)
{
	return n->ops->barrier(n, epoch);
}

static int one_release(struct gate_nic *n, uint64_t epoch)
{
	return n->ops->release(n, epoch);
}

static int one_limit(struct gate_nic *n, uint64_t bytes)
{
	return n->ops->set_limit(n, bytes);
}

static int follow_mode(struct netgate *g)
{
	enum gate_mode want = netgate_wanted_mode(g->a->control, g->a->journal.side);
	int r;

	if (want == g->mode && g->shut_after_start)
		return 0;
	(void)mc_fault(MC_FAULT_NETGATE_MODE);
	r = each_nic(g, one_mode, want);
	if (r < 0)
		return failed(g, r, "change its mode");
	(void)mc_fault(MC_FAULT_NETGATE_MODE_SET);
	g->mode = want;
	g->shut_after_start = true;
	return 1;
}

static int follow_limit(struct netgate *g)
{
	uint64_t limit = atomic_load(&g->a->config->gate_limit);

	if (limit == g->limit)
		return 0;
	g->limit = limit;
	return each_nic(g, one_limit, limit) < 0 ? 0 : 1;
}

/* Capture has stopped the guest and asks for a mark behind all that it sent. */
static int follow_barrier(struct netgate *g)
{
	struct mc_control *c = g->a->control;
	uint64_t want = load(&c->barrier_req);
	int r;

	if (g->a->journal.side != MC_SIDE_PRIMARY || want <= load(&c->barrier_done))
		return 0;
	r = mc_fault(MC_FAULT_NETGATE_BARRIER);
	if (r == 0)
		r = each_nic(g, one_barrier, want);
	if (r < 0)
		return failed(g, r, "set a barrier");
	g->barrier = want;
	if (mc_fault(MC_FAULT_NETGATE_BARRIER_SET) < 0)
		return -EIO;
	mc_metric_add(mc_worker_metrics(g->w), MC_M_BARRIERS, 1);
	atomic_store_explicit(&c->barrier_done, want, memory_order_release);
	(void)mc_fault(MC_FAULT_NETGATE_BARRIER_DONE);
	mc_arena_ring(g->a, MC_ROLE_CAPTURE);
	return 1;
}

static void note_release(struct netgate *g, uint64_t epoch)
{
	struct mc_metrics_block *m = mc_worker_metrics(g->w);
	struct mc_journal_record *rec = mc_journal_get(&g->a->journal, epoch);

	if (!rec ||
	    mc_journal_move(&g->a->journal, epoch, MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED) < 0)
		return;
	mc_metric_add(m, MC_M_RELEASES, 1);
	mc_histogram_add(&m->hist[MC_H_RELEASE],
	                 mc_now_ns() - atomic_load(&rec->stamp[MC_EPOCH_CAPTURING]));
}

/* Everything up to the newest committed barrier may leave, within the lease. */
static int follow_commits(struct netgate *g)
{
	struct mc_control *c = g->a->control;
	uint64_t committed = load(&g->a->journal.shm->last_committed), lease;
	uint64_t now = mc_now_ns();

	if (g->a->journal.side != MC_SIDE_PRIMARY || committed <= g->released)
		return 0;
	lease = load(&c->lease_until);
	if (g->nnics && now >= lease)
		return 0; /* transport rings when the lease is renewed */
	if (mc_fault(MC_FAULT_NETGATE_RELEASE) < 0 || each_nic(g, one_release, committed) < 0)
		return failed(g, -EIO, "release");
	if (mc_fault(MC_FAULT_NETGATE_RELEASE_SET) < 0)
		return -EIO;
	/* None may be left out: a record that stays COMMITTED blocks its slot. */
	for (uint64_t n = g->noted; (n = mc_journal_next(&g->a->journal, n)) && n <= committed;)
		note_release(g, n);
	g->noted = committed;
	g->released = committed;
	mc_arena_ring(g->a, MC_ROLE_CAPTURE);
	return 1;
}

static int netgate_work(struct mc_worker *w, void *ctx)
{
	struct netgate *g = ctx;
	int r = follow_mode(g);

	(void)w;
	if (r == 0)
		r = follow_limit(g);
	if (r == 0)
		r = follow_barrier(g);
	if (r == 0)
		r = follow_commits(g);
	return r;
}

static int open_nics(struct netgate *g)
{
	const struct mc_config *cfg = g->a->config;
	char why[256] = "";

	for (uint32_t i = 0; i < cfg->nnics; i++) {
		const struct mc_nic *spec = &cfg->nic[i];
		int r = -EOPNOTSUPP;

		if (spec->kind == MC_GATE_RELAY)
			r = relay_ops.open(&g->nic[i], spec, g->w->event, mc_worker_metrics(g->w),
			                   why, sizeof(why));
		else
			snprintf(why, sizeof(why),
			         "this build has no plug gate; use --relay instead of --nic");
		if (r < 0) {
			if (!why[0])
				snprintf(why, sizeof(why), "%s", strerror(-r));
			mc_err("NIC %s: %s", spec->netdev, why);
			mc_control_refuse(g->a->control, "NIC %s: %s", spec->netdev, why);
			return r;
		}
		g->nnics++;
	}
	return 0;
}

/* The kernel's gate is worked by rtnetlink; a relay has all that it needs in its sockets. */
static int confine(struct netgate *g)
{
	const struct mc_config *cfg = g->a->config;
	uint64_t capabilities = 0;
	unsigned allow = 0;

	for (uint32_t i = 0; i < cfg->nnics; i++) {
		if (cfg->nic[i].kind != MC_GATE_PLUG)
			continue;
		capabilities |= 1ULL << CAP_NET_ADMIN;
		if (!cfg->nic[i].netns[0])
			continue;
		capabilities |= 1ULL << CAP_SYS_ADMIN; /* setns() */
		allow |= MC_ALLOW_NETNS;
	}
	return mc_worker_confine(g->w, capabilities, allow);
}

static int netgate_start(struct mc_worker *w, void *ctx)
{
	struct netgate *g = ctx;
	int r;

	g->w = w;
	g->a = &w->arena;
	g->mode = GATE_SHUT;
	/* A predecessor's held frames are lost; its released epochs stay released. */
	g->released = load(&g->a->journal.shm->last_released);
	mc_metric_set(mc_worker_metrics(w), MC_M_HELD_PACKETS, 0);
	mc_metric_set(mc_worker_metrics(w), MC_M_HELD_BYTES, 0);
	r = open_nics(g);
	if (r < 0) {
		atomic_store(&g->a->control->gate_error, (uint64_t)(int64_t)r);
		(void)mc_state_move(g->a->control, g->a->journal.side, MC_ROLE_NETGATE,
		                    MC_STATE_SYNCING, MC_STATE_STOPPED, MC_REASON_REFUSED);
		mc_arena_ring_all(g->a);
		return confine(g);
	}
	(void)mc_fault(MC_FAULT_NETGATE_OPENED);
	r = confine(g);
	if (r < 0)
		return r;
	atomic_store(&g->a->control->gate_error, 0);
	atomic_store_explicit(&g->a->control->gate_ready, 1, memory_order_release);
	mc_arena_ring_all(g->a);
	return 0;
}

static void netgate_quit(struct mc_worker *w, void *ctx)
{
	struct netgate *g = ctx;

	(void)w;
	for (unsigned i = 0; i < g->nnics; i++)
		g->nic[i] = g->nic[i]->ops->close(g->nic[i]);
	g->nnics = 0;
}

const struct mc_worker_ops netgate_ops = {
        .role = MC_ROLE_NETGATE,
        .process = "mc-netgate",
        .allow = MC_ALLOW_NET | MC_ALLOW_DEVICE,
        .confines_itself = true,
        .start = netgate_start,
        .work = netgate_work,
        .quit = netgate_quit,
};
