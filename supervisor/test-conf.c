/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Configuration files: what is read, and how mistakes are named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "conf.h"

static char dir[64], path[128], said[8192];

static void collect(void *ctx, const char *text)
{
	(void)ctx;
	strncat(said, text, sizeof(said) - strlen(said) - 2);
	strcat(said, "\n");
}

static void put(const char *name, const char *text)
{
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
}

static int set_up(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/test-conf-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
	char cmd[128];

	(void)state;
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

static void test_whole_file(void **state)
{
	struct guest_conf *c = NULL;

	(void)state;
	said[0] = '\0';
	put("vm.conf", "# a comment\n\n  role = primary\nqmp=/run/q\npeer = 127.0.0.1:7911\n"
	               "interval = 12.5\nrelay = n0=unix:/r0,tap=tap0\n"
	               "relay = n1=unix:/r1,tap=tap1\ninsecure = yes");
	assert_int_equal(conf_read(path, &c, collect, NULL), 0);
	assert_string_equal(said, "");
	assert_string_equal(c->rq.cfg.guest, "vm");
	assert_true(c->primary);
	assert_int_equal(atomic_load(&c->rq.cfg.interval_us), 12500);
	assert_int_equal(c->rq.cfg.nnics, 2);
	assert_string_equal(c->rq.cfg.nic[1].tap, "tap1");
	assert_null(conf_free(c));
}

/* What a file says, and a piece of what must be said about it. */
static const struct {
	const char *text, *expected;
} bad[] = {
        {"role = primary\nqmp = /q\npeer = 127.0.0.1:1\ngate = none\ninterval = often\n",
         ".conf:5: interval: 'often' isn't allowed; it must be 1..60000"},
        {"role = standby\nqmp = /q\ncolour = red\n", ".conf:3: there is no key 'colour'"},
        {"role = standby\nqmp = /q\nqmp = /p\n", ".conf:3: qmp was given in line 2 already"},
        {"role = standby\nqmp\n", ".conf:2: 'qmp' isn't KEY = VALUE"},
        {"role = boss\nqmp = /q\n", ".conf:1: role: 'boss' isn't allowed"},
        {"qmp = /q\n", ".conf: role is missing"},
        {"role = standby\n", ".conf: qmp is missing"},
        {"role = primary\nqmp = /q\ngate = none\n", ".conf: peer is missing"},
        {"role = primary\nqmp = /q\npeer = 127.0.0.1:1\nnic = tap0\ngate = relay\n",
         "gate relay can't hold a tap"},
        {"role = standby\nqmp = /q\ndry-run = yes\n", ".conf:3: there is no key 'dry-run'"},
        {"role = standby\nqmp =\n", ".conf:2: qmp: ''"},
};

static void test_mistakes(void **state)
{
	struct guest_conf *c = NULL;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		said[0] = '\0';
		put("vm.conf", bad[i].text);
		assert_true(conf_read(path, &c, collect, NULL) < 0);
		assert_null(c);
		if (!strstr(said, bad[i].expected))
			fail_msg("'%s' isn't in: %s", bad[i].expected, said);
	}
}

/* Every mistake of a file is told at once. */
static void test_all_mistakes(void **state)
{
	struct guest_conf *c = NULL;

	(void)state;
	said[0] = '\0';
	put("vm.conf", "role = primary\nx = 1\ny = 2\ninterval = -1\n");
	assert_true(conf_read(path, &c, collect, NULL) < 0);
	assert_non_null(strstr(said, ":2:"));
	assert_non_null(strstr(said, ":3:"));
	assert_non_null(strstr(said, ":4:"));
}

static void test_directory(void **state)
{
	struct guest_conf *list = NULL;

	(void)state;
	said[0] = '\0';
	put("b.conf", "role = standby\nqmp = /b\n");
	put("a.conf", "role = standby\nqmp = /a\n");
	put("c.conf", "role = standby\n");
	put(".hidden.conf", "nonsense");
	put("README", "nonsense");
	put("bad name.conf", "role = standby\nqmp = /c\n");
	assert_int_equal(conf_read_dir(dir, &list, collect, NULL),
	                 3); /* vm.conf of a test before */
	assert_string_equal(list->rq.cfg.guest, "a");
	assert_string_equal(list->next->rq.cfg.guest, "b");
	assert_null(list->next->next);
	assert_non_null(strstr(said, "its name must be that of the guest"));
	conf_free(list);
	assert_int_equal(conf_read_dir("/nonexistent", &list, collect, NULL), 0);
	assert_null(list);
}

static void test_not_text(void **state)
{
	struct guest_conf *c = NULL;
	FILE *f;

	(void)state;
	said[0] = '\0';
	put("vm.conf", "");
	f = fopen(path, "w");
	fwrite("role = standby\nqmp = /\0q\n", 1, 25, f);
	fclose(f);
	assert_true(conf_read(path, &c, collect, NULL) < 0);
	assert_non_null(strstr(said, "isn't a text file"));
	f = fopen(path, "w");
	for (int i = 0; i < CONF_SIZE_MAX; i++)
		fputs("# ", f);
	fclose(f);
	assert_true(conf_read(path, &c, collect, NULL) < 0);
	assert_non_null(strstr(said, "at most 65536 bytes"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_whole_file),   cmocka_unit_test(test_mistakes),
	        cmocka_unit_test(test_all_mistakes), cmocka_unit_test(test_directory),
	        cmocka_unit_test(test_not_text),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
