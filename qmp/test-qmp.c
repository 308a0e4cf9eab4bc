/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The QMP client against a peer that follows a script. */
#include "test-peer.h"

#ifndef __SANITIZE_ADDRESS__
/* Counts what is allocated, for the calls that must not. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
static unsigned allocations;

void *malloc(size_t n)
{
	allocations++;
	return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	allocations++;
	return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	allocations++;
	return __libc_realloc(p, n);
}
#else
static const unsigned allocations;
#endif

/* --- connecting ----------------------------------------------------------------------- */

static void test_connect_nobody(void **state)
{
	char dir[] = "/tmp/test-qmp-XXXXXX", path[64], longer[200];
	struct qmp *q = NULL;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/qmp", dir);
	assert_int_equal(qmp_connect(&q, path, LONG), -ENOENT);
	close(listen_at(path));
	assert_int_equal(qmp_connect(&q, path, LONG), -ECONNREFUSED);
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	assert_int_equal(qmp_connect(&q, longer, LONG), -ENAMETOOLONG);
	assert_null(q);
	unlink(path);
	rmdir(dir);
}

static void script_silent(int fd)
{
	hear_eof(fd);
}

static void test_connect_in_use(void **state)
{
	struct qmp *q = NULL;
	struct peer p;
	uint64_t t = mc_now_ns();

	(void)state;
	peer_start(&p, script_silent);
	assert_int_equal(qmp_connect(&q, p.path, 100), -EBUSY);
	assert_in_range(mc_now_ns() - t, 100 * MC_NS_PER_MS, 3000 * MC_NS_PER_MS);
	assert_null(q);
	peer_end(&p);
}

static void script_ssh(int fd)
{
	say(fd, "SSH-2.0-OpenSSH_9.2\r\n");
	hear_eof(fd);
}

static void script_hang_up(int fd)
{
	close(fd);
}

static void script_answer_first(int fd)
{
	say(fd, "{\"return\": {}}\r\n");
	hear_eof(fd);
}

static void script_no_capabilities(int fd)
{
	say(fd, GREETING);
	negotiate(fd, "\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}");
	hear_eof(fd);
}

static void test_connect_not_qmp(void **state)
{
	static const script_fn bad[] = {script_ssh, script_hang_up, script_answer_first,
	                                script_no_capabilities};
	struct qmp *q = NULL;
	struct peer p;

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(bad); i++) {
		peer_start(&p, bad[i]);
		assert_int_equal(qmp_connect(&q, p.path, LONG), -EBADMSG);
		assert_null(q);
		peer_end(&p);
	}
}

/* QEMU finishes what a dead client asked and tells whoever came after it. */
static void script_answers_of_another(int fd)
{
	say(fd, GREETING);
	say(fd, "{\"return\": {\"of\": 1}}\r\n{\"return\": 1, \"id\": \"mc-1-1\"}\r\n");
	say(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"theirs\"}}\r\n");
	negotiate(fd, "\"return\": {}");
	hear(fd, "ours");
	say(fd, "{\"return\": 7}\r\n");
	hear_eof(fd);
}

static void test_answers_of_another(void **state)
{
	struct events e;
	struct peer p;
	struct qmp *q = connected(&p, script_answers_of_another, &e);
	json_t *v = NULL;

	(void)state;
	assert_int_equal(qmp_command(q, "ours", NULL, LONG, &v), 0);
	assert_int_equal(json_integer_value(v), 7);
	json_decref(v);
	qmp_free(q);
	peer_end(&p);
}

/* --- commands ------------------------------------------------------------------------- */

static void script_events_between(int fd)
{
	welcome(fd);
	hear(fd, "query-status");
	say(fd, "{" STAMP ", \"event\": \"RESUME\"}\r\n");
	say(fd, "{" STAMP ", \"event\": \"STOP\", \"data\": {\"reason\": \"a\"}}\r\n{\"ret");
	say(fd, "urn\": {\"status\": \"paused\"}}\r\n{\"event\": \"LATE\", " STAMP "}\r\n");
	hear(fd, "second");
	say(fd, "{\"return\": 7}\n");
	hear_eof(fd);
}

