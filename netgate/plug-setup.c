/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Making the plug, taking one over, removing it, trying whether it can be made. */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdarg.h>
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

static int fail(char *why, size_t len, int r, const char *fmt, ...)
        __attribute__((format(printf, 4, 5)));

static int fail(char *why, size_t len, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, len, fmt, ap);
	va_end(ap);
	return r;
}

/* A step that the kernel refused, as a sentence with the remedy. */
static int refused(char *why, size_t len, int r, const char *what, const char *needs)
{
	if (r == -EPERM || r == -EACCES)
		return fail(why, len, r,
		            "no permission to %s; mc-supervisor needs CAP_NET_ADMIN (and "
		            "CAP_SYS_ADMIN to enter another network namespace)",
		            what);
	if (r == -ENOENT || r == -EOPNOTSUPP)
		return fail(why, len, r,
		            "can't %s: this kernel has no %s (modprobe it, or use a -netdev dgram "
		            "with --relay, or --gate none)",
		            what, needs);
	return fail(why, len, r, "can't %s: %s", what, strerror(-r));
}

/* --- the tap ----------------------------------------------------------------------------- */

static int open_netlink(struct nl *nl, const struct mc_nic *spec, struct mc_metrics_block *m,
                        char *why, size_t len)
{
	int r = netlink_open(nl, spec->netns, m);

	if (r < 0 && spec->netns[0])
		return fail(why, len, r, "can't enter network namespace %s: %s%s", spec->netns,
		            strerror(-r),
		            r == -ENOENT ? "; ip netns list shows those that are there" : "");
	return r < 0 ? fail(why, len, r, "can't talk to the kernel by netlink: %s", strerror(-r))
	             : 0;
}

static int find_tap(struct nl *nl, const struct mc_nic *spec, int *ret, char *why, size_t len)
{
	const char *in = spec->netns[0] ? " in network namespace " : "";
	struct nl_link_info l;
	int r = nl_link_get(nl, spec->tap, 0, &l);

	if (r == -ENODEV)
		return fail(why, len, r,
		            "there is no interface %s%s%s; ip link shows those that are "
		            "there",
		            spec->tap, in, spec->netns);
	if (r < 0)
		return fail(why, len, r, "interface %s: %s", spec->tap, strerror(-r));
	if (strcmp(l.kind, "tun") != 0 || !l.ether)
		return fail(why, len, -EINVAL,
		            "interface %s is not a tap but of kind %s; name the tap that QEMU has "
		            "open (-netdev tap,ifname=)",
		            spec->tap, l.kind[0] ? (l.ether ? l.kind : "tun") : "hardware");
	*ret = l.index;
	return 0;
}

static void ifb_name_of(int tap, char *ret, size_t len)
{
	snprintf(ret, len, "mcg%d", tap);
}

/*
 * An ifb of that name: 1 ours, 0 there is none; -EEXIST with a sentence when it is somebody
 * else's.  One without alias is ours: half made by a netgate that was killed.
 */
static int find_ifb(struct nl *nl, const char *name, const char *guest, int *ret, char *why,
                    size_t len)
{
	static const char prefix[] = PLUG_ALIAS;
	struct nl_link_info l;
	int r = nl_link_get(nl, name, 0, &l);

	if (r == -ENODEV)
		return 0;
	if (r < 0)
		return fail(why, len, r, "interface %s: %s", name, strerror(-r));
	if (strcmp(l.kind, "ifb") != 0 ||
	    (l.alias[0] && strncmp(l.alias, prefix, strlen(prefix)) != 0))
		return fail(why, len, -EEXIST,
		            "interface %s is in the way: the gate needs that name; rename it (ip "
		            "link set %s name ...)",
		            name, name);
	if (l.alias[0] && strcmp(l.alias + strlen(prefix), guest) != 0)
		return fail(why, len, -EEXIST,
		            "the interface is gated for guest %s already (%s); unprotect that one "
		            "first",
		            l.alias + strlen(prefix), name);
	*ret = l.index;
	return 1;
}

/* Nothing of others may sit where the redirection must. */
static int check_hooks(struct nl *nl, const struct mc_nic *spec, int tap, char *why, size_t len)
{
	int r = nl_hooked(nl, tap);

	if (r < 0)
		return fail(why, len, r, "can't list qdiscs: %s", strerror(-r));
	return r ? fail(why, len, -EBUSY,
	                "interface %s has an ingress qdisc or redirection of others already; "
	                "remove it first (tc qdisc del dev %s ingress, or clsact)",
	                spec->tap, spec->tap)
	         : 0;
}

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
	int r = find_ifb(&p->nl, p->ifb_name, p->env.guest, &p->ifb, why, len);

	if (r < 0)
		return r;
	if (r == 0) {
		snprintf(alias, sizeof(alias), PLUG_ALIAS "%s", p->env.guest);
		r = nl_ifb_add(&p->nl, p->ifb_name, alias, &p->ifb);
		if (r < 0)
			return refused(why, len, r, "make an ifb interface", "ifb");
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
		return refused(why, len, r, "make a plug qdisc", "sch_plug");
	return mc_fault(MC_FAULT_PLUG_QDISC);
}

