/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The port: how many may wait without saying who they are, for how long, and whom that keeps out.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "../ipc/wire.h"
#include "supervisor.h"

#define TIMES_AS_FAST 20
#include "test-time.h"

#define MOST 32      /* docs/security.md, docs/threat-model.md */
#define LONG 2000000 /* us */

static struct manager manager = {.listen = "127.0.0.1:0"};
static int client[2 * MOST];
static FILE *log_file;
static int log_fd, real_stderr;

static int begin(void **state)
{
	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(client); i++)
		client[i] = -1;
	log_file = tmpfile();
	log_fd = fileno(log_file);
	real_stderr = dup(2);
	dup2(log_fd, 2);
	manager.port_words = (struct rate){0};
	manager.port_silent = 0;
	return sd_event_new(&manager.event) < 0 || listen_start(&manager) < 0;
}

static int end(void **state)
{
	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(client); i++)
		mc_closep(&client[i]);
	listen_stop(&manager);
	manager.event = sd_event_unref(manager.event);
	dup2(real_stderr, 2);
	close(real_stderr);
	fclose(log_file);
	return manager.nconnections != 0;
}

static void turn(void)
{
	while (sd_event_run(manager.event, 0) > 0)
		;
}

static void knock(int n)
{
	struct sockaddr_in a;
	socklen_t len = sizeof(a);

	assert_int_equal(getsockname(manager.listen_fd, (struct sockaddr *)&a, &len), 0);
	client[n] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	assert_true(connect(client[n], (struct sockaddr *)&a, len) == 0 || errno == EINPROGRESS);
}

static void enter(int n)
{
	knock(n);
	turn();
}

static bool closed(int n)
{
	char c;
	ssize_t r = recv(client[n], &c, 1, MSG_PEEK | MSG_DONTWAIT);

	return r == 0 || (r < 0 && errno != EAGAIN);
}

static void send_hello(int n, const char *guest)
{
	struct mc_term term = {.number = 1, .id = 2};
	uint8_t buf[MC_WIRE_HEADER + MC_NAME_MAX] = {0};
	struct mc_wire_header h;

	mc_wire_header_init(&h, MC_MSG_TLS, &term, 0, MC_NAME_MAX);
	memcpy(buf, &h, sizeof(h));
	strcpy((char *)buf + MC_WIRE_HEADER, guest);
	assert_int_equal(send(client[n], buf, sizeof(buf), 0), sizeof(buf));
	turn();
}

/* The answer to who named a guest that isn't here; "" : none. */
static const char *answer(int n)
{
	static char buf[1024];
	ssize_t r = recv(client[n], buf, sizeof(buf) - 1, MSG_DONTWAIT);

	for (ssize_t i = 0; i < r; i++)
		buf[i] = buf[i] ?: ' ';
	buf[r > 0 ? r : 0] = '\0';
	return buf;
}

/* How often the log holds @word. */
static unsigned said(const char *word)
{
	static char buf[65536];
	ssize_t n = pread(log_fd, buf, sizeof(buf) - 1, 0);
	unsigned times = 0;

	buf[n > 0 ? n : 0] = '\0';
	for (const char *p = buf; (p = strstr(p, word)); p++)
		times++;
	return times;
}

static void test_number(void **state)
{
	(void)state;
	for (int i = 0; i < MOST; i++)
		enter(i);
	assert_int_equal(manager.nconnections, MOST);
	for (int i = 0; i < MOST; i++)
		assert_false(closed(i));
	/* Who came first gives way. */
	for (int i = 0; i < MOST / 2; i++) {
		enter(MOST + i);
		assert_int_equal(manager.nconnections, MOST);
		assert_true(closed(i));
		assert_false(closed(i + 1));
		assert_false(closed(MOST + i));
	}
}

/* A whole crowd of silent ones doesn't keep out who has something to say. */
static void test_primary_gets_in(void **state)
{
	(void)state;
	for (int i = 0; i < MOST + 8; i++)
		enter(i);
	enter(MOST + 8);
	send_hello(MOST + 8, "vm");
	assert_non_null(strstr(answer(MOST + 8), "no standby for guest 'vm' on this host"));
	assert_int_equal(manager.nconnections, MOST - 1);
	assert_true(said("it said nothing, and 32 connections do") > 0);
}

static void test_time(void **state)
{
	uint64_t until = mc_now_ns() + 5 * MC_NS_PER_S;

	(void)state;
	enter(0);
	assert_int_equal(asked_us, LONG);
	/* A few bytes are no excuse. */
	assert_int_equal(send(client[0], "MCWP", 4, 0), 4);
	enter(1);
	while (manager.nconnections && mc_now_ns() < until)
		assert_true(sd_event_run(manager.event, 100000) >= 0);
	assert_int_equal(manager.nconnections, 0);
	assert_true(closed(0) && closed(1));
	enter(2);
	send_hello(2, "vm");
	assert_non_null(strstr(answer(2), "no standby"));
}

/* Anybody can connect: the log tells who does, not without end. */
static void test_words(void **state)
{
	char junk[MC_WIRE_HEADER + MC_NAME_MAX];

	(void)state;
	memset(junk, 'x', sizeof(junk));
	for (int i = 0; i < 60; i++) {
		enter(0);
		assert_int_equal(send(client[0], junk, sizeof(junk), 0), sizeof(junk));
		turn();
		assert_true(closed(0));
		mc_closep(&client[0]);
	}
	assert_in_range(said("a connection from 127.0.0.1:"), 20, 22);
	assert_int_equal(manager.nconnections, 0);
	assert_true(manager.port_silent >= 38);
	/* What was left out is counted. */
	manager.port_words = (struct rate){0};
	enter(0);
	send_hello(0, "vm");
	assert_int_equal(said("more messages about connections to 127.0.0.1:0 were left out"), 1);
}

/* A connection that can't be taken waits at the port, and costs nothing meanwhile. */
static void test_no_descriptors(void **state)
{
	(void)state;
	knock(0);
	assert_in_range(run_without_descriptors(manager.event), 1, 500);
	while (!manager.nconnections)
		assert_true(sd_event_run(manager.event, 1000000) > 0);
	assert_false(closed(0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(test_number, begin, end),
	        cmocka_unit_test_setup_teardown(test_primary_gets_in, begin, end),
	        cmocka_unit_test_setup_teardown(test_time, begin, end),
	        cmocka_unit_test_setup_teardown(test_words, begin, end),
	        cmocka_unit_test_setup_teardown(test_no_descriptors, begin, end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
