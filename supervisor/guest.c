/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Life of a guest entry: its arena and its processes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

enum mc_state guest_state(const struct guest *g)
{
	return mc_state_of(atomic_load_explicit(&g->arena.control->state, memory_order_acquire));
}

bool guest_overloaded(const struct guest *g)
{
	uint64_t word = atomic_load_explicit(&g->arena.control->state, memory_order_acquire);

	return mc_state_of(word) == MC_STATE_HELD && mc_state_reason(word) == MC_REASON_OVERLOAD;
}

int guest_relieve(struct guest *g)
{
	int r;

	if (!guest_overloaded(g))
		return -ESTALE;
	r = mc_state_move(g->arena.control, MC_SIDE_PRIMARY, MC_ROLE_SUPERVISOR, MC_STATE_HELD,
	                  MC_STATE_PROTECTED, MC_REASON_RESOLVED);
	mc_arena_ring_all(&g->arena);
	return r;
}

bool guest_replaceable(const struct guest *g)
{
	enum mc_state s = guest_state(g);

	return s == MC_STATE_STOPPED || s == MC_STATE_ENDED || s == MC_STATE_ACTIVE ||
	       s == MC_STATE_DEGRADED || s == MC_STATE_NONE;
}

static struct guest *guest_alloc(struct manager *m, const char *name)
{
	struct guest *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->m = m;
	snprintf(g->name, sizeof(g->name), "%s", name);
	snprintf(g->shm_name, sizeof(g->shm_name), "/microcheckpoint-%08x-%s", m->hash, name);
	for (int i = 0; i < MC_ROLE_MAX; i++) {
		g->child[i].g = g;
		g->child[i].role = (enum mc_role)i;
		g->child[i].pidfd = -1;
	}
	return g;
}

static void link_guest(struct guest *g)
{
	g->next = g->m->guests;
	g->m->guests = g;
	g->m->nguests++;
}

static void unlink_guest(struct guest *g)
{
	struct guest **p = &g->m->guests;

	while (*p && *p != g)
		p = &(*p)->next;
	if (*p) {
		*p = g->next;
		g->m->nguests--;
	}
}

static int make_arena(struct guest *g, const struct mc_arena_params *p, char *why, size_t why_len)
{
	int r = mc_arena_create(&g->arena, g->shm_name, p);
	struct statvfs v;

	if (r == -EEXIST) {
		/* Of a supervisor that died with its guest: no process of ours uses it. */
		mc_arena_unlink(g->shm_name);
		r = mc_arena_create(&g->arena, g->shm_name, p);
	}
	if (r == -ENOSPC && statvfs("/dev/shm", &v) == 0)
		snprintf(why, why_len,
		         "guest %s: /dev/shm is full: %llu MiB are needed to begin, %llu MiB are "
		         "free; enlarge it (mount -o remount,size=...) or lower delta-cache",
		         g->name, (unsigned long long)(mc_arena_fixed(p) >> 20) + 1,
		         (unsigned long long)(v.f_bavail * v.f_frsize >> 20));
	else if (r < 0)
		snprintf(why, why_len,
		         "guest %s: can't make its shared memory: %s; has /dev/shm room for "
		         "max-memory (df /dev/shm)?",
		         g->name, strerror(-r));
	return r;
}

/* The first epochs need slabs: better refused now than during the first copy. */
static int check_room(struct guest *g, char *why, size_t why_len)
{
	int n = mc_pool_reserve(&g->arena.slabs, 4);

	if (n >= 4 && mc_pool_reserve(&g->arena.descs, 4) >= 4)
		return 0;
	snprintf(
	        why, why_len,
	        "guest %s: /dev/shm is full: not even 4 slabs of %llu bytes fit; enlarge it (mount "
	        "-o remount,size=...)",
	        g->name, (unsigned long long)g->arena.slabs.unit);
	return -ENOSPC;
}

