/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The QMP client against a peer that follows a script, most of them bad ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "qmp.h"
#include "scan.h"

#define GREETING                                                                                   \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "         \
	"\"package\": \"x\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define STAMP "\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}"
#define LONG  5000 /* ms: a limit that a passing test never meets */

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

/* --- the peer ------------------------------------------------------------------------- */

typedef void (*script_fn)(int fd);

struct peer {
	char dir[32], path[64];
	pid_t pid;
};

static void say(int fd, const char *text)
{
	size_t len = strlen(text);
	ssize_t n;

	while (len) {
		n = send(fd, text, len, MSG_NOSIGNAL);
		if (n < 0)
			_exit(3);
		text += n;
		len -= (size_t)n;
	}
}

/* Reads a line that must hold @want. */
static void hear(int fd, const char *want)
{
	char buf[4096];
	size_t n = 0;

	do {
		if (n + 1 == sizeof(buf) || read(fd, buf + n, 1) != 1)
			_exit(4);
	} while (buf[n++] != '\n');
	buf[n] = '\0';
	if (!strstr(buf, want)) {
		fprintf(stderr, "peer: heard %s, not %s\n", buf, want);
		_exit(5);
	}
}

static void hear_eof(int fd)
{
	char c;

	if (read(fd, &c, 1) > 0)
		_exit(6);
}

static void welcome(int fd)
{
	say(fd, GREETING);
	hear(fd, "qmp_capabilities");
	say(fd, "{\"return\": {}}\r\n");
}

static int listen_at(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 4), 0);
	return fd;
}

static void peer_start(struct peer *p, script_fn script)
{
	int l, fd;

	strcpy(p->dir, "/tmp/test-qmp-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->path, sizeof(p->path), "%s/qmp", p->dir);
	l = listen_at(p->path);
	fflush(NULL);
	p->pid = fork();
	assert_true(p->pid >= 0);
	if (!p->pid) {
		alarm(30);
		fd = accept(l, NULL, NULL);
		script(fd);
		_exit(0);
	}
	close(l);
}

/* The peer must have gone through its script to the end. */
static void peer_end(struct peer *p)
{
	int status;

	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	unlink(p->path);
	rmdir(p->dir);
	assert_int_equal(status, 0);
}

struct events {
	unsigned n;
	char last[32];
	char detail[64];
};

static void on_event(void *ctx, const char *name, json_t *data)
{
	struct events *e = ctx;
	const char *reason = json_string_value(json_object_get(data, "reason"));

	e->n++;
	snprintf(e->last, sizeof(e->last), "%s", name);
	snprintf(e->detail, sizeof(e->detail), "%s", reason ? reason : "");
}

static struct qmp *connected(struct peer *p, script_fn script, struct events *e)
{
	struct qmp *q = NULL;

	peer_start(p, script);
	assert_int_equal(qmp_connect(&q, p->path, LONG), 0);
	*e = (struct events){0};
	qmp_on_event(q, on_event, e);
	return q;
}

/* --- scanner -------------------------------------------------------------------------- */

static void test_scan_kinds(void **state)
{
	static const struct {
		const char *line;
		int r;
		enum qmp_kind kind;
		const char *value;
	} t[] = {
	        {"{\"return\": {}}", 0, QMP_KIND_RETURN, "{}"},
	        {" {\"id\":1,\"return\" : [1, \"]\"] } \r", 0, QMP_KIND_RETURN, "[1, \"]\"]"},
	        {"{\"return\":{\"event\":\"STOP\",\"error\":{}}}", 0, QMP_KIND_RETURN,
	         "{\"event\":\"STOP\",\"error\":{}}"},
	        {"{\"return\":\"a\\\"}, \\\"event\\\": 1\"}", 0, QMP_KIND_RETURN,
	         "\"a\\\"}, \\\"event\\\": 1\""},
	        {"{\"return\":-1.5e+3}", 0, QMP_KIND_RETURN, "-1.5e+3"},
	        {"{" STAMP ",\"event\":\"STOP\",\"data\":{\"return\":1}}", 0, QMP_KIND_EVENT,
	         "\"STOP\""},
	        {"{\"error\":{\"class\":\"x\",\"desc\":\"return\"}}", 0, QMP_KIND_ERROR,
	         "{\"class\":\"x\",\"desc\":\"return\"}"},
	        {"{\"QMP\":{}}", 0, QMP_KIND_GREETING, "{}"},
	        {"", -EBADMSG, 0, NULL},
	        {"{}", -EBADMSG, 0, NULL},
	        {"{\"data\":{\"return\":1}}", -EBADMSG, 0, NULL},
	        {"{\"return\":1,\"event\":\"STOP\"}", -EBADMSG, 0, NULL},
	        {"{\"return\":1}x", -EBADMSG, 0, NULL},
	        {"{\"return\":1}{\"return\":1}", -EBADMSG, 0, NULL},
	        {"{\"return\":1", -EBADMSG, 0, NULL},
	        {"{\"return\":}", -EBADMSG, 0, NULL},
	        {"{\"return\"}", -EBADMSG, 0, NULL},
	        {"{return:1}", -EBADMSG, 0, NULL},
	        {"{\"return\":[}", -EBADMSG, 0, NULL},
	        {"{\"return\":[{]}}", -EBADMSG, 0, NULL},
	        {"{\"return\":\"x}", -EBADMSG, 0, NULL},
	        {"{\"return\":\"x\\", -EBADMSG, 0, NULL},
	        {"{\"return\":1 \"id\":2}", -EBADMSG, 0, NULL},
	        {"{\"return\":\"\x01\"}", -EBADMSG, 0, NULL},
	        {"[\"return\"]", -EBADMSG, 0, NULL},
	};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(t); i++) {
		enum qmp_kind kind = 99;
		struct qmp_span v = {NULL, 0};
		int r = qmp_scan(t[i].line, strlen(t[i].line), &kind, &v);

		if (r != t[i].r)
			fail_msg("%s: %d, not %d", t[i].line, r, t[i].r);
		if (r < 0)
			continue;
		assert_int_equal(kind, t[i].kind);
		assert_int_equal(v.len, strlen(t[i].value));
		assert_memory_equal(v.p, t[i].value, v.len);
	}
}

