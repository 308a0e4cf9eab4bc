/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The injected system call against a real QEMU: its result, and that QEMU lives on whenever
 * the injector dies.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "../qmp/qmp.h"
#include "inject.h"

#define STEPS_MAX 64

struct fixture {
	char dir[64], sock[96];
	pid_t pid;
	struct qmp *q;
};

static void be_qemu(const char *sock)
{
	char arg[128];
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)dup2(null, 1);
	(void)dup2(null, 2);
	snprintf(arg, sizeof(arg), "unix:%s,server=on,wait=off", sock);
	execlp("qemu-system-x86_64", "qemu-system-x86_64", "-accel", "tcg", "-m", "64",
	       "-nodefaults", "-vga", "none", "-display", "none", "-qmp", arg, NULL);
	_exit(127);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	uint64_t end = mc_now_ns() + 10 * MC_NS_PER_S;
	int r = -1;

	strcpy(f->dir, "/tmp/test-inject-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->sock, sizeof(f->sock), "%s/qmp", f->dir);
	f->pid = fork();
	if (f->pid == 0)
		be_qemu(f->sock);
	while (r < 0 && mc_now_ns() < end) {
		r = qmp_connect(&f->q, f->sock, 2000);
		if (r < 0)
			usleep(10000); /* until QEMU has made its socket */
	}
	assert_int_equal(r, 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	qmp_free(f->q);
	kill(f->pid, SIGKILL);
	waitpid(f->pid, NULL, 0);
	unlink(f->sock);
	rmdir(f->dir);
	free(f);
	return 0;
}

/* QEMU answers, its vCPU runs, nobody traces it. */
static void assert_lives(struct fixture *f)
{
	json_t *v = NULL;

	assert_int_equal(waitpid(f->pid, NULL, WNOHANG), 0);
	assert_int_equal(qmp_command(f->q, "query-status", NULL, 5000, &v), 0);
	assert_true(json_is_true(json_object_get(v, "running")));
	json_decref(v);
}

static void test_result(void **state)
{
	struct fixture *f = *state;
	const uint64_t arg[3] = {0};
	int64_t result = 0;

	for (int i = 0; i < 50; i++) {
		assert_int_equal(inject_syscall(f->pid, SYS_getpid, arg, &result, NULL), 0);
		assert_int_equal(result, f->pid);
		assert_lives(f);
	}
}

static void test_error_of_the_call(void **state)
{
	struct fixture *f = *state;
	const uint64_t arg[3] = {(uint64_t)-1, 0, 0};
	int64_t result = 0;

	assert_int_equal(inject_syscall(f->pid, SYS_close, arg, &result, NULL), 0);
	assert_int_equal(result, -9); /* EBADF */
	assert_lives(f);
}

static void test_no_such_process(void **state)
{
	const uint64_t arg[3] = {0};
	int64_t result;

	(void)state;
	assert_true(inject_syscall(1 << 30, SYS_getpid, arg, &result, NULL) < 0);
}

static int die_at;
static int *reached;

static void step(int n)
{
	*reached = n;
	if (n == die_at)
		kill(getpid(), SIGKILL);
}

/* The injector is killed after every single ptrace step; each time QEMU goes on. */
static void test_death_at_every_step(void **state)
{
	struct fixture *f = *state;
	const uint64_t arg[3] = {0};
	int status, steps = 0;

	for (die_at = 0; die_at < STEPS_MAX; die_at++) {
		int64_t result = 0;
		int last = -1, r;
		pid_t child;

		child = fork();
		if (child == 0) {
			reached = &last;
			r = inject_syscall(f->pid, SYS_getpid, arg, &result, step);
			_exit(r == 0 && result == f->pid ? 0 : 1);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_lives(f);
		assert_int_equal(inject_syscall(f->pid, SYS_getpid, arg, &result, NULL), 0);
		assert_int_equal(result, f->pid);
		assert_lives(f);
		if (WIFEXITED(status)) {
			assert_int_equal(WEXITSTATUS(status), 0);
			break; /* it has no more steps */
		}
		assert_int_equal(WTERMSIG(status), SIGKILL);
		steps++;
	}
	assert_in_range(steps, 8, STEPS_MAX - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_result),
	        cmocka_unit_test(test_error_of_the_call),
	        cmocka_unit_test(test_no_such_process),
	        cmocka_unit_test(test_death_at_every_step),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