/* Raises the term, durably, before anything uses it. */
static int set_terms(struct guest *g, enum mc_side side, char *why, size_t why_len)
{
	struct term_record t;
	int r = term_load(g->m->state_dir, g->name, &t);

	if (r == 0 && side == MC_SIDE_PRIMARY) {
		t.current = term_next(&t);
		r = term_store(g->m->state_dir, g->name, &t);
	}
	if (r < 0) {
		snprintf(why, why_len,
		         "guest %s: can't keep its term under %s: %s; look at that folder's space "
		         "and rights",
		         g->name, g->m->state_dir, strerror(-r));
		return r;
	}
	g->arena.config->term = t.current;
	term_random(g->arena.config->instance.id);
	return 0;
}

static int spawn_all(struct guest *g, char *why, size_t why_len)
{
	unsigned workers = atomic_load(&g->arena.config->stage_workers);
	int r = 0;

	if (g->arena.config->nnics || g->side == MC_SIDE_PRIMARY)
		r = child_spawn(&g->child[MC_ROLE_NETGATE]);
	for (unsigned i = 0; r >= 0 && g->side == MC_SIDE_PRIMARY && i < workers; i++)
		r = child_spawn(&g->child[mc_role_stage(i)]);
	if (r >= 0)
		r = child_spawn(&g->child[MC_ROLE_TRANSPORT]);
	if (r >= 0)
		r = child_spawn(
		        &g->child[g->side == MC_SIDE_PRIMARY ? MC_ROLE_CAPTURE : MC_ROLE_RESTORE]);
	if (r < 0)
		snprintf(why, why_len,
		         "guest %s: can't start its processes: %s; journalctl -u mc-supervisor has "
		         "more",
		         g->name, strerror(-r));
	return r < 0 ? r : 0;
}

static int set_config(struct guest *g, const struct request *rq, char *why, size_t why_len)
{
	struct mc_config *c = g->arena.config;
	char text[512];
	int r;

	*c = rq->cfg;
	c->side = g->side;
	snprintf(c->guest, sizeof(c->guest), "%s", g->name);
	if (strlen(g->m->runtime_dir) < sizeof(c->rundir))
		strcpy(c->rundir, g->m->runtime_dir);
	r = mc_config_validate(c, why, why_len);
	if (r < 0 || !c->tls)
		return r;
	/* The transport is given them as it starts: better refused now. */
	r = creds_open(c, g->side, text, sizeof(text));
	if (r < 0) {
		snprintf(why, why_len, "guest %s: %s", g->name, text);
		return r;
	}
	close(r);
	return 0;
}

/* An entry that ended makes room for a new one; the NICs are taken over when none are named. */
static void replace(struct guest *old, struct request *rq)
{
	if (!rq->gate_given && old->arena.config->nnics) {
		rq->cfg.gate = old->arena.config->gate;
		rq->cfg.nnics = old->arena.config->nnics;
		memcpy(rq->cfg.nic, old->arena.config->nic, sizeof(rq->cfg.nic));
	}
	guest_remove(old);
}

/* Which gate each NIC got, and why. */
static void tell_gates(struct guest *g)
{
	const struct mc_config *c = g->arena.config;

	for (uint32_t i = 0; i < c->nnics; i++)
		event_write(g, "gate", 0, "NIC %s: %s", mc_nic_name(&c->nic[i]),
		            c->nic[i].kind == MC_GATE_PLUG
		                    ? "plug, the kernel holds what its tap sends"
		                    : "relay, since its back end is a -netdev dgram, which the "
		                      "kernel's plug can't hold");
	if (!c->nnics && g->side == MC_SIDE_PRIMARY)
		event_write(g, "gate", 0, "none: no output of the guest is held");
}