/* Every prefix of a line is refused, and no byte behind it is looked at. */
static void test_scan_truncated(void **state)
{
	static const char line[] = "{" STAMP ", \"event\": \"A\\u0041\", \"data\": [1, {\"x\": "
	                           "\"y\"}, true]}";
	struct qmp_span v;
	enum qmp_kind kind;

	(void)state;
	for (size_t n = 0; n < sizeof(line) - 1; n++) {
		char *exact = malloc(n ? n : 1);

		memcpy(exact, line, n);
		assert_int_equal(qmp_scan(exact, n, &kind, &v), -EBADMSG);
		free(exact);
	}
	assert_int_equal(qmp_scan(line, sizeof(line) - 1, &kind, &v), 0);
}

static void test_scan_depth(void **state)
{
	char line[2 * QMP_DEPTH_MAX + 64];
	struct qmp_span v;
	enum qmp_kind kind;

	(void)state;
	for (int depth = QMP_DEPTH_MAX; depth <= QMP_DEPTH_MAX + 1; depth++) {
		char *p = line + sprintf(line, "{\"return\":");

		memset(p, '[', (size_t)depth);
		memset(p + depth, ']', (size_t)depth);
		strcpy(p + 2 * depth, "}");
		assert_int_equal(qmp_scan(line, strlen(line), &kind, &v),
		                 depth > QMP_DEPTH_MAX ? -EBADMSG : 0);
	}
}

static void test_scan_text(void **state)
{
	static const char json[] =
	        "{\"class\":\"G\",\"desc\":\"a \\\"b\\\"\\n\\u0041\\u20ac\\\\ c\"}";
	struct qmp_span obj = {json, sizeof(json) - 1}, v;
	char buf[64];

	(void)state;
	assert_int_equal(qmp_scan_find(&obj, "none", &v), -ENOENT);
	assert_int_equal(qmp_scan_find(&obj, "desc", &v), 0);
	qmp_scan_text(&v, buf, sizeof(buf));
	assert_string_equal(buf, "a \"b\" A?\\ c");
	qmp_scan_text(&v, buf, 5);
	assert_string_equal(buf, "a \"b");
	assert_int_equal(qmp_scan_find(&v, "desc", &v), -EBADMSG);
}

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
	hear(fd, "qmp_capabilities");
	say(fd, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}\r\n");
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

