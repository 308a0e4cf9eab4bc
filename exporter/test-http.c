/* SPDX-License-Identifier: GPL-2.0-or-later */
/* No client holds the exporter for longer than its time, however it goes about it. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "http.h"

#define MS 200

static int ours, theirs;
static atomic_bool enough;

static int begin(void **state)
{
	int fd[2];

	(void)state;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fd) < 0)
		return -1;
	ours = fd[0];
	theirs = fd[1];
	return 0;
}

static int end(void **state)
{
	(void)state;
	mc_closep(&ours);
	mc_closep(&theirs);
	return 0;
}

static int read_within(uint64_t *ms)
{
	uint64_t t = mc_now_ns();
	char buf[256];
	int r = http_read(ours, MS, buf, sizeof(buf));

	*ms = (mc_now_ns() - t) / MC_NS_PER_MS;
	return r;
}

static void test_request(void **state)
{
	static const char text[] = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
	char buf[256];

	(void)state;
	assert_int_equal(write(theirs, text, 10), 10);
	assert_int_equal(write(theirs, text + 10, sizeof(text) - 11), sizeof(text) - 11);
	assert_int_equal(http_read(ours, MS, buf, sizeof(buf)), 0);
	assert_string_equal(buf, text);
}

static void test_bad_requests(void **state)
{
	char junk[300];
	uint64_t ms;

	(void)state;
	memset(junk, 'x', sizeof(junk));
	assert_int_equal(write(theirs, junk, sizeof(junk)), sizeof(junk));
	assert_int_equal(read_within(&ms), -EMSGSIZE);
	mc_closep(&theirs);
	assert_int_equal(read_within(&ms), -EIO);
}

/* A byte now and then; until the exporter has enough of it. */
static void *drip_in(void *arg)
{
	(void)arg;
	while (send(theirs, "x", 1, MSG_NOSIGNAL) == 1)
		usleep(20000);
	return NULL;
}

static void *drip_out(void *arg)
{
	char c;

	(void)arg;
	while (!atomic_load(&enough) && recv(theirs, &c, 1, 0) == 1)
		usleep(20000);
	return NULL;
}

static void test_silent(void **state)
{
	uint64_t ms;

	(void)state;
	assert_int_equal(read_within(&ms), -ETIMEDOUT);
	assert_in_range(ms, MS - 1, 10 * MS);
}

static void test_slow_request(void **state)
{
	pthread_t thread;
	uint64_t ms;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, drip_in, NULL), 0);
	assert_int_equal(read_within(&ms), -ETIMEDOUT);
	assert_true(ms < 10 * MS);
	shutdown(ours, SHUT_RDWR);
	pthread_join(thread, NULL);
}

static void test_reply(void **state)
{
	char buf[512];
	ssize_t n;

	(void)state;
	assert_int_equal(http_reply(ours, MS, "200 OK", "text/plain", "body\n"), 0);
	mc_closep(&ours);
	n = read(theirs, buf, sizeof(buf) - 1);
	assert_true(n > 0);
	buf[n] = '\0';
	assert_non_null(strstr(buf, "HTTP/1.1 200 OK\r\n"));
	assert_non_null(strstr(buf, "Content-Length: 5\r\n"));
	assert_string_equal(buf + n - 9, "\r\n\r\nbody\n");
}

static void test_slow_reader(void **state)
{
	size_t len = 4 << 20;
	char *body = malloc(len + 1);
	uint64_t t = mc_now_ns();
	pthread_t thread;

	(void)state;
	memset(body, 'x', len);
	body[len] = '\0';
	assert_int_equal(pthread_create(&thread, NULL, drip_out, NULL), 0);
	assert_int_equal(http_reply(ours, MS, "200 OK", "text/plain", body), -ETIMEDOUT);
	assert_true(mc_now_ns() - t < 10ULL * MS * MC_NS_PER_MS);
	atomic_store(&enough, true);
	shutdown(ours, SHUT_RDWR);
	pthread_join(thread, NULL);
	free(body);
}

static void test_listen(void **state)
{
	static const char *const bad[] = {"",        "9817",           ":9817",
	                                  "[]:9817", "localhost:9817", "127.0.0.1:http"};
	int fd = http_listen("127.0.0.1:0");

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	for (size_t i = 0; i < MC_ARRAY_SIZE(bad); i++)
		assert_int_equal(http_listen(bad[i]), -EINVAL);
	fd = http_listen("[::1]:0");
	/* A host may be without IPv6, but the address is one. */
	assert_int_not_equal(fd, -EINVAL);
	mc_closep(&fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(test_request, begin, end),
	        cmocka_unit_test_setup_teardown(test_bad_requests, begin, end),
	        cmocka_unit_test_setup_teardown(test_silent, begin, end),
	        cmocka_unit_test_setup_teardown(test_slow_request, begin, end),
	        cmocka_unit_test_setup_teardown(test_reply, begin, end),
	        cmocka_unit_test_setup_teardown(test_slow_reader, begin, end),
	        cmocka_unit_test(test_listen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