int guest_start(struct manager *m, const struct request *rq_in, enum mc_side side,
                uint64_t ram_bytes, char *why, size_t why_len)
{
	struct request rq = *rq_in;
	struct guest *g, *old = manager_find(m, rq.cfg.guest);
	int r;

	if (old)
		replace(old, &rq);
	g = guest_alloc(m, rq.cfg.guest);
	if (!g)
		return -ENOMEM;
	g->side = side;
	g->begun_again = rq.again;
	rq.params.side = side;
	rq.params.ram_pages = ram_bytes / MC_PAGE_SIZE;
	r = make_arena(g, &rq.params, why, why_len);
	if (r < 0) {
		free(g);
		return r;
	}
	link_guest(g);
	r = set_config(g, &rq, why, why_len);
	if (r == 0)
		r = set_terms(g, side, why, why_len);
	if (r == 0)
		r = check_room(g, why, why_len);
	if (r == 0)
		r = mc_state_move(g->arena.control, side, MC_ROLE_SUPERVISOR, MC_STATE_NONE,
		                  side == MC_SIDE_PRIMARY ? MC_STATE_SYNCING : MC_STATE_WAITING,
		                  MC_REASON_STARTED);
	if (r == 0)
		r = bus_guest_register(g);
	if (r >= 0)
		r = watch_start(g);
	if (r == 0)
		r = spawn_all(g, why, why_len);
	if (r < 0) {
		guest_remove(g);
		return r;
	}
	(void)mc_fault(MC_FAULT_SUPERVISOR_STARTED);
	bus_guest_added(g, true);
	tell_gates(g);
	event_write(g, "started", 0, "%s%s, term %llu",
	            side == MC_SIDE_PRIMARY ? "protection begins" : "standby waits for a primary",
	            rq.again ? ", by itself" : "",
	            (unsigned long long)g->arena.config->term.number);
	watch_look(g);
	return 0;
}

struct guest *guest_adopt(struct manager *m, const char *name, int arena_fd, const int *bells)
{
	struct guest *g = guest_alloc(m, name);
	int config;

	if (!g)
		return NULL;
	/* What a process hands in counts only if it is what has the guest's name. */
	config = mc_arena_reopen_config(g->shm_name, arena_fd);
	if (config < 0 || mc_arena_attach(&g->arena, arena_fd, config, bells, MC_ROLE_MAX,
	                                  MC_ROLE_SUPERVISOR) < 0) {
		mc_closep(&config);
		free(g);
		return NULL;
	}
	g->side = (enum mc_side)g->arena.params.side;
	link_guest(g);
	if (bus_guest_register(g) < 0 || watch_start(g) < 0) {
		guest_remove(g);
		return NULL;
	}
	watch_adopt(g);
	event_write(g, "adopted", 0, "a new supervisor adopts the running %s in state %s",
	            g->side == MC_SIDE_PRIMARY ? "protection" : "standby",
	            mc_state_name(guest_state(g)));
	bus_guest_added(g, true);
	death_fill_places(g);
	adopt_came(m, name);
	return g;
}

void guest_remove(struct guest *g)
{
	g->dying = true;
	again_stop(g);
	watch_finish_checkpoint(g, -ECANCELED, "the protection ended; mcctl events says why");
	watch_finish_unprotect(g, 0, NULL);
	switchover_finish(g, -ECANCELED, "the protection ended; mcctl events says why");
	rehearse_finish(g, -ECANCELED,
	                "the standby is removed; set it up again with mcctl standby");
	/* The gate last: as long as it lives the guest's network is as the state says. */
	for (int i = MC_ROLE_MAX - 1; i > 0; i--)
		if (i != MC_ROLE_NETGATE)
			(void)child_kill_wait(&g->child[i]);
	atomic_store(&g->arena.control->want_undo, 1);
	if (!child_kill_wait(&g->child[MC_ROLE_NETGATE]))
		gate_clear(g);
	watch_stop(g);
	unlink_guest(g);
	bus_guest_added(g, false);
	g->object = sd_bus_slot_unref(g->object);
	mc_arena_unlink(g->shm_name);
	mc_arena_done(&g->arena);
	free(g);
}
