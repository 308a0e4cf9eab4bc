/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "pass-fd.h"

static int open_fds(void)
{
	int n = 0;

	for (int i = 0; i < 256; i++)
		n += fcntl(i, F_GETFD) >= 0;
	return n;
}

static int make_pair(void **state)
{
	static int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	*state = pair;
	return 0;
}

static int close_pair(void **state)
{
	int *pair = *state;

	close(pair[0]);
	close(pair[1]);
	return 0;
}

static void test_one(void **state)
{
	int *pair = *state, fd, before = open_fds(), pipes[2];
	char buf[8];

	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(mc_fd_send(pair[0], "abc", 3, pipes[0]), 3);
	assert_int_equal(mc_fd_receive(pair[1], buf, sizeof(buf), &fd), 3);
	assert_memory_equal(buf, "abc", 3);
	assert_true(fd >= 0 && fd != pipes[0]);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(write(pipes[1], "x", 1), 1);
	assert_int_equal(read(fd, buf, sizeof(buf)), 1);
	assert_int_equal(buf[0], 'x');
	close(fd);
	close(pipes[0]);
	close(pipes[1]);
	assert_int_equal(open_fds(), before);
}

static void test_none(void **state)
{
	int *pair = *state, fd = 7;
	char byte;

	assert_int_equal(mc_fd_send(pair[0], "a", 1, -1), 1);
	assert_int_equal(mc_fd_receive(pair[1], &byte, 1, &fd), 1);
	assert_int_equal(fd, -1);
}

/* As a peer sends them that doesn't keep to it. */
static void send_many(int sock, int n)
{
	union {
		char buf[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} u = {.buf = {0}};
	struct iovec iov = {.iov_base = "a", .iov_len = 1};
	struct msghdr m = {.msg_iov = &iov,
	                   .msg_iovlen = 1,
	                   .msg_control = u.buf,
	                   .msg_controllen = CMSG_SPACE((size_t)n * sizeof(int))};
	int fds[4] = {sock, sock, sock, sock};

	u.align.cmsg_level = SOL_SOCKET;
	u.align.cmsg_type = SCM_RIGHTS;
	u.align.cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
	memcpy(CMSG_DATA(&u.align), fds, (size_t)n * sizeof(int));
	assert_int_equal(sendmsg(sock, &m, 0), 1);
}

static void test_too_many(void **state)
{
	int *pair = *state, fd, before = open_fds();
	char byte;

	for (int n = 2; n <= 4; n++) {
		send_many(pair[0], n);
		assert_int_equal(mc_fd_receive(pair[1], &byte, 1, &fd), -EBADMSG);
		assert_int_equal(fd, -1);
		assert_int_equal(open_fds(), before);
	}
}

static void test_full_and_gone(void **state)
{
	int *pair = *state, fd, r;
	char big[4096] = {0};

	do
		r = (int)mc_fd_send(pair[0], big, sizeof(big), -1);
	while (r == sizeof(big));
	assert_int_equal(r, -EAGAIN);
	shutdown(pair[0], SHUT_WR);
	while ((r = (int)mc_fd_receive(pair[1], big, sizeof(big), &fd)) > 0)
		;
	assert_int_equal(r, 0);
	shutdown(pair[1], SHUT_RD);
	assert_int_equal(mc_fd_send(pair[0], "a", 1, pair[0]), -EPIPE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(test_one, make_pair, close_pair),
	        cmocka_unit_test_setup_teardown(test_none, make_pair, close_pair),
	        cmocka_unit_test_setup_teardown(test_too_many, make_pair, close_pair),
	        cmocka_unit_test_setup_teardown(test_full_and_gone, make_pair, close_pair),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