static int complete_redirect(struct plug *p, bool known, char *why, size_t len)
{
	uint32_t old = 0, both = 0;
	int r = nl_hooked(&p->nl, p->tap);

	if (r == 0) {
		r = nl_clsact_add(&p->nl, p->tap);
		if (r < 0)
			return refused(why, len, r, "make a clsact qdisc", "sch_ingress");
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
	return r < 0 ? refused(why, len, r, "redirect what the guest sends",
	                       "cls_u32 or act_mirred")
	             : 0;
}

static int complete_inbound(struct plug *p, char *why, size_t len)
{
	int r = nl_redirect_add(&p->nl, p->tap, HOOK_TO_GUEST, 1, 0);

	return r < 0 && r != -EEXIST ? refused(why, len, r, "drop what comes in", "act_gact") : 0;
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
		return why[0] ? r : fail(why, len, r, "can't set up the plug: %s", strerror(-r));
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
	int ifb, r = find_tap(&p->nl, &p->spec, &p->tap, why, len);

	if (r < 0)
		return r;
	ifb_name_of(p->tap, p->ifb_name, sizeof(p->ifb_name));
	r = find_ifb(&p->nl, p->ifb_name, p->env.guest, &ifb, why, len);
	if (r == 0)
		r = check_hooks(&p->nl, &p->spec, p->tap, why, len);
	if (r < 0)
		return r;
	/* The first one in this arena: what is recorded is what will be so. */
	if (!atomic_load(&p->r->ifb))
		atomic_store(&p->r->mode, p->env.mode);
	p->events = nl_event_open(p->spec.netns);
	if (p->events < 0)
		return fail(why, len, p->events, "can't listen to rtnetlink: %s",
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
	r = open_netlink(&p->nl, spec, env->m, why, why_len);
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

struct gate_nic *plug_close(struct gate_nic *n, bool undo)
{
	struct plug *p = to_plug(n);

	if (!p)
		return NULL;
	if (undo && p->env.fenced && plug_mode(p) != GATE_PASS && tap_in_use(p))
		plug_report(
		        p, "gate-kept",
		        "%s stays shut, since a QEMU that must not speak has it open; once that "
		        "has ended: ip link del %s; tc qdisc del dev %s clsact",
		        p->spec.tap, p->ifb_name, p->spec.tap);
	else if (undo)
		remove_all(p);
	return plug_free(p);
}

/* --- trying ------------------------------------------------------------------------------ */

/* All that a gate consists of, on an ifb that redirects to itself. */
static int try_parts(struct nl *nl, int ifb, char *why, size_t len)
{
	int r = nl_plug_add(nl, ifb, 1, 65536, false);

	if (r < 0)
		return refused(why, len, r, "make a plug qdisc", "sch_plug");
	r = nl_clsact_add(nl, ifb);
	if (r < 0)
		return refused(why, len, r, "make a clsact qdisc", "sch_ingress");
	r = nl_redirect_add(nl, ifb, HOOK_FROM_GUEST, 1, ifb);
	if (r < 0)
		return refused(why, len, r, "redirect frames", "cls_u32 or act_mirred");
	r = nl_redirect_add(nl, ifb, HOOK_TO_GUEST, 1, 0);
	return r < 0 ? refused(why, len, r, "drop frames", "act_gact") : 0;
}

static int try_kernel(struct nl *nl, char *why, size_t len)
{
	char name[16];
	int ifb = 0, r;

	snprintf(name, sizeof(name), "mcp%d", (int)getpid());
	r = nl_ifb_add(nl, name, PLUG_ALIAS "nobody", &ifb);
	if (r < 0)
		r = refused(why, len, r, "make an ifb interface", "ifb");
	else
		r = try_parts(nl, ifb, why, len);
	if (ifb)
		(void)nl_link_del(nl, ifb);
	return r;
}

int plug_probe(const struct mc_nic *spec, const char *guest, char *why, size_t len)
{
	char name[16];
	struct nl nl;
	int tap, ifb, r = open_netlink(&nl, spec, NULL, why, len);

	if (r < 0)
		return r;
	r = find_tap(&nl, spec, &tap, why, len);
	if (r == 0) {
		ifb_name_of(tap, name, sizeof(name));
		r = find_ifb(&nl, name, guest, &ifb, why, len);
	}
	if (r == 0)
		r = check_hooks(&nl, spec, tap, why, len);
	if (r >= 0)
		r = try_kernel(&nl, why, len);
	netlink_close(&nl);
	return r < 0 ? r : 0;
}
