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

	if (mc_control_passes(c, side))
		return GATE_PASS;
	if (side == MC_SIDE_BACKUP || s == MC_STATE_TAKING_OVER || s == MC_STATE_ACTIVE)
		return GATE_SHUT;
	return s == MC_STATE_STOPPED && load(&c->peer_taken) ? GATE_SHUT : GATE_HOLD;
}

/* Calls @fn for every NIC, also after an error.  The first error, else the smallest answer. */
static int each_nic(struct netgate *g, int (*fn)(struct gate_nic *n, uint64_t v), uint64_t v)
{
	int r = 1;

	for (unsigned i = 0; i < g->nnics; i++) {
		int e = fn(g->nic[i], v);

		if (r >= 0 && e < r)
			r = e;
	}
	return r;
}

static int failed(struct netgate *g, int r, const char *what)
{
	mc_log_errno(r, "the gate can't %s; packets stay held, mcctl restart sets it up anew",
	             what);
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

static void close_nic(struct netgate *g, unsigned i, bool undo)
{
	g->nic[i] = g->nic[i]->ops->close(g->nic[i], undo);
	g->nic[i] = g->nic[--g->nnics];
}

/* The protection is over and the guest free: the kernel needs no gate for what passes. */
static void retire(struct netgate *g)
{
	enum mc_state s = mc_state_of(load(&g->a->control->state));

	if (g->mode != GATE_PASS || (s != MC_STATE_ENDED && s != MC_STATE_STOPPED))
		return;
	for (unsigned i = g->nnics; i > 0; i--)
		if (g->nic[i - 1]->ops->in_kernel)
			close_nic(g, i - 1, true);
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
	retire(g);
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

/* The epoch isn't used; the next one gets its own try. */
static int barrier_failed(struct netgate *g, uint64_t epoch, int r)
{
	mc_log_errno(r, "no barrier for epoch %llu; it isn't used, the next one tries again",
	             (unsigned long long)epoch);
	atomic_store_explicit(&g->a->control->barrier_failed, epoch, memory_order_release);
	mc_arena_ring(g->a, MC_ROLE_CAPTURE);
	return 1;
}

/* Capture has stopped the guest and asks for a mark behind all that it sent. */
static int follow_barrier(struct netgate *g)
{
	struct mc_control *c = g->a->control;
	uint64_t want = load(&c->barrier_req);
	int r;

	if (g->a->journal.side != MC_SIDE_PRIMARY || want <= load(&c->barrier_done) ||
	    want <= load(&c->barrier_failed))
		return 0;
	r = g->crippled ? -ENODEV : mc_fault(MC_FAULT_NETGATE_BARRIER);
	if (r == 0)
		r = each_nic(g, one_barrier, want);
	if (r < 0)
		return barrier_failed(g, want, r);
	g->barrier = want;
	g->marked = (g->marked & ~(1ULL << want % 64)) | (uint64_t)(r > 0) << want % 64;
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
	/* What was sent before a barrier without mark leaves with a later epoch. */
	if (g->marked >> epoch % 64 & 1)
		mc_histogram_add(&m->hist[MC_H_RELEASE],
		                 mc_now_ns() - atomic_load(&rec->stamp[MC_EPOCH_CAPTURING]));
}

/* Everything up to the newest committed barrier may leave, within the lease. */
static int follow_commits(struct netgate *g)
{
	struct mc_control *c = g->a->control;
	uint64_t committed = load(&g->a->journal.shm->last_committed), lease;
	uint64_t now = mc_now_ns();
	int r;

	if (g->a->journal.side != MC_SIDE_PRIMARY || committed <= g->released)
		return 0;
	lease = load(&c->lease_until);
	if (g->nnics && now >= lease)
		return 0; /* transport rings when the lease is renewed */
	r = mc_fault(MC_FAULT_NETGATE_RELEASE);
	if (r == 0)
		r = each_nic(g, one_release, committed);
	if (r == -EAGAIN)
		return 0; /* the NIC wakes us up */
	if (r < 0)
		return failed(g, r, "release");
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

static void report(void *ctx, const char *id, const char *text)
{
	struct netgate *g = ctx;

	mc_worker_event(g->w, id, load(&g->a->journal.shm->last_begun), "%s", text);
}

static int open_nic(struct netgate *g, uint32_t i, char *why, size_t why_len)
{
	const struct mc_config *cfg = g->a->config;
	const struct gate_ops *ops = cfg->nic[i].kind == MC_GATE_PLUG ? &plug_ops : &relay_ops;
	enum mc_side side = g->a->journal.side;
	struct gate_env env = {
	        .event = g->w->event,
	        .guest = cfg->guest,
	        .m = mc_worker_metrics(g->w),
	        .record = &g->a->control->gate[i],
	        .limit = g->limit,
	        .mode = netgate_wanted_mode(g->a->control, side),
	        .fenced = side == MC_SIDE_PRIMARY,
	        .report = report,
	        .ctx = g,
	};

	return ops->open(&g->nic[g->nnics], &cfg->nic[i], &env, why, why_len);
}

static int open_nics(struct netgate *g)
{
	const struct mc_config *cfg = g->a->config;

	for (uint32_t i = 0; i < cfg->nnics; i++) {
		const char *name = mc_nic_name(&cfg->nic[i]);
		char why[512] = "";
		int r = open_nic(g, i, why, sizeof(why));

		if (r < 0) {
			if (!why[0])
				snprintf(why, sizeof(why), "%s", strerror(-r));
			mc_err("NIC %s: %s", name, why);
			mc_control_refuse(g->a->control, "NIC %s: %s", name, why);
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

/* An end before anything was armed leaves nothing behind. */
static void give_up(struct netgate *g, int r)
{
	struct mc_control *c = g->a->control;

	g->crippled = true;
	atomic_store(&c->gate_error, (uint64_t)(int64_t)r);
	if (mc_state_move(c, g->a->journal.side, MC_ROLE_NETGATE, MC_STATE_SYNCING,
	                  MC_STATE_STOPPED, MC_REASON_REFUSED) == 0)
		while (g->nnics)
			close_nic(g, g->nnics - 1, true);
	mc_arena_ring_all(g->a);
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
	g->limit = atomic_load(&g->a->config->gate_limit);
	r = open_nics(g);
	if (r < 0) {
		give_up(g, r);
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
	while (g->nnics)
		close_nic(g, g->nnics - 1, load(&g->a->control->want_undo));
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
