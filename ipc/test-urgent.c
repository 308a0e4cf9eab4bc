/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the kernel says of threads that were made urgent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "urgent.h"

#define SLICE_NS 100000

/* As in linux/sched/types.h, which can't be included beside the C library's sched.h. */
struct sched_attr {
	uint32_t size, sched_policy;
	uint64_t sched_flags;
	int32_t sched_nice;
	uint32_t sched_priority;
	uint64_t sched_runtime, sched_deadline, sched_period;
};

static struct sched_attr attr_of(pid_t tid)
{
	struct sched_attr a = {0};

	assert_int_equal(syscall(SYS_sched_getattr, tid, &a, sizeof(a), 0), 0);
	return a;
}

struct other {
	sem_t up, end;
	pid_t tid;
};

static void *wait_for_end(void *p)
{
	struct other *o = p;

	o->tid = gettid();
	sem_post(&o->up);
	sem_wait(&o->end);
	return NULL;
}

/* Exit status of a child of its own: what it changes stays with it. */
static int all_threads(void)
{
	struct other o;
	pthread_t t;
	int bad;

	if (!attr_of(0).sched_runtime)
		return 77; /* a kernel before 6.12 has no slices to be asked for */
	sem_init(&o.up, 0, 0);
	sem_init(&o.end, 0, 0);
	(void)setpriority(PRIO_PROCESS, 0, 5);
	if (pthread_create(&t, NULL, wait_for_end, &o))
		return 1;
	sem_wait(&o.up);
	if (attr_of(o.tid).sched_runtime == SLICE_NS)
		return 2; /* the test would show nothing */
	if (mc_urgent_process(getpid()) < 0)
		return 3;
	bad = attr_of(o.tid).sched_runtime != SLICE_NS || attr_of(0).sched_runtime != SLICE_NS ||
	      attr_of(o.tid).sched_nice != 5 || attr_of(0).sched_nice != 5;
	sem_post(&o.end);
	pthread_join(t, NULL);
	return bad ? 4 : 0;
}

static int last_in_the_queue(void)
{
	mc_not_urgent();
	return attr_of(0).sched_nice == 19 ? 0 : 1;
}

static int in_child(int (*fn)(void))
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(fn());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void every_thread_is_urgent(void **state)
{
	int r = in_child(all_threads);

	(void)state;
	if (r == 77)
		skip();
	assert_int_equal(r, 0);
}

static void one_that_ends_waits(void **state)
{
	(void)state;
	assert_int_equal(in_child(last_in_the_queue), 0);
}

static void nobody_there(void **state)
{
	(void)state;
	assert_int_equal(mc_urgent(0x3fffffff), -ESRCH);
	assert_int_equal(mc_urgent_process(0x3fffffff), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(every_thread_is_urgent),
	        cmocka_unit_test(one_that_ends_waits),
	        cmocka_unit_test(nobody_there),
	};

	return cmocka_run_group_tests_name("ipc/urgent", tests, NULL, NULL);
}
