/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What others do to interfaces, qdiscs and filters. */
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

#include "../ipc/util.h"
#include "netns.h"
#include "nl.h"

#define BUFFER_BYTES 65536

/*
 * Only links and what is removed: every command to the plug is reported as well, to those who
 * listen, and would wake us up for nothing.
 */
static int attach_filter(int fd)
{
#define TYPE_IS(t, jump) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htons(t), jump, 0)
	struct sock_filter code[] = {
	        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, offsetof(struct nlmsghdr, nlmsg_type)),
	        TYPE_IS(RTM_NEWLINK, 4),
	        TYPE_IS(RTM_DELLINK, 3),
	        TYPE_IS(RTM_DELQDISC, 2),
	        TYPE_IS(RTM_DELTFILTER, 1),
	        BPF_STMT(BPF_RET | BPF_K, 0),
	        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
	};
	struct sock_fprog prog = {.len = MC_ARRAY_SIZE(code), .filter = code};

	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)) < 0 ? -errno : 0;
}

int nl_event_open(const char *netns)
{
	struct sockaddr_nl a = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK | RTMGRP_TC};
	int own, fd, r = netns_enter(netns, &own);

	if (r < 0)
		return r;
	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
	r = fd < 0 ? -errno : 0;
	netns_leave(&own);
	if (r == 0)
		r = attach_filter(fd);
	if (r == 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		r = -errno;
	if (r < 0 && fd >= 0)
		close(fd);
	return r < 0 ? r : fd;
}

/* False when the message tells nothing that is of use. */
static bool parse(const struct nlmsghdr *h, struct nl_event *e)
{
	const struct ifinfomsg *i = NLMSG_DATA(h);
	const struct tcmsg *t = NLMSG_DATA(h);
	bool link = h->nlmsg_type == RTM_NEWLINK || h->nlmsg_type == RTM_DELLINK;

	*e = (struct nl_event){0};
	if (h->nlmsg_len < NLMSG_LENGTH(link ? sizeof(*i) : sizeof(*t)))
		return false;
	if (link) {
		/* Of family bridge: a port leaves its bridge, the interface stays. */
		if (i->ifi_family != AF_UNSPEC)
			return false;
		e->ifindex = i->ifi_index;
		e->kind = h->nlmsg_type == RTM_DELLINK ? NL_EVENT_LINK_GONE
		          : i->ifi_flags & IFF_UP      ? NL_EVENT_LINK_UP
		                                       : NL_EVENT_LINK_DOWN;
		return true;
	}
	e->ifindex = t->tcm_ifindex;
	if (h->nlmsg_type == RTM_DELQDISC) {
		e->kind = NL_EVENT_QDISC_GONE;
		e->major = TC_H_MAJ(t->tcm_handle) >> 16;
		return true;
	}
	e->kind = NL_EVENT_FILTER_GONE;
	e->prio = TC_H_MAJ(t->tcm_info) >> 16;
	return h->nlmsg_type == RTM_DELTFILTER;
}

int nl_event_read(int fd, void (*fn)(void *ctx, const struct nl_event *e), void *ctx)
{
	_Alignas(struct nlmsghdr) uint8_t buf[BUFFER_BYTES];

	for (;;) {
		ssize_t n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT | MSG_TRUNC);
		struct nl_event e = {.kind = NL_EVENT_LOST};
		const struct nlmsghdr *h = (void *)buf;
		int left = (int)n;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0 && errno != ENOBUFS)
			return -errno;
		if (n < 0 || (size_t)n > sizeof(buf)) {
			fn(ctx, &e);
			continue;
		}
		for (; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left))
			if (parse(h, &e))
				fn(ctx, &e);
	}
}
