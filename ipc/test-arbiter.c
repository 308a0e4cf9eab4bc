/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "arbiter.h"
#include "util.h"

static void config(struct mc_config *c, const char *arbiter)
{
	mc_config_defaults(c);
	c->side = MC_SIDE_BACKUP;
	strcpy(c->guest, "vm");
	snprintf(c->arbiter, sizeof(c->arbiter), "%s", arbiter);
	atomic_store(&c->arbiter_timeout_ms, 300);
}

static struct mc_arbiter *ask(sd_event *e, const struct mc_config *c)
{
	struct mc_arbiter *a = NULL;

	assert_int_equal(mc_arbiter_ask(&a, e, c, MC_REASON_SILENCE, 7, 42), 0);
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

	config(&c, arbiter);
	assert_int_equal(sd_event_new(&e), 0);
	a = ask(e, &c);
	while (mc_arbiter_verdict(a) == MC_VERDICT_PENDING && mc_now_ns() < end)
		assert_true(sd_event_run(e, 100000) >= 0);
	v = mc_arbiter_verdict(a);
	strcpy(text, mc_arbiter_text(a));
	mc_arbiter_free(a);
	sd_event_unref(e);
	/* Nothing is left to be reaped. */
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
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

static void test_forgotten(void **state)
{
	struct mc_arbiter *a;
	sd_event *e = NULL;
	struct mc_config c;

	(void)state;
	config(&c, "exec:sleep 1000");
	assert_int_equal(sd_event_new(&e), 0);
	a = ask(e, &c);
	assert_null(mc_arbiter_free(a));
	assert_null(mc_arbiter_free(NULL));
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	sd_event_unref(e);
	config(&c, "none");
	assert_false(mc_arbiter_configured(&c));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_verdicts),
	        cmocka_unit_test(test_time_limit),
	        cmocka_unit_test(test_environment),
	        cmocka_unit_test(test_forgotten),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