/* --- commands ------------------------------------------------------------------------- */

static void script_events_between(int fd)
{
	welcome(fd);
	say(fd, "{" STAMP ", \"event\": \"RESUME\"}\r\n");
	hear(fd, "query-status");
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

/* --- peers that break ----------------------------------------------------------------- */

static void script_eof(int fd)
{
	welcome(fd);
	hear(fd, "query");
	say(fd, "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}, " STAMP
	        "}\r\n{\"retu");
	close(fd);
}

static void test_eof_in_answer(void **state)
{
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	q = connected(&p, script_eof, &e);
	assert_int_equal(qmp_command(q, "query", NULL, LONG, NULL), -ECONNRESET);
	assert_int_equal(e.n, 1);
	assert_string_equal(e.detail, "guest-shutdown");
	assert_int_equal(qmp_command(q, "query", NULL, LONG, NULL), -ECONNRESET);
	assert_int_equal(qmp_dispatch(q), -ECONNRESET);
	qmp_free(q);
	peer_end(&p);
}

static void script_last_words(int fd)
{
	welcome(fd);
	hear(fd, "sync");
	say(fd, "{\"return\": {}}\r\n");
	say(fd,
	    "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"host-signal\"}, " STAMP "}\r\n");
	close(fd);
}

/* Sending to a QEMU that has gone still delivers what it said last. */
static void test_send_after_end(void **state)
{
	static const char stop[] = "{\"execute\":\"stop\"}\n";
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	q = connected(&p, script_last_words, &e);
	assert_int_equal(qmp_command(q, "sync", NULL, LONG, NULL), 0);
	peer_end(&p);
	assert_int_equal(qmp_send_raw(q, stop, sizeof(stop) - 1), -ECONNRESET);
	assert_int_equal(e.n, 1);
	assert_string_equal(e.detail, "host-signal");
	qmp_free(q);
}

static void say_bytes(int fd, char c, size_t n)
{
	char block[4097];

	memset(block, c, 4096);
	for (; n; n -= n < 4096 ? n : 4096) {
		block[n < 4096 ? n : 4096] = '\0';
		if (send(fd, block, strlen(block), MSG_NOSIGNAL) < 0)
			return; /* the client has had enough */
	}
}

static void script_large(int fd)
{
	welcome(fd);
	hear(fd, "large");
	say(fd, "{\"return\": \"");
	say_bytes(fd, 'a', 4000000);
	say(fd, "\"}\r\n");
	hear(fd, "endless");
	say(fd, "{\"return\": \"");
	say_bytes(fd, 'a', 6000000);
	hear_eof(fd);
}

static void test_large(void **state)
{
	struct events e;
	struct peer p;
	struct qmp *q;
	json_t *v = NULL;

	(void)state;
	q = connected(&p, script_large, &e);
	assert_int_equal(qmp_command(q, "large", NULL, LONG, &v), 0);
	assert_int_equal(json_string_length(v), 4000000);
	json_decref(v);
	v = NULL;
	assert_int_equal(qmp_command(q, "endless", NULL, LONG, &v), -EBADMSG);
	assert_null(v);
	qmp_free(q);
	peer_end(&p);
}

static void script_deep(int fd)
{
	welcome(fd);
	hear(fd, "deep");
	say(fd, "{\"return\": ");
	say_bytes(fd, '[', 1000000);
	say_bytes(fd, ']', 1000000);
	say_bytes(fd, '}', 1);
	say_bytes(fd, '\n', 1);
}

static void script_garbage(int fd)
{
	welcome(fd);
	hear(fd, "deep");
	say(fd, "\x80\xff garbage \"\r\n");
}

static void script_bad_value(int fd)
{
	welcome(fd);
	hear(fd, "deep");
	say(fd, "{\"return\": {\"a\": tru}}\r\n");
}

static void script_bad_event(int fd)
{
	welcome(fd);
	hear(fd, "deep");
	say(fd, "{\"event\": 5}\r\n{\"return\": {}}\r\n");
}

static void script_second_greeting(int fd)
{
	welcome(fd);
	hear(fd, "deep");
	say(fd, GREETING);
}

static void script_two_answers(int fd)
{
	welcome(fd);
	hear(fd, "deep");
	say(fd, "{\"return\": 1}\r\n{\"return\": 2}\r\n");
}

static void test_broken_answers(void **state)
{
	static const script_fn bad[] = {
	        script_deep,      script_garbage,         script_bad_value,
	        script_bad_event, script_second_greeting, script_two_answers};
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(bad); i++) {
		json_t *v = NULL;
		int r;

		q = connected(&p, bad[i], &e);
		r = qmp_command(q, "deep", NULL, LONG, &v);
		json_decref(v);
		/* An answer nobody asked for shows at the next look at the latest. */
		for (v = NULL; r == 0;)
			r = qmp_dispatch(q);
		assert_int_equal(r, -EBADMSG);
		assert_int_equal(qmp_command(q, "more", NULL, LONG, &v), -EBADMSG);
		assert_null(v);
		qmp_free(q);
		peer_end(&p);
	}
}

