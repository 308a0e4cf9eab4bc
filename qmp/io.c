/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "../ipc/pass-fd.h"
#include "../ipc/util.h"
#include "io.h"

static int wait_any(struct pollfd *p, nfds_t n, uint64_t deadline_ns)
{
	uint64_t now;
	int r;

	for (;;) {
		struct timespec ts;

		now = mc_now_ns();
		now = now < deadline_ns ? deadline_ns - now : 0;
		ts.tv_sec = (time_t)(now / MC_NS_PER_S);
		ts.tv_nsec = (long)(now % MC_NS_PER_S);
		r = ppoll(p, n, &ts, NULL);
		if (r > 0)
			return 0;
		if (r == 0)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

int qmp_io_wait(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd p = {.fd = fd, .events = events};

	return wait_any(&p, 1, deadline_ns);
}

int qmp_io_wait_two(int fd, int other, uint64_t deadline_ns)
{
	struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = other, .events = POLLIN}};
	int r = wait_any(p, 2, deadline_ns);

	return r < 0 ? r : p[1].revents != 0;
}

int qmp_io_send(int fd, const char *text, size_t len, int pass, uint64_t deadline_ns, bool *partly)
{
	ssize_t n;
	int r;

	*partly = false;
	while (len) {
		n = mc_fd_send(fd, text, len, pass);
		if (n == -EAGAIN) {
			r = qmp_io_wait(fd, POLLOUT, deadline_ns);
			if (r < 0)
				return r;
			continue;
		}
		if (n < 0)
			return (int)n;
		text += n;
		len -= (size_t)n;
		pass = -1;
		*partly = true;
	}
	return 0;
}

int qmp_io_connect(const char *path, int *ret_fd, pid_t *pid)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	mc_autoclose int fd = -1;
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (strlen(path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	strcpy(a.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* EAGAIN: the queue of the listening socket is full */
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		return errno == EAGAIN ? -EBUSY : -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	*pid = cred.pid;
	*ret_fd = mc_take_fd(&fd);
	return 0;
}
