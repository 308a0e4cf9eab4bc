/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whatever a process writes can be sent, stored and shown. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "bus-props.h"
#include "text.h"

static void check(const char *in, bool lines, const char *out)
{
	char buf[64];

	strcpy(buf, in);
	assert_string_equal(text_clean(buf, lines), out);
}

static void test_kept(void **state)
{
	(void)state;
	check("", false, "");
	check("plain text, 100%", false, "plain text, 100%");
	check("/run/g\303\244ste/\342\202\254 \360\237\230\200", false,
	      "/run/g\303\244ste/\342\202\254 \360\237\230\200");
	check("one\ntwo", true, "one\ntwo");
}

static void test_replaced(void **state)
{
	(void)state;
	check("one\ntwo\tthree\r", false, "one two three ");
	check("\033[31mred\177\001", false, "?[31mred??");
	check("cut \342\202", false, "cut ??");               /* in the middle of a character */
	check("\377\376\200", true, "???");                   /* never begins one */
	check("\300\257 \340\200\257", false, "?? ???");      /* longer than need be */
	check("\302\233J", false, "??J");                     /* CSI, as one of C1 */
	check("\355\240\200 \357\277\277", false, "??? ???"); /* a surrogate, U+FFFF */
	check("\364\220\200\200", false, "????");             /* beyond Unicode */
}

/* Every pair and, around the limits, triple of bytes: the bus takes what comes out. */
static void test_bus_takes_it(void **state)
{
	static const uint8_t third[] = {0x01, 0x41, 0x7f, 0x80, 0xa0, 0xbe, 0xbf, 0xc2, 0xff};
	sd_bus_message *m = NULL;
	sd_bus *bus = NULL;
	int fd[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	assert_true(sd_bus_new(&bus) >= 0);
	assert_true(sd_bus_set_fd(bus, fd[0], fd[0]) >= 0);
	assert_true(sd_bus_start(bus) >= 0);
	for (unsigned pair = 0; pair < 65536; pair++) {
		char s[4] = {(char)(pair >> 8 ?: 1), (char)(pair & 0xff ?: 1)};

		if (pair % 1024 == 0) {
			sd_bus_message_unref(m);
			assert_true(sd_bus_message_new_method_call(bus, &m, "a.b", "/", "a.b",
			                                           "C") >= 0);
		}
		s[2] = (char)third[pair % sizeof(third)];
		assert_true(sd_bus_message_append(m, "s", text_clean(s, false)) >= 0);
		assert_int_equal(strlen(s), 3);
	}
	sd_bus_message_unref(m);
	sd_bus_unref(bus);
	close(fd[1]);
}

/* What stands in the arena doesn't take the answer to a caller along. */
static void test_properties(void **state)
{
	static const char *const names[] = {"Message", "Security", "Peer", "Qmp"};
	struct mc_arena_params p = {.slab_size = 65536,
	                            .max_memory = 4 * 65536,
	                            .ram_pages = 16,
	                            .side = MC_SIDE_PRIMARY};
	static struct mc_config config;
	struct guest g = {.side = MC_SIDE_PRIMARY};
	sd_bus_message *m = NULL;
	sd_bus *bus = NULL;
	int fd[2];

	(void)state;
	assert_int_equal(mc_arena_create(&g.arena, NULL, &p), 0);
	g.arena.config = &config;
	memset(g.arena.control->refusal, 0xff, sizeof(g.arena.control->refusal));
	memset(g.arena.control->security, 0xe2, sizeof(g.arena.control->security));
	strcpy(config.peer, "host\377");
	strcpy(config.qmp, "/run/\033x");
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	assert_true(sd_bus_new(&bus) >= 0);
	assert_true(sd_bus_set_fd(bus, fd[0], fd[0]) >= 0);
	assert_true(sd_bus_start(bus) >= 0);
	assert_true(sd_bus_message_new_method_call(bus, &m, "a.b", "/", "a.b", "C") >= 0);
	for (size_t i = 0; i < MC_ARRAY_SIZE(names); i++)
		assert_true(guest_property_text(bus, "/", "a.b", names[i], m, &g, NULL) >= 0);
	assert_true(sd_bus_message_seal(m, 1, 0) >= 0);
	for (size_t i = 0; i < MC_ARRAY_SIZE(names); i++) {
		const char *text;

		assert_true(sd_bus_message_read(m, "s", &text) > 0);
		assert_non_null(strchr(text, '?'));
	}
	sd_bus_message_unref(m);
	sd_bus_unref(bus);
	close(fd[1]);
	mc_arena_done(&g.arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_kept),
	        cmocka_unit_test(test_replaced),
	        cmocka_unit_test(test_bus_takes_it),
	        cmocka_unit_test(test_properties),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
