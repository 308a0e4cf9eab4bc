/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "arbiter.h"
#include "util.h"

static void config(struct mc_config *c, const char *arbiter)
{
	mc_config_defaults(c);
	c->side = MC_SIDE_BACKUP;
	strcpy(c->guest, "vm");
	snprintf(c->arbiter, sizeof(c->arbiter), "%s", arbiter);
}

static int start(const struct mc_config *c)
{
	int fd = mc_arbiter_start(c);

	assert_true(fd >= 0);
	return fd;
}

/* The helper ends with its socket, and whatever it ran with it: nothing else is left. */
static void stop(int helper)
{
	close(helper);
	assert_true(waitpid(-1, NULL, 0) > 0);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static struct mc_arbiter *ask(sd_event *e, int helper)
{
	struct mc_arbiter *a = NULL;

	assert_int_equal(mc_arbiter_ask(&a, e, helper, 300, MC_REASON_SILENCE, 7, 42), 0);
	assert_int_equal(mc_arbiter_verdict(a), MC_VERDICT_PENDING);
	return a;
}

/* Asks and turns the loop until the verdict is there. */
static enum mc_verdict verdict(const char *arbiter, char *text)
{
	uint64_t end = mc_now_ns() + 20 * MC_NS_PER_S;
	sd_event *e = NULL;
	struct mc_arbiter *a;
	struct mc_config c;
	enum mc_verdict v;
	int helper;

	config(&c, arbiter);
	helper = start(&c);
	/* What others write into the shared memory later doesn't count. */
	strcpy(c.arbiter, "exec:exit 99");
	assert_int_equal(sd_event_new(&e), 0);
	a = ask(e, helper);
	while (mc_arbiter_verdict(a) == MC_VERDICT_PENDING && mc_now_ns() < end)
		assert_true(sd_event_run(e, 100000) >= 0);
	v = mc_arbiter_verdict(a);
	strcpy(text, mc_arbiter_text(a));
	mc_arbiter_free(a);
	sd_event_unref(e);
	stop(helper);
	return v;
}

static void test_verdicts(void **state)
{
	char text[64];

	(void)state;
	assert_int_equal(verdict("exec:true", text), MC_VERDICT_WON);
	assert_int_equal(verdict("exec:false", text), MC_VERDICT_LOST);
	assert_int_equal(verdict("exec:exit 125", text), MC_VERDICT_LOST);
	assert_string_equal(text, "exited with status 125");
	assert_int_equal(verdict("exec:exit 126", text), MC_VERDICT_FAILED);
	assert_int_equal(verdict("exec:/nowhere/to/be/found", text), MC_VERDICT_FAILED);
	assert_int_equal(verdict("exec:kill -9 $$", text), MC_VERDICT_FAILED);
	assert_string_equal(text, "was killed by signal 9");
}

static void test_time_limit(void **state)
{
	uint64_t t = mc_now_ns();
	char text[64];

	(void)state;
	/* What it started ends as well: the pipe would stay open. */
	assert_int_equal(verdict("exec:sleep 1000 & sleep 1000", text), MC_VERDICT_FAILED);
	assert_string_equal(text, "gave no answer in time");
	assert_in_range(mc_now_ns() - t, 300 * MC_NS_PER_MS, 15 * MC_NS_PER_S);
}

static void test_environment(void **state)
{
	char text[64];

	(void)state;
	assert_int_equal(verdict("exec:test \"$MC_GUEST $MC_SIDE $MC_REASON $MC_TERM $MC_EPOCH\" = "
	                         "\"vm backup silence 7 42\"",
	                         text),
	                 MC_VERDICT_WON);
	/* No fd of ours is inherited. */
	assert_int_equal(verdict("exec:test $(ls /proc/self/fd | wc -l) -le 4", text),
	                 MC_VERDICT_WON);
}

/* A question that is forgotten says nothing to the next one; the helper's end stops its command. */
static void test_forgotten(void **state)
{
	char command[64] = "exec:read -r word <", name[] = "/tmp/mc-arbiter-XXXXXX", line[64];
	struct mc_arbiter *a;
	int helper, fifo;
	sd_event *e = NULL;
	struct mc_config c;

	(void)state;
	assert_non_null(mkdtemp(name));
	snprintf(line, sizeof(line), "%s/says", name);
	assert_int_equal(mkfifo(line, 0600), 0);
	/* The first one hangs; once somebody writes, each next one reads "lost". */
	strcat(command, line);
	strcat(command, "; exit 1");
	config(&c, command);
	helper = start(&c);
	assert_int_equal(sd_event_new(&e), 0);
	a = ask(e, helper);
	assert_null(mc_arbiter_free(a));
	assert_null(mc_arbiter_free(NULL));
	a = ask(e, helper);
	fifo = open(line, O_RDWR | O_CLOEXEC);
	assert_int_equal(write(fifo, "x\n", 2), 2);
	while (mc_arbiter_verdict(a) == MC_VERDICT_PENDING)
		assert_true(sd_event_run(e, 1000000) >= 0);
	assert_int_equal(mc_arbiter_verdict(a), MC_VERDICT_LOST);
	mc_arbiter_free(a);
	a = ask(e, helper);
	mc_arbiter_free(a);
	sd_event_unref(e);
	stop(helper);
	close(fifo);
	unlink(line);
	rmdir(name);
	config(&c, "none");
	assert_false(mc_arbiter_configured(&c));
}

/* Without its helper a process ends, so that its successor gets a new one. */
static void test_helper_gone(void **state)
{
	struct mc_config c;
	struct mc_arbiter *a, *b = NULL;
	sd_event *e = NULL;
	int helper;

	(void)state;
	config(&c, "exec:kill -9 $PPID; exec sleep 1000");
	helper = start(&c);
	assert_int_equal(sd_event_new(&e), 0);
	a = ask(e, helper);
	assert_int_equal(sd_event_loop(e), 1);
	assert_int_equal(mc_arbiter_verdict(a), MC_VERDICT_FAILED);
	assert_non_null(strstr(mc_arbiter_text(a), "gone"));
	mc_arbiter_free(a);
	assert_true(mc_arbiter_ask(&b, e, helper, 300, MC_REASON_SILENCE, 7, 42) < 0);
	assert_null(b);
	sd_event_unref(e);
	stop(helper);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_verdicts),    cmocka_unit_test(test_time_limit),
	        cmocka_unit_test(test_environment), cmocka_unit_test(test_forgotten),
	        cmocka_unit_test(test_helper_gone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
