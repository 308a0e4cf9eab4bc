/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The history of a guest: bounded, and what is damaged takes nothing else along. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

#define FILE_MAX (257 * 1024) /* of each of the two */

static char dir[] = "/tmp/test-events-XXXXXX", path[64], old[64];
static struct manager manager = {.state_dir = dir};
static struct guest guest = {.m = &manager, .name = "vm", .side = MC_SIDE_BACKUP};
static struct mc_config config;

static int begin(void **state)
{
	struct mc_arena_params p = {.slab_size = 65536,
	                            .max_memory = 4 * 65536,
	                            .ram_pages = 16,
	                            .side = MC_SIDE_BACKUP};

	(void)state;
	mc_log_setup("test", NULL, LOG_EMERG);
	if (!mkdtemp(dir) || mc_arena_create(&guest.arena, NULL, &p) < 0)
		return -1;
	snprintf(path, sizeof(path), "%s/vm.events", dir);
	snprintf(old, sizeof(old), "%s/vm.events.old", dir);
	return 0;
}

static int forget(void **state)
{
	(void)state;
	(void)remove(path);
	(void)remove(old);
	return 0;
}

static int end(void **state)
{
	(void)state;
	mc_arena_done(&guest.arena);
	return rmdir(dir);
}

static off_t size_of(const char *file)
{
	struct stat st;

	return stat(file, &st) == 0 ? st.st_size : -1;
}

/* As another supervisor would read it, whole: every line is an event. */
static json_t *history(void)
{
	struct manager another = {.state_dir = dir};
	char *text = NULL;
	json_t *list = json_array();

	assert_int_equal(event_read(&another, "vm", &text), 0);
	assert_true(strlen(text) <= 66 * 1024);
	for (char *line = text, *next; *line; line = next) {
		next = strchr(line, '\n') + 1;
		json_array_append_new(list, json_loadb(line, (size_t)(next - line), 0, NULL));
		assert_non_null(json_array_get(list, json_array_size(list) - 1));
	}
	free(text);
	return list;
}

static const char *field(json_t *list, ssize_t n, const char *key)
{
	size_t at = n < 0 ? json_array_size(list) - (size_t)-n : (size_t)n;

	return json_string_value(json_object_get(json_array_get(list, at), key));
}

static void write_to(const char *file, const void *data, size_t len)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_APPEND, 0600);

	assert_int_equal(write(fd, data, len), len);
	close(fd);
}

static void test_none(void **state)
{
	char *text = NULL;

	(void)state;
	assert_int_equal(event_read(&manager, "vm", &text), -ENOENT);
	assert_null(text);
}

static void test_bounded(void **state)
{
	json_t *list;

	(void)state;
	for (int i = 0; i < 3000; i++) {
		event_write_by(&guest, "state", "test", 7, "number %d of many %0500d", i, 0);
		assert_true(size_of(path) <= FILE_MAX && size_of(old) <= FILE_MAX);
	}
	assert_true(size_of(old) > FILE_MAX / 2);
	list = history();
	assert_true(json_array_size(list) > 50);
	assert_non_null(strstr(field(list, -1, "text"), "number 2999 of"));
	assert_string_equal(field(list, -1, "by"), "test");
	/* What is kept has no gap. */
	for (size_t i = 0; i < json_array_size(list); i++) {
		char want[32];

		snprintf(want, sizeof(want), "number %zu of", 3000 - json_array_size(list) + i);
		assert_non_null(strstr(field(list, (ssize_t)i, "text"), want));
	}
	json_decref(list);
}

/* An older file that can't be replaced doesn't let the newer one grow. */
static void test_bounded_all_the_same(void **state)
{
	char inside[80];

	(void)state;
	snprintf(inside, sizeof(inside), "%s/x", old);
	assert_int_equal(mkdir(old, 0700), 0);
	write_to(inside, "", 0);
	for (int i = 0; i < 1000; i++)
		event_write_by(&guest, "state", "test", 0, "%0500d", i);
	assert_true(size_of(path) > FILE_MAX / 2 && size_of(path) <= FILE_MAX);
	(void)remove(inside);
}

static void test_damaged(void **state)
{
	static const char nonsense[] =
	        "\0\0\0\377\376nonsense\033[2J\n{\"event\":\"state\"}\n[1]\n\"x\"\n";
	json_t *list;

	(void)state;
	event_write_by(&guest, "state", "test", 0, "one");
	write_to(path, nonsense, sizeof(nonsense) - 1);
	event_write_by(&guest, "state", "test", 0, "two");
	write_to(path, "{\"time\":\"20", 11); /* the host died */
	event_write_by(&guest, "state", "test", 0, "three");
	list = history();
	assert_int_equal(json_array_size(list), 4);
	assert_string_equal(field(list, 0, "text"), "one");
	assert_string_equal(field(list, 1, "text"), "two");
	assert_string_equal(field(list, 2, "text"), "three");
	assert_string_equal(field(list, 3, "event"), "history");
	assert_non_null(strstr(field(list, 3, "text"), "5 lines of "));
	assert_non_null(strstr(field(list, 3, "text"), path));
	json_decref(list);
}

/* Without a single line, and larger than what is read. */
static void test_all_damaged(void **state)
{
	char *junk = malloc(100000);
	json_t *list;

	(void)state;
	memset(junk, 0xff, 100000);
	write_to(path, junk, 100000);
	free(junk);
	list = history();
	assert_int_equal(json_array_size(list), 1);
	assert_non_null(strstr(field(list, 0, "text"), "damaged"));
	json_decref(list);
}

/* One of the two can't be read: the other one is shown. */
static void test_unreadable(void **state)
{
	json_t *list;

	(void)state;
	event_write_by(&guest, "state", "test", 0, "one");
	assert_int_equal(rename(path, old), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	list = history();
	assert_int_equal(json_array_size(list), 2);
	assert_string_equal(field(list, 0, "text"), "one");
	assert_non_null(strstr(field(list, 1, "text"), "vm.events can't be read: Is a directory"));
	json_decref(list);
}

/* What a process sends may be anything: it is kept, in a form that everybody can read. */
static void test_any_text(void **state)
{
	json_t *list;

	(void)state;
	event_write_by(&guest, "\033[2J", "test", 0, "g\303\244ste \377 \033]0;x\a cut\342\202");
	event_write_by(&guest, "state", "test", 0, "%0639d\342\202\254",
	               0); /* cut by our own limit */
	list = history();
	assert_int_equal(json_array_size(list), 2);
	assert_string_equal(field(list, 0, "event"), "?[2J");
	assert_string_equal(field(list, 0, "text"), "g\303\244ste ? ?]0;x? cut??");
	json_decref(list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_teardown(test_none, forget),
	        cmocka_unit_test_teardown(test_bounded, forget),
	        cmocka_unit_test_teardown(test_bounded_all_the_same, forget),
	        cmocka_unit_test_teardown(test_damaged, forget),
	        cmocka_unit_test_teardown(test_all_damaged, forget),
	        cmocka_unit_test_teardown(test_unreadable, forget),
	        cmocka_unit_test_teardown(test_any_text, forget),
	};

	guest.arena.config = &config;
	return cmocka_run_group_tests(tests, begin, end);
}
