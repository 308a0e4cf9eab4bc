/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The plug, and the redirection to it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <linux/gen_stats.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_mirred.h>
#include <netlink/msg.h>
#include <netlink/route/act/gact.h>
#include <netlink/route/act/mirred.h>
#include <netlink/route/action.h>
#include <netlink/route/classifier.h>
#include <netlink/route/cls/u32.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/qdisc/plug.h>
#include <netlink/route/tc.h>

#include "../ipc/util.h"
#include "nl.h"

#define MAC_HEADER (-14) /* where a match is always within the frame, however short it is */

/* --- the plug ---------------------------------------------------------------------------- */

/* A limit must be in every object: one that creates without it makes a plug that drops all. */
static int plug_new(struct rtnl_qdisc **ret, int ifindex, unsigned major, uint64_t limit)
{
	struct rtnl_qdisc *q = rtnl_qdisc_alloc();
	int r;

	if (!q)
		return -NLE_NOMEM;
	rtnl_tc_set_ifindex(TC_CAST(q), ifindex);
	rtnl_tc_set_parent(TC_CAST(q), TC_H_ROOT);
	rtnl_tc_set_handle(TC_CAST(q), TC_HANDLE(major, 0));
	r = rtnl_tc_set_kind(TC_CAST(q), "plug");
	if (r == 0)
		r = rtnl_qdisc_plug_set_limit(q, limit < INT32_MAX ? (int)limit : INT32_MAX);
	if (r < 0)
		rtnl_qdisc_put(q);
	else
		*ret = q;
	return r;
}

int nl_plug_add(struct nl *nl, int ifindex, unsigned major, uint64_t limit, bool swap)
{
	struct rtnl_qdisc *q;
	int r;

	nl_begin(nl);
	r = plug_new(&q, ifindex, major, limit);
	if (r < 0)
		return nl_end(nl, r);
	r = rtnl_qdisc_add(nl->sk, q, NLM_F_CREATE | (swap ? NLM_F_REPLACE : NLM_F_EXCL));
	rtnl_qdisc_put(q);
	return nl_end(nl, r);
}

int nl_plug_do(struct nl *nl, int ifindex, unsigned major, enum plug_op op, uint64_t limit)
{
	struct rtnl_qdisc *q;
	int r;

	nl_begin(nl);
	r = plug_new(&q, ifindex, major, limit);
	if (r < 0)
		return nl_end(nl, r);
	if (op == PLUG_BUFFER)
		r = rtnl_qdisc_plug_buffer(q);
	else if (op == PLUG_RELEASE_ONE)
		r = rtnl_qdisc_plug_release_one(q);
	else if (op == PLUG_RELEASE_INDEFINITE)
		r = rtnl_qdisc_plug_release_indefinite(q);
	/* No flags: a command never makes or replaces anything. */
	if (r == 0)
		r = rtnl_qdisc_add(nl->sk, q, 0);
	rtnl_qdisc_put(q);
	return nl_end(nl, r);
}

/* --- statistics -------------------------------------------------------------------------- */

static void parse_stats(struct nlattr *stats, struct nl_qdisc_info *ret)
{
	struct nlattr *tb[TCA_STATS_MAX + 1];
	struct gnet_stats_basic basic = {0};
	struct gnet_stats_queue queue = {0};

	if (nla_parse_nested(tb, TCA_STATS_MAX, stats, NULL) < 0)
		return;
	if (tb[TCA_STATS_BASIC])
		nla_memcpy(&basic, tb[TCA_STATS_BASIC], sizeof(basic));
	if (tb[TCA_STATS_QUEUE])
		nla_memcpy(&queue, tb[TCA_STATS_QUEUE], sizeof(queue));
	ret->sent = basic.bytes;
	ret->backlog = queue.backlog;
	ret->qlen = queue.qlen;
	ret->drops = queue.drops;
}

