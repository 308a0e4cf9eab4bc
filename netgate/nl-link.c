/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <linux/if_link.h>
#include <netlink/route/link.h>
#include <netlink/route/link/inet6.h>

#include "../ipc/util.h"
#include "nl.h"

#define IFB_MODULE "/sys/module/ifb"
#define IFB_TXQLEN 1000 /* packets between the plug and the tap; the default of 32 stalls it */

static void put_text(char *to, size_t len, const char *from)
{
	snprintf(to, len, "%s", from ? from : "");
}

int nl_link_get(struct nl *nl, const char *name, int index, struct nl_link_info *ret)
{
	struct rtnl_link *l = NULL;
	int r;

	nl_begin(nl);
	r = nl_end(nl, rtnl_link_get_kernel(nl->sk, name ? 0 : index, name, &l));
	if (r == -ENOENT)
		r = -ENODEV;
	if (r < 0)
		return r;
	*ret = (struct nl_link_info){.index = rtnl_link_get_ifindex(l),
	                             .flags = rtnl_link_get_flags(l),
	                             .ether = rtnl_link_get_arptype(l) == ARPHRD_ETHER};
	put_text(ret->name, sizeof(ret->name), rtnl_link_get_name(l));
	put_text(ret->kind, sizeof(ret->kind), rtnl_link_get_type(l));
	put_text(ret->alias, sizeof(ret->alias), rtnl_link_get_ifalias(l));
	rtnl_link_put(l);
	return 0;
}

/* A change of the interface with @index. */
static int change(struct nl *nl, int index, struct rtnl_link *to)
{
	struct rtnl_link *l = rtnl_link_alloc();
	int r = -NLE_NOMEM;

	nl_begin(nl);
	if (l && to) {
		rtnl_link_set_ifindex(l, index);
		r = rtnl_link_change(nl->sk, l, to, 0);
	}
	rtnl_link_put(l);
	rtnl_link_put(to);
	return nl_end(nl, r);
}

/* Its purpose, and no IPv6 addresses: what an ifb sends by itself would count as the guest's. */
static int describe(struct nl *nl, int index, const char *alias)
{
	struct rtnl_link *to = rtnl_link_alloc();
	int r;

	if (to)
		(void)rtnl_link_inet6_set_addr_gen_mode(to, IN6_ADDR_GEN_MODE_NONE);
	r = change(nl, index, to);
	if (r < 0 && r != -EAFNOSUPPORT && r != -EOPNOTSUPP && r != -EINVAL)
		return r; /* a kernel without IPv6 is fine */
	to = rtnl_link_alloc();
	if (to)
		rtnl_link_set_ifalias(to, alias);
	return change(nl, index, to);
}

int nl_link_set_up(struct nl *nl, int index, bool up)
{
	struct rtnl_link *to = rtnl_link_alloc();

	if (to && up)
		rtnl_link_set_flags(to, IFF_UP);
	else if (to)
		rtnl_link_unset_flags(to, IFF_UP);
	return change(nl, index, to);
}

int nl_link_del(struct nl *nl, int index)
{
	struct rtnl_link *l = rtnl_link_alloc();
	int r = -NLE_NOMEM;

	nl_begin(nl);
	if (l) {
		rtnl_link_set_ifindex(l, index);
		r = rtnl_link_delete(nl->sk, l);
		rtnl_link_put(l);
	}
	r = nl_end(nl, r);
	return r == -ENOENT ? -ENODEV : r;
}

/*
 * The module, which the first of our ifbs loads, makes two of its own in the namespace of the host.
 * Nobody asked for them.
 */
static void drop_defaults(void)
{
	static const char *const names[] = {"ifb0", "ifb1"};
	struct nl_link_info l;
	struct nl nl;

	if (netlink_open(&nl, "", NULL) < 0)
		return;
	for (size_t i = 0; i < MC_ARRAY_SIZE(names); i++)
		if (nl_link_get(&nl, names[i], 0, &l) == 0 && !strcmp(l.kind, "ifb") &&
		    !(l.flags & IFF_UP))
			(void)nl_link_del(&nl, l.index);
	netlink_close(&nl);
}

int nl_ifb_add(struct nl *nl, const char *name, const char *alias, int *ret)
{
	struct rtnl_link *l = rtnl_link_alloc();
	struct nl_link_info info = {0};
	bool loads = access(IFB_MODULE, F_OK) < 0;
	int r = -NLE_NOMEM;

	nl_begin(nl);
	if (l) {
		rtnl_link_set_name(l, name);
		rtnl_link_set_txqlen(l, IFB_TXQLEN);
		r = rtnl_link_set_type(l, "ifb");
		if (r == 0)
			r = rtnl_link_add(nl->sk, l, NLM_F_CREATE | NLM_F_EXCL);
		rtnl_link_put(l);
	}
	r = nl_end(nl, r);
	if (r == 0 && loads)
		drop_defaults();
	if (r == 0)
		r = nl_link_get(nl, name, 0, &info);
	if (r < 0)
		return r;
	*ret = info.index;
	return describe(nl, info.index, alias);
}
