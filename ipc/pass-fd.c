/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pass-fd.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Padding makes room for a second descriptor, which a peer may use whether we like it or not. */
#define ROOM_FDS (CMSG_SPACE(sizeof(int)) - CMSG_LEN(0)) / sizeof(int)

union control {
	char buf[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

ssize_t mc_fd_send(int sock, const void *buf, size_t len, int fd)
{
	struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};
	union control u = {.buf = {0}};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (fd >= 0) {
		struct cmsghdr *c = &u.align;

		m.msg_control = u.buf;
		m.msg_controllen = sizeof(u.buf);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	do
		n = sendmsg(sock, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* What came with a message: one descriptor, none (-1), or too many, which are closed. */
static int take(struct msghdr *m, int *fd)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);
	int all[ROOM_FDS];
	size_t n;

	*fd = -1;
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
		return 0;
	n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	if (n > ROOM_FDS)
		n = ROOM_FDS;
	memcpy(all, CMSG_DATA(c), n * sizeof(int));
	if (n == 1 && !(m->msg_flags & MSG_CTRUNC)) {
		*fd = all[0];
		return 0;
	}
	for (size_t i = 0; i < n; i++)
		close(all[i]);
	return -EBADMSG;
}

ssize_t mc_fd_receive(int sock, void *buf, size_t len, int *fd)
{
	struct iovec iov = {.iov_base = buf, .iov_len = len};
	union control u = {.buf = {0}};
	struct msghdr m = {.msg_iov = &iov,
	                   .msg_iovlen = 1,
	                   .msg_control = u.buf,
	                   .msg_controllen = sizeof(u.buf)};
	ssize_t n;
	int r;

	*fd = -1;
	do
		n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	r = take(&m, fd);
	return r < 0 ? r : n;
}
