/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The QMP client against peers that break, end, or never end. */
#include "test-peer.h"

#include <sys/eventfd.h>

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

/* Its socket stays open for as long as its memory is given back. */
static void script_dying(int fd)
{
	welcome(fd);
	hear(fd, "query");
	say(fd,
	    "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"host-signal\"}, " STAMP "}\r\n");
	hear(fd, "again");
	hear_eof(fd);
}

struct threads {
	int fd;
	bool all; /* of them end, not only one */
	unsigned asked;
};

static bool ends(void *ctx)
{
	struct threads *t = ctx;
	eventfd_t v;

	t->asked++;
	if (!t->all)
		assert_int_equal(eventfd_read(t->fd, &v), 0);
	return t->all;
}

static void test_end_before_eof(void **state)
{
	struct threads t = {.fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)};
	struct events e;
	struct peer p;
	struct qmp *q;

	(void)state;
	q = connected(&p, script_dying, &e);
	qmp_watch_peer(q, t.fd, ends, &t);
	assert_int_equal(qmp_command(q, "query", NULL, 100, NULL), -ETIMEDOUT);
	assert_int_equal(t.asked, 1);
	assert_string_equal(e.detail, "host-signal");
	t.all = true;
	assert_int_equal(eventfd_write(t.fd, 1), 0);
	assert_int_equal(qmp_command(q, "again", NULL, 60000, NULL), -ECONNRESET);
	assert_int_equal(qmp_dispatch(q), -ECONNRESET);
	assert_int_equal(t.asked, 2);
	qmp_free(q);
	close(t.fd);
	peer_end(&p);
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

/* More of them than are read in one piece. */
static void script_last_words(int fd)
{
	welcome(fd);
	hear(fd, "sync");
	say(fd, "{\"return\": {}}\r\n");
	for (int i = 0; i < 15; i++) {
		say(fd, "{\"event\": \"NOISE\", \"data\": {\"reason\": \"");
		say_bytes(fd, 'a', 6000);
		say(fd, "\"}, " STAMP "}\r\n");
	}
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
	assert_int_equal(e.n, 16);
	assert_string_equal(e.detail, "host-signal");
	qmp_free(q);
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
	        cmocka_unit_test(test_eof_in_answer),  cmocka_unit_test(test_end_before_eof),
	        cmocka_unit_test(test_send_after_end), cmocka_unit_test(test_large),
	        cmocka_unit_test(test_broken_answers), cmocka_unit_test(test_flood),
	        cmocka_unit_test(test_deaf_peer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