static void test_events_between(void **state)
{
	struct events e;
	struct peer p;
	struct qmp *q;
	json_t *v = NULL;

	(void)state;
	q = connected(&p, script_events_between, &e);
	assert_int_equal(qmp_peer_pid(q), getpid()); /* who listened */
	assert_true(qmp_fd(q) >= 0);
	assert_int_equal(qmp_command(q, "query-status", NULL, LONG, &v), 0);
	assert_string_equal(json_string_value(json_object_get(v, "status")), "paused");
	json_decref(v);
	assert_true(e.n >= 2);
	assert_int_equal(qmp_command(q, "second", json_pack("{s:i}", "x", 1), LONG, &v), 0);
	assert_int_equal(json_integer_value(v), 7);
	json_decref(v);
	assert_int_equal(e.n, 3);
	assert_string_equal(e.last, "LATE");
	qmp_free(q);
	peer_end(&p);
}

static void script_errors(int fd)
{
	welcome(fd);
	hear(fd, "stop");
	say(fd,
	    "{\"error\": {\"class\": \"GenericError\", \"desc\": \"it \\\"can't\\\" be\"}}\r\n");
	hear(fd, "human-monitor-command");
	say(fd, "{\"return\": \"two\\r\\nlines\"}\r\n");
	hear(fd, "human-monitor-command");
	say(fd, "{\"return\": {}}\r\n");
	hear_eof(fd);
}

static void test_errors(void **state)
{
	mc_autofree char *text = NULL;
	struct events e;
	struct peer p;
	struct qmp *q;
	json_t *v = NULL;

	(void)state;
	q = connected(&p, script_errors, &e);
	assert_int_equal(qmp_command(q, "stop", NULL, LONG, &v), -EREMOTEIO);
	assert_null(v);
	assert_string_equal(qmp_error(q), "it \"can't\" be");
	assert_int_equal(qmp_hmp(q, "info x", LONG, &text), 0);
	assert_string_equal(text, "two\r\nlines");
	assert_string_equal(qmp_error(q), "");
	mc_freep(&text);
	assert_int_equal(qmp_hmp(q, "info x", LONG, &text), -EBADMSG);
	assert_null(text);
	qmp_free(q);
	peer_end(&p);
}

static void script_late(int fd)
{
	welcome(fd);
	hear(fd, "slow");
	hear(fd, "quick");
	say(fd, "{\"return\": \"slow\"}\r\n{\"return\": \"quick\"}\r\n");
	hear(fd, "raw");
	hear(fd, "last");
	say(fd, "{\"return\": \"raw\"}\r\n{\"return\": \"last\"}\r\n");
	hear_eof(fd);
}

/* The answer to a command that was given up must not be taken for that of the next. */
static void test_late_answer(void **state)
{
	static const char raw[] = "{\"execute\":\"raw\"}\n";
	struct events e;
	struct peer p;
	struct qmp *q;
	json_t *v = NULL;

	(void)state;
	q = connected(&p, script_late, &e);
	assert_int_equal(qmp_command(q, "slow", NULL, 20, &v), -ETIMEDOUT);
	assert_null(v);
	assert_int_equal(qmp_command(q, "quick", NULL, LONG, &v), 0);
	assert_string_equal(json_string_value(v), "quick");
	json_decref(v);
	assert_int_equal(qmp_send_raw(q, raw, sizeof(raw) - 1), 0);
	assert_int_equal(qmp_wait(q, mc_now_ns() + 20 * MC_NS_PER_MS), -ETIMEDOUT);
	assert_int_equal(qmp_command(q, "last", NULL, LONG, &v), 0);
	assert_string_equal(json_string_value(v), "last");
	json_decref(v);
	qmp_free(q);
	peer_end(&p);
}

static void script_raw(int fd)
{
	welcome(fd);
	hear(fd, "stop");
	hear(fd, "cont");
	hear(fd, "query");
	say(fd, "{\"return\": {}}\r\n{\"error\": {\"class\": \"x\", \"desc\": \"no cont\"}}\r\n");
	say(fd, "{\"return\": {\"deep\": [{\"error\": 1}]}, \"id\": 9}\r\n");
	hear_eof(fd);
}

static void test_raw(void **state)
{
	static const char *const text[] = {"{\"execute\":\"stop\"}\n", "{\"execute\":\"cont\"}\n",
	                                   "{\"execute\":\"query\"}\n"};
	uint64_t deadline = mc_now_ns() + LONG * MC_NS_PER_MS;
	unsigned before;
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	q = connected(&p, script_raw, &e);
	assert_int_equal(qmp_wait(q, deadline), -EINVAL);
	assert_int_equal(qmp_send_raw(q, "no newline", 10), -EINVAL);
	before = allocations;
	for (size_t i = 0; i < MC_ARRAY_SIZE(text); i++)
		assert_int_equal(qmp_send_raw(q, text[i], strlen(text[i])), 0);
	assert_int_equal(qmp_wait(q, deadline), 0);
	assert_int_equal(qmp_wait(q, deadline), -EREMOTEIO);
	assert_string_equal(qmp_error(q), "no cont");
	assert_int_equal(qmp_wait(q, deadline), 0);
	assert_int_equal(allocations, before);
	assert_int_equal(qmp_wait(q, deadline), -EINVAL);
	qmp_free(q);
	peer_end(&p);
}

