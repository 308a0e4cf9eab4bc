/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel's network configuration by rtnetlink (libnl-3, libnl-route-3), in one network
 * namespace.  Every result is turned into 0 or a negative errno here; each call waits for the
 * kernel's answer (synchronous there, limited to a second) and its time goes to the histogram
 * "netlink".
 *
 * The codes that callers tell apart: -ENODEV no such interface, -ENOENT no such qdisc or
 * filter, or the kernel doesn't know the kind; -EEXIST; -EPERM no CAP_NET_ADMIN; -EINVAL
 * something else is in that place; -EOPNOTSUPP the kernel has no such thing.
 */
#ifndef MC_NETGATE_NL_H
#define MC_NETGATE_NL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <netlink/netlink.h>

#include "../ipc/metrics.h"

/* A socket for requests. */
struct nl {
	struct nl_sock *sk;
	struct mc_metrics_block *m; /* may be NULL */
	uint64_t began;             /* ns, of the request under way */
};

/* Enters @netns (netns.h) for as long as the socket is made. 0 or negative errno. */
int netlink_open(struct nl *nl, const char *netns, struct mc_metrics_block *m);
void netlink_close(struct nl *nl);

/* A libnl result as 0 or negative errno. */
int nl_errno(int r);
/* Notes the beginning of a request, and its end: returns nl_errno(r). */
void nl_begin(struct nl *nl);
int nl_end(struct nl *nl, int r);

/* --- links, nl-link.c -------------------------------------------------------------------- */

struct nl_link_info {
	int index;
	unsigned flags; /* IFF_* */
	bool ether;     /* carries Ethernet frames */
	char name[16];
	char kind[16]; /* "tun" (taps too), "ifb", "veth", ...; "" for hardware */
	char alias[128];
};

/* Looks an interface up by @name, or by @index when that is NULL. -ENODEV. */
int nl_link_get(struct nl *nl, const char *name, int index, struct nl_link_info *ret);
/* Makes an ifb that is down, without IPv6 of its own; *ret is its index. */
int nl_ifb_add(struct nl *nl, const char *name, const char *alias, int *ret);
int nl_link_set_up(struct nl *nl, int index, bool up);
int nl_link_del(struct nl *nl, int index);

/* --- the plug, nl-tc.c ------------------------------------------------------------------- */

enum plug_op {
	PLUG_BUFFER,
	PLUG_RELEASE_ONE,
	PLUG_RELEASE_INDEFINITE,
	PLUG_LIMIT,
};

/* The root qdisc of an interface. */
struct nl_qdisc_info {
	char kind[16]; /* "" when there is none, or a default one without handle */
	uint32_t major;
	uint64_t sent;    /* bytes that left it so far */
	uint64_t backlog; /* bytes in it */
	uint64_t qlen;    /* packets in it */
	uint64_t drops;   /* packets refused for the limit */
};

/*
 * A new plug at the root of @ifindex: holds.  @limit in bytes.  With @swap it takes the place
 * of one with another major number, whose packets are dropped, without a moment in which
 * anything passes; without, -EEXIST when a plug is there.
 */
int nl_plug_add(struct nl *nl, int ifindex, unsigned major, uint64_t limit, bool swap);
/* A command to the plug with handle @major: only that, nothing is ever created. */
int nl_plug_do(struct nl *nl, int ifindex, unsigned major, enum plug_op op, uint64_t limit);
int nl_qdisc_root(struct nl *nl, int ifindex, struct nl_qdisc_info *ret);

/* --- redirection ------------------------------------------------------------------------- */

enum hook {
	HOOK_FROM_GUEST, /* ingress of the tap */
	HOOK_TO_GUEST,   /* its egress */
};

/* What sits on an interface's ingress: 0 nothing, 1 an ingress or clsact qdisc. */
int nl_hooked(struct nl *nl, int ifindex);
int nl_clsact_add(struct nl *nl, int ifindex);
int nl_clsact_del(struct nl *nl, int ifindex);
/*
 * Every frame at @hook goes to @to (an interface index), or is dropped when @to is 0.  All
 * protocols, and frames without payload: the match looks at no byte.  -EEXIST at that @prio.
 */
int nl_redirect_add(struct nl *nl, int ifindex, enum hook hook, unsigned prio, int to);
int nl_redirect_del(struct nl *nl, int ifindex, enum hook hook, unsigned prio);
/* Bits of priorities (1..31) at which filters sit at @hook. */
int nl_redirects(struct nl *nl, int ifindex, enum hook hook, uint32_t *ret);

/* --- events, nl-event.c ------------------------------------------------------------------ */

enum nl_event_kind {
	NL_EVENT_LINK_UP,   /* an interface is, or was set, up */
	NL_EVENT_LINK_DOWN, /* ... down */
	NL_EVENT_LINK_GONE,
	NL_EVENT_QDISC_GONE,  /* major says which */
	NL_EVENT_FILTER_GONE, /* prio says which */
	NL_EVENT_LOST,        /* events were lost: anything may have happened */
};

struct nl_event {
	enum nl_event_kind kind;
	int ifindex;
	uint32_t major; /* QDISC_GONE */
	uint32_t prio;  /* FILTER_GONE */
};

/* A non-blocking socket on which the kernel reports links and what is removed; or -errno. */
int nl_event_open(const char *netns);
/* Calls @fn for all events that are there. 0 or negative errno. */
int nl_event_read(int fd, void (*fn)(void *ctx, const struct nl_event *e), void *ctx);

#endif
