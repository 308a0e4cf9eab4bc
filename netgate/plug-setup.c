/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Making the plug, taking one over, removing it. */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"
#include "netns.h"
#include "plug.h"

#define TICK_US     100000
#define DRAIN_TRIES 250                 /* a millisecond each, at the end */
#define FILTERS     (1U << 1 | 1U << 2) /* priorities that our redirection uses in turn */

/* --- making ------------------------------------------------------------------------------ */

/* What the ifb would send by itself (multicast reports) must not mix with the guest's. */
static void no_ipv6(const struct plug *p)
{
	char path[128];
	int own, fd;
	ssize_t n;

	if (netns_enter(p->spec.netns, &own) < 0)
		return;
	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", p->ifb_name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	netns_leave(&own);
	/* A read-only /proc is no obstacle: it has no address at least. */
	n = fd >= 0 ? write(fd, "1", 1) : 0;
	(void)n;
	mc_closep(&fd);
}

static int complete_ifb(struct plug *p, char *why, size_t len)
{
	char alias[128];
	int r = plug_find_ifb(&p->nl, p->ifb_name, p->env.guest, &p->ifb, why, len);

	if (r < 0)
		return r;
	if (r == 0) {
		snprintf(alias, sizeof(alias), PLUG_ALIAS "%s", p->env.guest);
		r = nl_ifb_add(&p->nl, p->ifb_name, alias, &p->ifb);
		if (r < 0)
			return plug_refused(why, len, r, "make an ifb interface", "ifb");
		p->made_ifb = true;
	}
	no_ipv6(p);
	return mc_fault(MC_FAULT_PLUG_IFB);
}

/* Is the plug the recorded one, and has it not lost its packets while nobody looked? */
static bool same_plug(struct plug *p, const struct nl_qdisc_info *q)
{
	const struct mc_gate_record *r = p->r;
	struct nl_link_info l;

	if (strcmp(q->kind, "plug") != 0 || q->major != atomic_load(&r->handle))
		return false;
	if (atomic_load(&r->mode) != GATE_HOLD)
		return true;
	return nl_link_get(&p->nl, NULL, p->ifb, &l) == 0 && l.flags & IFF_UP &&
	       q->sent + q->backlog >= atomic_load(&r->cap);
}

static int complete_qdisc(struct plug *p, bool known, char *why, size_t len)
{
	struct nl_qdisc_info q;
	int r = nl_qdisc_root(&p->nl, p->ifb, &q);

	if (r == 0 && !(known && same_plug(p, &q)))
		r = plug_fresh(p);
	if (r < 0)
		return plug_refused(why, len, r, "make a plug qdisc", "sch_plug");
	return mc_fault(MC_FAULT_PLUG_QDISC);
}

static int complete_redirect(struct plug *p, bool known, char *why, size_t len)
{
	uint32_t old = 0, both = 0;
	int r = nl_hooked(&p->nl, p->tap);

	if (r == 0) {
		r = nl_clsact_add(&p->nl, p->tap);
		if (r < 0)
			return plug_refused(why, len, r, "make a clsact qdisc", "sch_ingress");
		p->made_clsact = true;
	}
	if (r >= 0)
		r = mc_fault(MC_FAULT_PLUG_CLSACT);
	if (r >= 0)
		r = nl_redirects(&p->nl, p->tap, HOOK_FROM_GUEST, &old);
	both = old & FILTERS;
	/* A dead predecessor's may lead to an ifb that is gone: the new one stands before it goes.
	 */
	if (r == 0 && !(known && both && both != FILTERS)) {
		unsigned prio = both & 1U << 1 ? 2 : 1;

		if (both == FILTERS)
			r = nl_redirect_del(&p->nl, p->tap, HOOK_FROM_GUEST, 2);
		if (r == 0)
			r = nl_redirect_add(&p->nl, p->tap, HOOK_FROM_GUEST, prio, p->ifb);
		if (r == 0)
			r = mc_fault(MC_FAULT_PLUG_FILTER);
		if (r == 0 && both)
			r = nl_redirect_del(&p->nl, p->tap, HOOK_FROM_GUEST, 3 - prio);
	}
	return r < 0 ? plug_refused(why, len, r, "redirect what the guest sends",
	                            "cls_u32 or act_mirred")
	             : 0;
}