static void script_running(int fd)
{
	welcome(fd);
	for (int i = 0; i < 4; i++)
		hear(fd, "query-status");
	say(fd, "{\"return\": {\"status\": \"running\", \"running\": true}}\r\n"
	        "{\"return\": {\"x\": {\"running\": true}, \"running\":false}}\r\n"
	        "{\"return\": {\"x\": {\"running\": true}}}\r\n"
	        "{\"error\": {\"class\": \"x\", \"desc\": \"no\"}}\r\n");
	hear_eof(fd);
}

static void test_raw_running(void **state)
{
	static const char text[] = "{\"execute\":\"query-status\"}\n";
	uint64_t deadline = mc_now_ns() + LONG * MC_NS_PER_MS;
	bool running = false;
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	q = connected(&p, script_running, &e);
	for (int i = 0; i < 4; i++)
		assert_int_equal(qmp_send_raw(q, text, sizeof(text) - 1), 0);
	assert_int_equal(qmp_wait_running(q, deadline, &running), 0);
	assert_true(running);
	assert_int_equal(qmp_wait_running(q, deadline, &running), 0);
	assert_false(running);
	assert_int_equal(qmp_wait_running(q, deadline, &running), -EBADMSG);
	assert_int_equal(qmp_wait_running(q, deadline, &running), -EREMOTEIO);
	qmp_free(q);
	peer_end(&p);
}

static void script_two_lines(int fd)
{
	welcome(fd);
	hear(fd, "query-status");
	hear(fd, "stop");
	say(fd, "{\"return\": {\"running\": true}}\r\n{" STAMP ", \"event\": \"STOP\"}\r\n");
	say(fd, "{\"return\": {}}\r\n");
	for (int i = 0; i < 8; i++)
		hear(fd, "x");
	hear_eof(fd);
}

/* Several commands in one piece, as a pause begins. */
static void test_raw_lines(void **state)
{
	static const char text[] = "{\"execute\":\"query-status\"}\n{\"execute\":\"stop\"}\n";
	uint64_t deadline = mc_now_ns() + LONG * MC_NS_PER_MS;
	bool running = false;
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	q = connected(&p, script_two_lines, &e);
	assert_int_equal(qmp_send_raw(q, text, sizeof(text) - 1), 0);
	assert_int_equal(qmp_wait_running(q, deadline, &running), 0);
	assert_true(running);
	assert_int_equal(qmp_wait(q, deadline), 0);
	assert_string_equal(e.last, "STOP");
	assert_int_equal(qmp_wait(q, deadline), -EINVAL);
	assert_int_equal(qmp_send_raw(q, "x\nx\nx\nx\nx\nx\nx\nx\nx\n", 18), -EBUSY);
	assert_int_equal(qmp_send_raw(q, "x\nx\nx\nx\nx\nx\nx\nx\n", 16), 0);
	assert_int_equal(qmp_send_raw(q, "x\n", 2), -EBUSY);
	qmp_free(q);
	peer_end(&p);
}

static void script_raw_dispatch(int fd)
{
	welcome(fd);
	hear(fd, "stop");
	say(fd, "{\"return\": {}}\r\n{" STAMP ", \"event\": \"STOP\"}\r\n");
	hear_eof(fd);
}

/* An event loop that reads the answer first must not lose it. */
static void test_raw_dispatch(void **state)
{
	static const char stop[] = "{\"execute\":\"stop\"}\n";
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	q = connected(&p, script_raw_dispatch, &e);
	assert_int_equal(qmp_dispatch(q), 0);
	assert_int_equal(qmp_send_raw(q, stop, sizeof(stop) - 1), 0);
	while (!e.n)
		assert_int_equal(qmp_dispatch(q), 0);
	assert_string_equal(e.last, "STOP");
	assert_int_equal(qmp_wait(q, 0), 0);
	qmp_free(q);
	peer_end(&p);
}

