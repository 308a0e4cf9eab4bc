/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What callers can make the supervisor allocate is bounded, and the refusal says by what. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "supervisor.h"

static struct request *request(void)
{
	static struct request rq;

	request_init(&rq);
	strcpy(rq.cfg.guest, "vm");
	strcpy(rq.cfg.qmp, "/nowhere");
	strcpy(rq.cfg.peer, "127.0.0.1:7911");
	rq.gate = REQUEST_GATE_NONE;
	rq.gate_given = true;
	return &rq;
}

static void test_guests(void **state)
{
	struct manager m = {.nguests = GUESTS_MAX - 1};
	char why[640] = "";

	(void)state;
	assert_int_equal(start_check(&m, request(), true, why, sizeof(why)), 0);
	m.nguests++;
	assert_int_equal(start_check(&m, request(), true, why, sizeof(why)), -ENOSPC);
	assert_non_null(strstr(why, "guest vm"));
	assert_non_null(strstr(why, "256 guests"));
}

static void test_examinations(void **state)
{
	struct manager m = {.njobs = JOBS_MAX};
	char why[640] = "";

	(void)state;
	assert_int_equal(start_examine(&m, request(), true, why, sizeof(why)), -EBUSY);
	assert_non_null(strstr(why, "guest vm"));
	assert_non_null(strstr(why, "try again"));
}

static void test_rehearsals(void **state)
{
	struct mc_arena_params p = {.slab_size = 65536,
	                            .max_memory = 4 * 65536,
	                            .ram_pages = 16,
	                            .side = MC_SIDE_BACKUP};
	static struct guest g[REHEARSALS + 1];
	struct manager m = {.guests = g};
	sd_bus_error e = SD_BUS_ERROR_NULL;

	(void)state;
	for (unsigned i = 0; i <= REHEARSALS; i++) {
		g[i] = (struct guest){
		        .m = &m, .side = MC_SIDE_BACKUP, .next = i < REHEARSALS ? &g[i + 1] : NULL};
		/* Somebody waits for it. */
		g[i].rehearsal = i < REHEARSALS ? (sd_bus_message *)&g[i] : NULL;
	}
	strcpy(g[REHEARSALS].name, "vm");
	assert_int_equal(mc_arena_create(&g[REHEARSALS].arena, NULL, &p), 0);
	atomic_store(&g[REHEARSALS].arena.control->state, MC_STATE_PROTECTED);
	assert_int_equal(guest_state(&g[REHEARSALS]), MC_STATE_PROTECTED);
	assert_true(rehearse_begin(&g[REHEARSALS], NULL, &e) < 0);
	assert_string_equal(e.name, MC_ERROR("Busy"));
	assert_non_null(strstr(e.message, "guest vm: 4 guests are being rehearsed"));
	sd_bus_error_free(&e);
	mc_arena_done(&g[REHEARSALS].arena);
}

/* A call with an a{sv} of @keys options, the last one a list of @values. */
static int read_options(sd_bus *bus, unsigned keys, unsigned values, sd_bus_error *e)
{
	sd_bus_message *m = NULL;
	int r = sd_bus_message_new_method_call(bus, &m, "a.b", "/", "a.b", "C");

	assert_true(r >= 0);
	assert_true(sd_bus_message_open_container(m, 'a', "{sv}") >= 0);
	for (unsigned i = 1; i < keys; i++)
		assert_true(sd_bus_message_append(m, "{sv}", "interval", "s", "25") >= 0);
	assert_true(sd_bus_message_open_container(m, 'e', "sv") >= 0);
	assert_true(sd_bus_message_append(m, "s", "interval") >= 0);
	assert_true(sd_bus_message_open_container(m, 'v', "as") >= 0);
	assert_true(sd_bus_message_open_container(m, 'a', "s") >= 0);
	while (values--)
		assert_true(sd_bus_message_append(m, "s", "25") >= 0);
	for (int i = 0; i < 4; i++)
		assert_true(sd_bus_message_close_container(m) >= 0);
	assert_true(sd_bus_message_seal(m, 1, 0) >= 0);
	r = bus_read_options(m, request(), false, e);
	sd_bus_message_unref(m);
	return r;
}

static void test_options(void **state)
{
	sd_bus_error e = SD_BUS_ERROR_NULL;
	sd_bus *bus = NULL;
	int fd[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	assert_true(sd_bus_new(&bus) >= 0);
	assert_true(sd_bus_set_fd(bus, fd[0], fd[0]) >= 0);
	assert_true(sd_bus_start(bus) >= 0);
	assert_true(read_options(bus, 64, 1, &e) >= 0);
	assert_true(read_options(bus, 1, 64, &e) >= 0);
	assert_true(read_options(bus, 65, 1, &e) < 0);
	assert_non_null(strstr(e.message, "more than 64 options"));
	sd_bus_error_free(&e);
	/* A list is no way around it. */
	assert_true(read_options(bus, 2, 64, &e) < 0);
	assert_string_equal(e.name, MC_ERROR("Invalid"));
	sd_bus_error_free(&e);
	sd_bus_unref(bus);
	close(fd[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_guests),
	        cmocka_unit_test(test_examinations),
	        cmocka_unit_test(test_rehearsals),
	        cmocka_unit_test(test_options),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