static int complete_inbound(struct plug *p, char *why, size_t len)
{
	int r = nl_redirect_add(&p->nl, p->tap, HOOK_TO_GUEST, 1, 0);

	return r < 0 && r != -EEXIST ? plug_refused(why, len, r, "drop what comes in", "act_gact")
	                             : 0;
}

int plug_complete(struct plug *p, char *why, size_t len)
{
	enum gate_mode mode = (enum gate_mode)atomic_load(&p->r->mode);
	int r = complete_ifb(p, why, len);
	/* Does the record describe what is there? */
	bool known = r == 0 && !p->made_ifb && (uint64_t)p->ifb == atomic_load(&p->r->ifb) &&
	             (uint64_t)p->tap == atomic_load(&p->r->tap);

	if (r == 0)
		r = complete_qdisc(p, known, why, len);
	if (r == 0 && mode == GATE_PASS)
		r = nl_plug_do(&p->nl, p->ifb, (unsigned)atomic_load(&p->r->handle),
		               PLUG_RELEASE_INDEFINITE, p->limit);
	/* Shut: the ifb stays down and drops all. */
	if (r == 0 && mode != GATE_SHUT)
		r = nl_link_set_up(&p->nl, p->ifb, true);
	if (r == 0)
		r = mc_fault(MC_FAULT_PLUG_UP);
	if (r < 0)
		return why[0] ? r
		              : plug_fail(why, len, r,
		                          "can't set up the plug: %s; mcctl restart tries again, "
		                          "mcctl doctor shows what this kernel has",
		                          strerror(-r));
	r = complete_redirect(p, known, why, len);
	if (r == 0 && mode == GATE_SHUT)
		r = complete_inbound(p, why, len);
	if (r < 0)
		return r;
	p->made_ifb = p->made_clsact = false;
	atomic_store(&p->r->tap, (uint64_t)p->tap);
	atomic_store(&p->r->ifb, (uint64_t)p->ifb);
	return 0;
}

/* --- opening ----------------------------------------------------------------------------- */

static int on_events(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	(void)s;
	(void)fd;
	(void)revents;
	(void)plug_follow_events(userdata);
	return 0;
}