static int on_qdisc(struct nl_msg *msg, void *arg)
{
	struct nlmsghdr *h = nlmsg_hdr(msg);
	struct nl_qdisc_info *ret = arg;
	struct nlattr *tb[TCA_MAX + 1];
	struct tcmsg *t = nlmsg_data(h);

	if (h->nlmsg_type != RTM_NEWQDISC || nlmsg_parse(h, sizeof(*t), tb, TCA_MAX, NULL) < 0 ||
	    !t->tcm_handle)
		return NL_OK;
	ret->major = TC_H_MAJ(t->tcm_handle) >> 16;
	if (tb[TCA_KIND])
		snprintf(ret->kind, sizeof(ret->kind), "%.*s", nla_len(tb[TCA_KIND]),
		         (const char *)nla_data(tb[TCA_KIND]));
	if (tb[TCA_STATS2])
		parse_stats(tb[TCA_STATS2], ret);
	return NL_OK;
}

static int on_ack(struct nl_msg *msg, void *arg)
{
	(void)msg;
	*(bool *)arg = true;
	return NL_STOP;
}

/* Sends @msg (consumed) and hands what comes to @fn until the acknowledgement. */
static int ask(struct nl *nl, struct nl_msg *msg, nl_recvmsg_msg_cb_t fn, void *arg)
{
	struct nl_cb *cb = nl_cb_alloc(NL_CB_DEFAULT);
	bool done = false;
	int r = cb ? nl_send_auto(nl->sk, msg) : -NLE_NOMEM;

	nlmsg_free(msg);
	if (cb) {
		nl_cb_set(cb, NL_CB_VALID, NL_CB_CUSTOM, fn, arg);
		nl_cb_set(cb, NL_CB_ACK, NL_CB_CUSTOM, on_ack, &done);
	}
	while (r >= 0 && !done)
		r = nl_recvmsgs(nl->sk, cb);
	nl_cb_put(cb);
	return r < 0 ? r : 0;
}

int nl_qdisc_root(struct nl *nl, int ifindex, struct nl_qdisc_info *ret)
{
	struct tcmsg t = {.tcm_family = AF_UNSPEC, .tcm_ifindex = ifindex, .tcm_parent = TC_H_ROOT};
	/* Older kernels answer by the notification, which only ECHO brings to us. */
	struct nl_msg *msg = nlmsg_alloc_simple(RTM_GETQDISC, NLM_F_ECHO);
	int r;

	*ret = (struct nl_qdisc_info){0};
	nl_begin(nl);
	if (!msg || nlmsg_append(msg, &t, sizeof(t), NLMSG_ALIGNTO) < 0) {
		nlmsg_free(msg);
		return nl_end(nl, -NLE_NOMEM);
	}
	r = nl_end(nl, ask(nl, msg, on_qdisc, ret));
	return r == -ENOENT ? 0 : r;
}

/* --- redirection ------------------------------------------------------------------------- */

int nl_hooked(struct nl *nl, int ifindex)
{
	struct nl_cache *all = NULL;
	struct nl_object *o;
	bool found = false;
	int r;

	nl_begin(nl);
	r = nl_end(nl, rtnl_qdisc_alloc_cache(nl->sk, &all));
	if (r < 0)
		return r;
	for (o = nl_cache_get_first(all); o; o = nl_cache_get_next(o)) {
		struct rtnl_tc *tc = TC_CAST(o);

		/* ingress and clsact share parent and handle */
		found |= rtnl_tc_get_ifindex(tc) == ifindex &&
		         rtnl_tc_get_parent(tc) == TC_H_INGRESS;
	}
	nl_cache_free(all);
	return found;
}

static struct rtnl_qdisc *clsact(int ifindex)
{
	struct rtnl_qdisc *q = rtnl_qdisc_alloc();

	if (!q)
		return NULL;
	rtnl_tc_set_ifindex(TC_CAST(q), ifindex);
	rtnl_tc_set_parent(TC_CAST(q), TC_H_CLSACT);
	rtnl_tc_set_handle(TC_CAST(q), TC_HANDLE(0xffff, 0));
	if (rtnl_tc_set_kind(TC_CAST(q), "clsact") < 0) {
		rtnl_qdisc_put(q);
		return NULL;
	}
	return q;
}

int nl_clsact_add(struct nl *nl, int ifindex)
{
	struct rtnl_qdisc *q = clsact(ifindex);
	int r;

	nl_begin(nl);
	r = q ? rtnl_qdisc_add(nl->sk, q, NLM_F_CREATE | NLM_F_EXCL) : -NLE_NOMEM;
	rtnl_qdisc_put(q);
	return nl_end(nl, r);
}

