/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is there already, what the kernel can, and sentences about what can't be had. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "plug.h"

int plug_fail(char *why, size_t len, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, len, fmt, ap);
	va_end(ap);
	return r;
}

/* A step that the kernel refused, as a sentence with the remedy. */
int plug_refused(char *why, size_t len, int r, const char *what, const char *needs)
{
	if (r == -EPERM || r == -EACCES)
		return plug_fail(why, len, r,
		                 "no permission to %s; mc-supervisor needs CAP_NET_ADMIN (and "
		                 "CAP_SYS_ADMIN to enter another network namespace)",
		                 what);
	if (r == -ENOENT || r == -EOPNOTSUPP)
		return plug_fail(
		        why, len, r,
		        "can't %s: this kernel has no %s (modprobe it, or use a -netdev dgram "
		        "with --relay, or --gate none)",
		        what, needs);
	return plug_fail(why, len, r, "can't %s: %s; mcctl doctor shows what this kernel has", what,
	                 strerror(-r));
}

/* --- the tap ----------------------------------------------------------------------------- */

int plug_open_netlink(struct nl *nl, const struct mc_nic *spec, struct mc_metrics_block *m,
                      char *why, size_t len)
{
	int r = netlink_open(nl, spec->netns, m);

	if (r < 0 && spec->netns[0])
		return plug_fail(why, len, r, "can't enter network namespace %s: %s%s", spec->netns,
		                 strerror(-r),
		                 r == -ENOENT ? "; ip netns list shows those that are there" : "");
	return r < 0 ? plug_fail(why, len, r,
	                         "can't talk to the kernel by netlink: %s; mc-supervisor needs "
	                         "CAP_NET_ADMIN",
	                         strerror(-r))
	             : 0;
}

int plug_find_tap(struct nl *nl, const struct mc_nic *spec, int *ret, char *why, size_t len)
{
	const char *in = spec->netns[0] ? " in network namespace " : "";
	struct nl_link_info l;
	int r = nl_link_get(nl, spec->tap, 0, &l);

	if (r == -ENODEV)
		return plug_fail(why, len, r,
		                 "there is no interface %s%s%s; ip link shows those that are "
		                 "there",
		                 spec->tap, in, spec->netns);
	if (r < 0)
		return plug_fail(why, len, r, "can't look at interface %s: %s; try again",
		                 spec->tap, strerror(-r));
	if (strcmp(l.kind, "tun") != 0 || !l.ether)
		return plug_fail(
		        why, len, -EINVAL,
		        "interface %s is not a tap but of kind %s; name the tap that QEMU has "
		        "open (-netdev tap,ifname=)",
		        spec->tap, l.kind[0] ? (l.ether ? l.kind : "tun") : "hardware");
	*ret = l.index;
	return 0;
}

void plug_ifb_name(int tap, char *ret, size_t len)
{
	snprintf(ret, len, "mcg%d", tap);
}

/*
 * An ifb of that name: 1 ours, 0 there is none; -EEXIST with a sentence when it is somebody
 * else's.  One without alias is ours: half made by a netgate that was killed.
 */
int plug_find_ifb(struct nl *nl, const char *name, const char *guest, int *ret, char *why,
                  size_t len)
{
	static const char prefix[] = PLUG_ALIAS;
	struct nl_link_info l;
	int r = nl_link_get(nl, name, 0, &l);

	if (r == -ENODEV)
		return 0;
	if (r < 0)
		return plug_fail(why, len, r, "can't look at interface %s: %s; try again", name,
		                 strerror(-r));
	if (strcmp(l.kind, "ifb") != 0 ||
	    (l.alias[0] && strncmp(l.alias, prefix, strlen(prefix)) != 0))
		return plug_fail(
		        why, len, -EEXIST,
		        "interface %s is in the way: the gate needs that name; rename it (ip "
		        "link set %s name ...)",
		        name, name);
	if (l.alias[0] && strcmp(l.alias + strlen(prefix), guest) != 0)
		return plug_fail(
		        why, len, -EEXIST,
		        "the interface is gated for guest %s already (%s); unprotect that one "
		        "first",
		        l.alias + strlen(prefix), name);
	*ret = l.index;
	return 1;
}

/* Nothing of others may sit where the redirection must. */
int plug_check_hooks(struct nl *nl, const struct mc_nic *spec, int tap, char *why, size_t len)
{
	int r = nl_hooked(nl, tap);

	if (r < 0)
		return plug_fail(why, len, r,
		                 "can't list qdiscs: %s; mc-supervisor needs CAP_NET_ADMIN",
		                 strerror(-r));
	return r ? plug_fail(why, len, -EBUSY,
	                     "interface %s has an ingress qdisc or redirection of others already; "
	                     "remove it first (tc qdisc del dev %s ingress, or clsact)",
	                     spec->tap, spec->tap)
	         : 0;
}

/* --- trying ------------------------------------------------------------------------------ */

/* All that a gate consists of, on an ifb that redirects to itself. */
static int try_parts(struct nl *nl, int ifb, char *why, size_t len)
{
	int r = nl_plug_add(nl, ifb, 1, 65536, false);

	if (r < 0)
		return plug_refused(why, len, r, "make a plug qdisc", "sch_plug");
	r = nl_clsact_add(nl, ifb);
	if (r < 0)
		return plug_refused(why, len, r, "make a clsact qdisc", "sch_ingress");
	r = nl_redirect_add(nl, ifb, HOOK_FROM_GUEST, 1, ifb);
	if (r < 0)
		return plug_refused(why, len, r, "redirect frames", "cls_u32 or act_mirred");
	r = nl_redirect_add(nl, ifb, HOOK_TO_GUEST, 1, 0);
	return r < 0 ? plug_refused(why, len, r, "drop frames", "act_gact") : 0;
}

static int try_kernel(struct nl *nl, char *why, size_t len)
{
	char name[16];
	int ifb = 0, r;

	snprintf(name, sizeof(name), "mcp%d", (int)getpid());
	r = nl_ifb_add(nl, name, PLUG_ALIAS "nobody", &ifb);
	if (r < 0)
		r = plug_refused(why, len, r, "make an ifb interface", "ifb");
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
	int tap, ifb, r = plug_open_netlink(&nl, spec, NULL, why, len);

	if (r < 0)
		return r;
	r = plug_find_tap(&nl, spec, &tap, why, len);
	if (r == 0) {
		plug_ifb_name(tap, name, sizeof(name));
		r = plug_find_ifb(&nl, name, guest, &ifb, why, len);
	}
	if (r == 0)
		r = plug_check_hooks(&nl, spec, tap, why, len);
	if (r >= 0)
		r = try_kernel(&nl, why, len);
	netlink_close(&nl);
	return r < 0 ? r : 0;
}