static int on_tick(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct plug *p = userdata;
	struct nl_qdisc_info q;

	(void)usec;
	if (plug_follow_events(p) == 0)
		(void)plug_stats(p, &q);
	(void)sd_event_source_set_time_relative(s, TICK_US);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

static int start_events(struct plug *p)
{
	int r = sd_event_add_io(p->env.event, &p->event_io, p->events, EPOLLIN, on_events, p);

	if (r >= 0)
		r = sd_event_add_time_relative(p->env.event, &p->tick, CLOCK_MONOTONIC, TICK_US,
		                               TICK_US / 10, on_tick, p);
	return r < 0 ? r : 0;
}

/* Whatever this process made is removed again. */
static void undo_open(struct plug *p)
{
	if (p->made_clsact)
		(void)nl_clsact_del(&p->nl, p->tap);
	if (p->made_ifb)
		(void)nl_link_del(&p->nl, p->ifb);
}

static struct gate_nic *plug_free(struct plug *p)
{
	sd_event_source_disable_unref(p->event_io);
	sd_event_source_disable_unref(p->tick);
	mc_closep(&p->events);
	netlink_close(&p->nl);
	free(p);
	return NULL;
}

/* Finds what there is and makes the rest. */
static int set_up(struct plug *p, char *why, size_t len)
{
	int ifb, r = plug_find_tap(&p->nl, &p->spec, &p->tap, why, len);

	if (r < 0)
		return r;
	plug_ifb_name(p->tap, p->ifb_name, sizeof(p->ifb_name));
	r = plug_find_ifb(&p->nl, p->ifb_name, p->env.guest, &ifb, why, len);
	if (r == 0)
		r = plug_check_hooks(&p->nl, &p->spec, p->tap, why, len);
	if (r < 0)
		return r;
	/* The first one in this arena: what is recorded is what will be so. */
	if (!atomic_load(&p->r->ifb))
		atomic_store(&p->r->mode, p->env.mode);
	p->events = nl_event_open(p->spec.netns);
	if (p->events < 0)
		return plug_fail(why, len, p->events,
		                 "can't listen to rtnetlink: %s; free memory on this host, then "
		                 "mcctl restart",
		                 strerror(-p->events));
	r = plug_complete(p, why, len);
	if (r < 0)
		undo_open(p);
	return r;
}

int plug_open(struct gate_nic **ret, const struct mc_nic *spec, const struct gate_env *env,
              char *why, size_t why_len)
{
	struct plug *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	p->nic.ops = &plug_ops;
	p->spec = *spec;
	p->env = *env;
	p->r = env->record;
	p->limit = env->limit;
	p->events = -1;
	r = plug_open_netlink(&p->nl, spec, env->m, why, why_len);
	if (r == 0)
		r = set_up(p, why, why_len);
	if (r == 0)
		r = start_events(p);
	if (r < 0) {
		plug_free(p);
		return r;
	}
	*ret = &p->nic;
	return 0;
}

/* --- closing ----------------------------------------------------------------------------- */

static void wait_drained(struct plug *p)
{
	struct timespec ms = {.tv_nsec = MC_NS_PER_MS};
	struct nl_qdisc_info q;

	for (int i = 0; i < DRAIN_TRIES; i++) {
		if (nl_qdisc_root(&p->nl, p->ifb, &q) < 0 || !q.qlen)
			return;
		(void)nanosleep(&ms, NULL);
	}
}

/* A tap that nobody has open has no carrier. */
static bool tap_in_use(struct plug *p)
{
	struct nl_link_info l;

	return nl_link_get(&p->nl, NULL, p->tap, &l) == 0 && l.flags & IFF_RUNNING;
}

static void remove_all(struct plug *p)
{
	bool passing = atomic_load(&p->r->mode) == GATE_PASS;

	/* Discarding: what is held goes with the ifb, before anything can pass it by. */
	if (!passing)
		(void)nl_link_del(&p->nl, p->ifb);
	(void)nl_clsact_del(&p->nl, p->tap);
	(void)mc_fault(MC_FAULT_PLUG_UNDO);
	if (passing) {
		wait_drained(p);
		(void)nl_link_del(&p->nl, p->ifb);
	}
	atomic_store(&p->r->ifb, 0);
	atomic_store(&p->r->tap, 0);
	atomic_store(&p->r->handle, 0);
}

/* A guest that must not speak has it open. True, with a sentence. */
static bool must_stay(struct plug *p, char *why, size_t len)
{
	if (!p->env.fenced || plug_mode(p) == GATE_PASS || !tap_in_use(p))
		return false;
	(void)plug_fail(
	        why, len, -EBUSY,
	        "%s stays shut, since a QEMU that must not speak has it open; once that has "
	        "ended: ip link del %s; tc qdisc del dev %s clsact",
	        p->spec.tap, p->ifb_name, p->spec.tap);
	return true;
}

struct gate_nic *plug_close(struct gate_nic *n, bool undo)
{
	struct plug *p = to_plug(n);
	char why[256];

	if (!p)
		return NULL;
	if (undo && must_stay(p, why, sizeof(why)))
		plug_report(p, "gate-kept", "%s", why);
	else if (undo)
		remove_all(p);
	return plug_free(p);
}

/* What a dead netgate left, with what is known without its record. */
static int clear(struct plug *p, char *why, size_t len)
{
	struct nl_qdisc_info q;
	int r = plug_find_tap(&p->nl, &p->spec, &p->tap, why, len);

	if (r < 0)
		return r;
	plug_ifb_name(p->tap, p->ifb_name, sizeof(p->ifb_name));
	r = plug_find_ifb(&p->nl, p->ifb_name, p->env.guest, &p->ifb, why, len);
	if (r <= 0)
		return r;
	if (must_stay(p, why, len))
		return -EBUSY;
	if (plug_mode(p) == GATE_PASS && nl_qdisc_root(&p->nl, p->ifb, &q) == 0 &&
	    strcmp(q.kind, "plug") == 0)
		(void)nl_plug_do(&p->nl, p->ifb, q.major, PLUG_RELEASE_INDEFINITE, p->limit);
	remove_all(p);
	return 0;
}

int plug_clear(const struct mc_nic *spec, const char *guest, bool passes, bool fenced, char *why,
               size_t why_len)
{
	struct mc_gate_record record = {.mode = passes ? GATE_PASS : GATE_HOLD};
	struct plug p = {.spec = *spec,
	                 .env = {.guest = guest, .fenced = fenced},
	                 .r = &record,
	                 .limit = UINT32_MAX};
	int r = plug_open_netlink(&p.nl, spec, NULL, why, why_len);

	if (r == 0)
		r = clear(&p, why, why_len);
	netlink_close(&p.nl);
	return r;
}
