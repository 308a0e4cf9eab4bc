/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The one place where results of libnl become negative errno. */
#include "nl.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <netlink/errno.h>

#include "../ipc/util.h"
#include "netns.h"

#define ANSWER_LIMIT_S 1

int nl_errno(int r)
{
	static const int table[NLE_MAX + 1] = {
	        [NLE_INTR] = EINTR,
	        [NLE_BAD_SOCK] = EBADF,
	        [NLE_AGAIN] = ETIMEDOUT, /* only ever from the receive time limit */
	        [NLE_NOMEM] = ENOMEM,
	        [NLE_EXIST] = EEXIST,
	        [NLE_INVAL] = EINVAL,
	        [NLE_RANGE] = ERANGE,
	        [NLE_MSGSIZE] = EMSGSIZE,
	        [NLE_OPNOTSUPP] = EOPNOTSUPP,
	        [NLE_AF_NOSUPPORT] = EAFNOSUPPORT,
	        [NLE_OBJ_NOTFOUND] = ENOENT,
	        [NLE_PROTO_MISMATCH] = EPROTONOSUPPORT,
	        [NLE_BUSY] = EBUSY,
	        [NLE_NOACCESS] = EACCES,
	        [NLE_PERM] = EPERM,
	        [NLE_NODEV] = ENODEV,
	        [NLE_DUMP_INTR] = EAGAIN,
	};

	if (r >= 0)
		return 0;
	r = -r;
	return r <= NLE_MAX && table[r] ? -table[r] : -EIO;
}

void nl_begin(struct nl *nl)
{
	nl->began = mc_now_ns();
}

int nl_end(struct nl *nl, int r)
{
	if (nl->m)
		mc_histogram_add(&nl->m->hist[MC_H_NETLINK], mc_now_ns() - nl->began);
	return nl_errno(r);
}

int netlink_open(struct nl *nl, const char *netns, struct mc_metrics_block *m)
{
	struct timeval limit = {.tv_sec = ANSWER_LIMIT_S};
	int own, r = netns_enter(netns, &own);

	*nl = (struct nl){.m = m};
	if (r < 0)
		return r;
	nl->sk = nl_socket_alloc();
	r = nl->sk ? nl_errno(nl_connect(nl->sk, NETLINK_ROUTE)) : -ENOMEM;
	netns_leave(&own);
	if (r == 0 && setsockopt(nl_socket_get_fd(nl->sk), SOL_SOCKET, SO_RCVTIMEO, &limit,
	                         sizeof(limit)) < 0)
		r = -errno;
	if (r < 0)
		netlink_close(nl);
	return r;
}

void netlink_close(struct nl *nl)
{
	if (nl->sk)
		nl_socket_free(nl->sk);
	nl->sk = NULL;
}
