/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The a{sv} of a call becomes a request. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "supervisor.h"

#define OPTIONS_MAX 64 /* of a call, values in lists included */

/* A variant of any plain type as text. */
static int read_value(sd_bus_message *m, char type, char *buf, size_t len)
{
	union {
		double d;
		int32_t i;
		uint32_t u;
		int64_t x;
		uint64_t t;
		uint8_t y;
		int b;
		const char *s;
	} v;
	int r;

	if (!strchr("diuxtybs", type))
		return -EINVAL;
	r = sd_bus_message_read_basic(m, type, &v);
	if (r < 0)
		return r;
	switch (type) {
	case 'd':
		return snprintf(buf, len, "%.6g", v.d), 0;
	case 'i':
		return snprintf(buf, len, "%d", v.i), 0;
	case 'u':
		return snprintf(buf, len, "%u", v.u), 0;
	case 'x':
		return snprintf(buf, len, "%lld", (long long)v.x), 0;
	case 't':
		return snprintf(buf, len, "%llu", (unsigned long long)v.t), 0;
	case 'y':
		return snprintf(buf, len, "%u", v.y), 0;
	case 'b':
		return snprintf(buf, len, "%s", v.b ? "true" : "false"), 0;
	default:
		return strlen(v.s) < len ? (strcpy(buf, v.s), 0) : -EINVAL;
	}
}

/* Every value counts, those in a list too. */
static int count_option(unsigned *n, sd_bus_error *e)
{
	return ++*n > OPTIONS_MAX ? bus_error(e, -EINVAL,
	                                      "more than %d options, or values of them, in a call; "
	                                      "leave out what is given twice",
	                                      OPTIONS_MAX)
	                          : 0;
}

static int read_option(sd_bus_message *m, struct request *rq, const char *key, bool running,
                       unsigned *n, sd_bus_error *e)
{
	char value[1024], why[512];
	const char *contents;
	char type;
	int r = sd_bus_message_peek_type(m, &type, &contents);

	if (r < 0)
		return r;
	r = sd_bus_message_enter_container(m, 'v', contents);
	if (r >= 0 && strcmp(contents, "as") == 0) {
		const char *s;

		r = sd_bus_message_enter_container(m, 'a', "s");
		while (r >= 0 && (r = sd_bus_message_read(m, "s", &s)) > 0) {
			if (count_option(n, e) < 0)
				return -EINVAL;
			r = option_set(rq, key, s, running, why, sizeof(why));
			if (r < 0)
				return bus_error(e, -EINVAL, "%s", why);
		}
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	} else if (r >= 0) {
		if (count_option(n, e) < 0)
			return -EINVAL;
		if (contents[1] || read_value(m, contents[0], value, sizeof(value)) < 0)
			return bus_error(e, -EINVAL,
			                 "%.100s: a value of type '%s' isn't allowed; give a "
			                 "string, a number, a boolean or a list of strings",
			                 key, contents);
		r = option_set(rq, key, value, running, why, sizeof(why));
		if (r < 0)
			return bus_error(e, -EINVAL, "%s", why);
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

int bus_read_options(sd_bus_message *m, struct request *rq, bool running, sd_bus_error *e)
{
	const char *key;
	unsigned n = 0;
	int r = sd_bus_message_enter_container(m, 'a', "{sv}");

	while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
		r = sd_bus_message_read(m, "s", &key);
		if (r >= 0)
			r = read_option(m, rq, key, running, &n, e);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}