int nl_clsact_del(struct nl *nl, int ifindex)
{
	struct rtnl_qdisc *q = clsact(ifindex);
	int r;

	nl_begin(nl);
	r = q ? rtnl_qdisc_delete(nl->sk, q) : -NLE_NOMEM;
	rtnl_qdisc_put(q);
	return nl_end(nl, r);
}

static uint32_t hook_parent(enum hook hook)
{
	return TC_HANDLE(0xffff, hook == HOOK_FROM_GUEST ? TC_H_MIN_INGRESS : TC_H_MIN_EGRESS);
}

static int set_redirect(struct rtnl_act *a, int to)
{
	int r = rtnl_tc_set_kind(TC_CAST(a), "mirred");

	if (r == 0)
		r = rtnl_mirred_set_action(a, TCA_EGRESS_REDIR);
	if (r == 0)
		r = rtnl_mirred_set_policy(a, TC_ACT_STOLEN);
	return r < 0 ? r : rtnl_mirred_set_ifindex(a, (uint32_t)to);
}

static int set_drop(struct rtnl_act *a)
{
	int r = rtnl_tc_set_kind(TC_CAST(a), "gact");

	return r < 0 ? r : rtnl_gact_set_action(a, TC_ACT_SHOT);
}

static int filter_new(struct rtnl_cls **ret, int ifindex, enum hook hook, unsigned prio)
{
	struct rtnl_cls *c = rtnl_cls_alloc();
	int r;

	if (!c)
		return -NLE_NOMEM;
	rtnl_tc_set_ifindex(TC_CAST(c), ifindex);
	rtnl_tc_set_parent(TC_CAST(c), hook_parent(hook));
	rtnl_cls_set_prio(c, (uint16_t)prio);
	rtnl_cls_set_protocol(c, ETH_P_ALL);
	r = rtnl_tc_set_kind(TC_CAST(c), "u32");
	if (r < 0)
		rtnl_cls_put(c);
	else
		*ret = c;
	return r;
}

int nl_redirect_add(struct nl *nl, int ifindex, enum hook hook, unsigned prio, int to)
{
	struct rtnl_act *a = rtnl_act_alloc();
	struct rtnl_cls *c = NULL;
	int r = a ? (to ? set_redirect(a, to) : set_drop(a)) : -NLE_NOMEM;

	nl_begin(nl);
	if (r == 0)
		r = filter_new(&c, ifindex, hook, prio);
	if (r == 0)
		r = rtnl_u32_add_key_uint32(c, 0, 0, MAC_HEADER, 0);
	if (r == 0)
		r = rtnl_u32_add_action(c, a);
	if (r == 0)
		r = rtnl_u32_set_cls_terminal(c);
	if (r == 0)
		r = rtnl_cls_add(nl->sk, c, NLM_F_CREATE | NLM_F_EXCL);
	rtnl_cls_put(c);
	if (a)
		rtnl_act_put(a);
	return nl_end(nl, r);
}

int nl_redirect_del(struct nl *nl, int ifindex, enum hook hook, unsigned prio)
{
	struct rtnl_cls *c = NULL;
	int r;

	nl_begin(nl);
	r = filter_new(&c, ifindex, hook, prio);
	if (r == 0)
		r = rtnl_cls_delete(nl->sk, c, 0);
	rtnl_cls_put(c);
	return nl_end(nl, r);
}

int nl_redirects(struct nl *nl, int ifindex, enum hook hook, uint32_t *ret)
{
	struct nl_cache *all = NULL;
	struct nl_object *o;
	int r;

	*ret = 0;
	nl_begin(nl);
	r = nl_end(nl, rtnl_cls_alloc_cache(nl->sk, ifindex, hook_parent(hook), &all));
	if (r < 0)
		return r;
	for (o = nl_cache_get_first(all); o; o = nl_cache_get_next(o)) {
		uint16_t prio = rtnl_cls_get_prio((struct rtnl_cls *)o);

		*ret |= 1U << (prio < 32 ? prio : 0);
	}
	nl_cache_free(all);
	return 0;
}
