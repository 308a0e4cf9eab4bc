/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The control socket: what one process can take of it without being known. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "supervisor.h"

#define TIMES_AS_FAST 100
#include "test-time.h"

#define OF_ONE 4        /* docs/security.md */
#define LONG   10000000 /* us */

static char dir[] = "/tmp/test-control-XXXXXX";
static struct manager manager;
static struct sockaddr_un address = {.sun_family = AF_UNIX};

static int begin(void **state)
{
	(void)state;
	strcpy(dir + strlen(dir) - 6, "XXXXXX");
	manager = (struct manager){.runtime_dir = mkdtemp(dir), .uid = (uid_t)-1};
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/control", dir);
	return sd_event_new(&manager.event) < 0 || control_start(&manager) < 0;
}

static int end(void **state)
{
	(void)state;
	sd_event_source_disable_unref(manager.control_source);
	close(manager.control_fd);
	sd_event_unref(manager.event);
	unlink(address.sun_path);
	return rmdir(dir);
}

/* What has come is seen to. */
static void turn(void)
{
	for (int i = 0; i < 10; i++)
		while (sd_event_run(manager.event, i ? 1000 : 0) > 0)
			;
}

static int enter(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static bool closed(int fd)
{
	char c;
	ssize_t r = recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT);

	return r == 0 || (r < 0 && errno != EAGAIN);
}

static void close_all(int *fd, int n)
{
	while (n--)
		close(fd[n]);
	turn();
	assert_int_equal(manager.nworkers, 0);
	assert_null(manager.newcomers);
}

static void test_number_of_one(void **state)
{
	int fd[OF_ONE + 3];

	(void)state;
	for (int i = 0; i < OF_ONE + 3; i++) {
		fd[i] = enter();
		turn();
		assert_true(manager.nworkers <= OF_ONE);
	}
	assert_int_equal(manager.nworkers, OF_ONE);
	/* The newest stay. */
	for (int i = 0; i < OF_ONE + 3; i++)
		assert_int_equal(closed(fd[i]), i < 3);
	close_all(fd, OF_ONE + 3);
}

/* Another process isn't kept out by the first one's. */
static void test_others_get_in(void **state)
{
	int fd[OF_ONE], ready[2], go[2], status;
	char c;
	pid_t pid;

	(void)state;
	for (int i = 0; i < OF_ONE; i++)
		fd[i] = enter();
	turn();
	assert_int_equal(pipe(ready), 0);
	assert_int_equal(pipe(go), 0);
	pid = fork();
	if (pid == 0) {
		int s = enter();

		(void)!write(ready[1], "x", 1);
		(void)!read(go[0], &c, 1);
		_exit(closed(s));
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	turn();
	assert_int_equal(manager.nworkers, OF_ONE + 1);
	for (int i = 0; i < OF_ONE; i++)
		assert_false(closed(fd[i]));
	assert_int_equal(write(go[1], "x", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	for (int i = 0; i < 2; i++) {
		close(ready[i]);
		close(go[i]);
	}
	close_all(fd, OF_ONE);
}

static void test_time(void **state)
{
	uint64_t until = mc_now_ns() + 5 * MC_NS_PER_S;
	int fd = enter();

	(void)state;
	turn();
	assert_int_equal(asked_us, LONG);
	assert_int_equal(manager.nworkers, 1);
	while (manager.nworkers && mc_now_ns() < until)
		assert_true(sd_event_run(manager.event, 100000) >= 0);
	assert_true(closed(fd));
	close_all(&fd, 1);
}

static void test_number_of_all(void **state)
{
	int fd;

	(void)state;
	manager.nworkers = WORKERS_MAX;
	fd = enter();
	turn();
	assert_true(closed(fd));
	assert_int_equal(manager.nworkers, WORKERS_MAX);
	manager.nworkers = 0;
	close_all(&fd, 1);
}

/* A process that can't be talked to waits at the socket, and costs nothing meanwhile. */
static void test_no_descriptors(void **state)
{
	int fd = enter();

	(void)state;
	assert_in_range(run_without_descriptors(manager.event), 1, 500);
	while (!manager.nworkers)
		assert_true(sd_event_run(manager.event, 1000000) > 0);
	assert_false(closed(fd));
	close_all(&fd, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(test_number_of_one, begin, end),
	        cmocka_unit_test_setup_teardown(test_others_get_in, begin, end),
	        cmocka_unit_test_setup_teardown(test_time, begin, end),
	        cmocka_unit_test_setup_teardown(test_number_of_all, begin, end),
	        cmocka_unit_test_setup_teardown(test_no_descriptors, begin, end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