static void script_fd(int fd)
{
	char ctl[CMSG_SPACE(sizeof(int))], buf[256];
	struct iovec iov = {buf, sizeof(buf) - 1};
	struct msghdr m = {.msg_iov = &iov,
	                   .msg_iovlen = 1,
	                   .msg_control = ctl,
	                   .msg_controllen = sizeof(ctl)};
	int got;

	welcome(fd);
	if (recvmsg(fd, &m, 0) <= 0 || !CMSG_FIRSTHDR(&m))
		_exit(7);
	memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(got));
	if (write(got, "x", 1) != 1)
		_exit(8);
	say(fd, "{\"return\": {}}\r\n");
	hear(fd, "plain");
	say(fd, "{\"return\": {}}\r\n");
	hear_eof(fd);
}

static void test_command_fd(void **state)
{
	struct events e;
	int pipe_fd[2];
	struct peer p;
	struct qmp *q;
	char c = 0;

	(void)state;
	assert_int_equal(pipe(pipe_fd), 0);
	q = connected(&p, script_fd, &e);
	assert_int_equal(qmp_command_fd(q, "getfd", json_pack("{s:s}", "fdname", "a"), pipe_fd[1],
	                                LONG, NULL),
	                 0);
	assert_int_equal(read(pipe_fd[0], &c, 1), 1);
	assert_int_equal(c, 'x');
	assert_int_equal(qmp_command(q, "plain", NULL, LONG, NULL), 0);
	close(pipe_fd[0]);
	assert_int_equal(close(pipe_fd[1]), 0); /* still ours */
	qmp_free(q);
	peer_end(&p);
}

#define STATUS "{\"execute\":\"query-status\"}\n"

static void script_begun(int fd)
{
	char buf[64];

	welcome(fd);
	/* The command but for its end, and only the rest once it is sent. */
	if (read(fd, buf, sizeof(buf)) != (ssize_t)strlen(STATUS) - 2)
		_exit(7);
	say(fd, "{" STAMP ", \"event\": \"STOP\"}\r\n");
	hear(fd, "}");
	hear(fd, "{\"execute\":\"stop\"}");
	say(fd, "{\"return\": {\"running\": true}}\r\n{\"return\": {}}\r\n");
	/* Begun, and then dropped for another one: its error is nobody's. */
	hear(fd, "{\"execute\":\"query-status\"]");
	say(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n");
	hear(fd, "query-name");
	say(fd, "{\"return\": {}}\r\n");
	hear_eof(fd);
}

static void test_begin(void **state)
{
	static const char both[] = STATUS "{\"execute\":\"stop\"}\n";
	uint64_t end = mc_now_ns() + LONG * MC_NS_PER_MS;
	bool running = false;
	struct events e;
	struct peer p;
	struct qmp *q = connected(&p, script_begun, &e);

	(void)state;
	assert_int_equal(qmp_begin(q, both, strlen(both)), -EINVAL);
	assert_int_equal(qmp_begin(q, STATUS, strlen(STATUS)), 0);
	assert_int_equal(qmp_begin(q, STATUS, strlen(STATUS)), -EINVAL);
	while (!e.n && mc_now_ns() < end)
		assert_int_equal(qmp_dispatch(q), 0);
	assert_int_equal(qmp_wait(q, end), -EINVAL); /* nothing was sent whole */
	assert_int_equal(qmp_send_raw(q, "{\"execute\":\"cont\"}\n", 19), -EINVAL);
	assert_int_equal(qmp_send_raw(q, both, strlen(both)), 0);
	assert_int_equal(qmp_wait_running(q, end, &running), 0);
	assert_true(running);
	assert_int_equal(qmp_wait(q, end), 0);
	assert_int_equal(qmp_begin(q, STATUS, strlen(STATUS)), 0);
	assert_int_equal(qmp_command(q, "query-name", NULL, LONG, NULL), 0);
	assert_string_equal(qmp_error(q), "");
	qmp_free(q);
	peer_end(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_connect_nobody),  cmocka_unit_test(test_connect_in_use),
	        cmocka_unit_test(test_connect_not_qmp), cmocka_unit_test(test_answers_of_another),
	        cmocka_unit_test(test_events_between),  cmocka_unit_test(test_errors),
	        cmocka_unit_test(test_late_answer),     cmocka_unit_test(test_raw),
	        cmocka_unit_test(test_raw_running),     cmocka_unit_test(test_raw_lines),
	        cmocka_unit_test(test_raw_dispatch),    cmocka_unit_test(test_begin),
	        cmocka_unit_test(test_command_fd),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
