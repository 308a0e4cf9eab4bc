/* SPDX-License-Identifier: GPL-2.0-or-later */
/* `mc-restore --inspect`: what the supervisor asks before it accepts a standby. */
#include "../ipc/test-process.h"
#include "../qmp/test-guest.h"

#define ARGS                                                                                       \
	"-m 64 -object memory-backend-file,id=ram,size=64M,mem-path=%s,share=on -machine "         \
	"q35,memory-backend=ram"

/* Runs it; the JSON (NULL: none) and the exit status. */
static json_t *inspect(const char *sock, int *status)
{
	char path[600], cmd[800];
	json_t *v;
	FILE *f;

	proc_path("restore", path, sizeof(path));
	snprintf(cmd, sizeof(cmd), "%s --inspect %s%s 2>/dev/null", path, sock ? "--qmp " : "",
	         sock ? sock : "");
	f = popen(cmd, "re");
	assert_non_null(f);
	v = json_loadf(f, 0, NULL);
	*status = WEXITSTATUS(pclose(f));
	return v;
}

static void check_problem(const char *sock, const char *word)
{
	const char *text;
	json_t *v;
	int status;

	v = inspect(sock, &status);
	assert_int_equal(status, 1);
	text = json_string_value(json_array_get(json_object_get(v, "problems"), 0));
	assert_non_null(text);
	if (!strstr(text, word))
		fail_msg("not '%s': %s", word, text);
	json_decref(v);
}

static void test_standby(void **state)
{
	struct guest g;
	json_t *v, *b;
	int status;

	(void)state;
	guest_start(&g, ARGS " -incoming defer");
	g.q = qmp_free(g.q);
	v = inspect(g.sock, &status);
	assert_non_null(v);
	assert_int_equal(status, 0);
	assert_int_equal(json_integer_value(json_object_get(v, "pid")), g.pid);
	assert_int_equal(json_integer_value(json_object_get(v, "ram_bytes")), 64 * MIB);
	assert_string_equal(json_string_value(json_object_get(v, "runstate")), "inmigrate");
	assert_int_equal(json_array_size(json_object_get(v, "problems")), 0);
	b = json_array_get(json_object_get(v, "blocks"), 0);
	assert_string_equal(json_string_value(json_object_get(b, "name")), "ram");
	assert_int_equal(json_integer_value(json_object_get(b, "size")), 64 * MIB);
	json_decref(v);
	guest_end(&g);
}

static void test_problems(void **state)
{
	struct guest g;

	(void)state;
	check_problem("/nowhere/at/all", "no QMP socket");
	guest_start(&g, ARGS);
	check_problem(g.sock, "in use");
	g.q = qmp_free(g.q);
	check_problem(g.sock, "-incoming defer");
	guest_end(&g);
	guest_start(&g, "-m 64 -object memory-backend-ram,id=ram,size=64M -name %s -machine "
	                "q35,memory-backend=ram -incoming defer");
	g.q = qmp_free(g.q);
	check_problem(g.sock, "share=on");
	guest_end(&g);
}

static void test_usage(void **state)
{
	int status;

	(void)state;
	assert_null(inspect(NULL, &status));
	assert_int_equal(status, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_standby),
	        cmocka_unit_test(test_problems),
	        cmocka_unit_test(test_usage),
	};

	return cmocka_run_group_tests(tests, NULL, guests_sweep);
}