static void script_flood(int fd)
{
	welcome(fd);
	hear(fd, "query");
	for (;;)
		if (send(fd, "{" STAMP ", \"event\": \"STOP\"}\r\n",
		         strlen("{" STAMP ", \"event\": \"STOP\"}\r\n"), MSG_NOSIGNAL) < 0)
			return;
}

/* Endless events keep neither a command nor the event loop. */
static void test_flood(void **state)
{
	uint64_t t = mc_now_ns();
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	q = connected(&p, script_flood, &e);
	assert_int_equal(qmp_command(q, "query", NULL, 100, NULL), -ETIMEDOUT);
	assert_int_equal(qmp_dispatch(q), 0);
	assert_true(e.n > 0);
	assert_true(mc_now_ns() - t < 4000 * MC_NS_PER_MS);
	qmp_free(q);
	peer_end(&p);
}

static void script_deaf(int fd)
{
	char c;

	welcome(fd);
	if (recv(fd, &c, 1, MSG_PEEK) != 1)
		_exit(9);
	say(fd, "{" STAMP ", \"event\": \"DEAF\"}\r\n");
	/* reads nothing more until the client hangs up */
	while (send(fd, "\n", 0, MSG_NOSIGNAL) == 0) {
		struct timespec ts = {.tv_nsec = 1000000};

		nanosleep(&ts, NULL);
	}
}

/* A monitor that takes no more bytes: a time limit, and no half command goes on. */
static void test_deaf_peer(void **state)
{
	size_t len = 8U << 20;
	struct events e;
	struct peer p;
	struct qmp *q;
	char *text = malloc(len);

	(void)state;
	memset(text, ' ', len);
	text[len - 1] = '\n';
	q = connected(&p, script_deaf, &e);
	assert_int_equal(qmp_send_raw(q, text, len), -EBADMSG);
	assert_int_equal(qmp_command(q, "query", NULL, LONG, NULL), -EBADMSG);
	free(text);
	qmp_free(q);
	peer_end(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_scan_kinds),
	        cmocka_unit_test(test_scan_truncated),
	        cmocka_unit_test(test_scan_depth),
	        cmocka_unit_test(test_scan_text),
	        cmocka_unit_test(test_connect_nobody),
	        cmocka_unit_test(test_connect_in_use),
	        cmocka_unit_test(test_connect_not_qmp),
	        cmocka_unit_test(test_events_between),
	        cmocka_unit_test(test_errors),
	        cmocka_unit_test(test_late_answer),
	        cmocka_unit_test(test_raw),
	        cmocka_unit_test(test_raw_running),
	        cmocka_unit_test(test_raw_lines),
	        cmocka_unit_test(test_raw_dispatch),
	        cmocka_unit_test(test_command_fd),
	        cmocka_unit_test(test_eof_in_answer),
	        cmocka_unit_test(test_send_after_end),
	        cmocka_unit_test(test_large),
	        cmocka_unit_test(test_broken_answers),
	        cmocka_unit_test(test_flood),
	        cmocka_unit_test(test_deaf_peer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
