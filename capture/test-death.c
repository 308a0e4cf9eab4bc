/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The death of a process with threads, and the end of one of them. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "death.h"

static int told; /* pipe's end: the child's threads say who they are */
static int ask[2];

/* Waits for a byte, and ends. */
static void *waits(void *arg)
{
	pid_t tid = (pid_t)syscall(SYS_gettid);
	char byte;

	(void)arg;
	if (write(told, &tid, sizeof(tid)) != sizeof(tid) || read(ask[0], &byte, 1) != 1)
		_exit(1);
	return NULL;
}

static pid_t start(pid_t *threads)
{
	int tell[2];
	pid_t pid;

	assert_int_equal(pipe(tell), 0);
	assert_int_equal(pipe(ask), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		pthread_t t;

		told = tell[1];
		for (int i = 0; i < 2; i++)
			if (pthread_create(&t, NULL, waits, NULL) != 0)
				_exit(1);
		for (;;)
			pause();
	}
	threads[0] = pid;
	for (int i = 1; i < 3; i++)
		assert_int_equal(read(tell[0], &threads[i], sizeof(pid_t)), sizeof(pid_t));
	close(tell[0]);
	close(tell[1]);
	return pid;
}

/* Waits until a thread of the three has ended; how many have. */
static int ended(const struct death *d, int ms)
{
	struct pollfd p[3];
	int n = 0;

	for (int i = 0; i < 3; i++)
		p[i] = (struct pollfd){.fd = d->thread[i], .events = POLLIN};
	(void)poll(p, 3, ms);
	for (int i = 0; i < 3; i++)
		n += p[i].revents != 0;
	return n;
}

static bool any_tells(const struct death *d, int ms)
{
	struct pollfd p = {.fd = d->any, .events = POLLIN};

	return poll(&p, 1, ms) == 1;
}

static void test_death(void **state)
{
	struct death d;
	pid_t threads[3], pid = start(threads);
	int r = death_open(&d, pid);

	(void)state;
	if (r == -EINVAL) { /* an older kernel: capture does without */
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		skip();
	}
	assert_int_equal(r, 0);
	assert_int_equal(d.n, 3);
	assert_int_equal(ended(&d, 0), 0);
	assert_false(death_has_come(&d));
	/* One thread ends: the process doesn't. */
	assert_int_equal(write(ask[1], "x", 1), 1);
	assert_int_equal(ended(&d, 10000), 1);
	assert_false(death_has_come(&d));
	assert_true(any_tells(&d, 10000));
	death_forget_ended(&d);
	assert_false(any_tells(&d, 0));
	kill(pid, SIGKILL);
	assert_true(any_tells(&d, 10000));
	while (ended(&d, 10000) < 2)
		;
	assert_true(death_has_come(&d));
	waitpid(pid, NULL, 0);
	assert_true(death_has_come(&d)); /* gone */
	death_close(&d);
	death_close(&d);
	close(ask[0]);
	close(ask[1]);
}

/* As soon as one thread is seen to end, the answer must be right: again and again. */
static void test_at_once(void **state)
{
	(void)state;
	for (int i = 0; i < 100; i++) {
		struct death d;
		pid_t threads[3], pid = start(threads);

		if (death_open(&d, pid) == -EINVAL) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
			skip();
		}
		kill(pid, SIGKILL);
		assert_true(ended(&d, 10000) > 0);
		assert_true(death_has_come(&d));
		waitpid(pid, NULL, 0);
		death_close(&d);
		close(ask[0]);
		close(ask[1]);
	}
}

static void test_nobody(void **state)
{
	pid_t nobody = 0x3ffffff;
	struct death d;

	(void)state;
	assert_true(death_open(&d, nobody) < 0);
	assert_int_equal(d.n, 0);
	assert_int_equal(d.stat, -1);
	death_close(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_death),
	        cmocka_unit_test(test_at_once),
	        cmocka_unit_test(test_nobody),
	};

	return cmocka_run_group_tests_name("capture/death", tests, NULL, NULL);
}
