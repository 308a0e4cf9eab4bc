/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mcctl status. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "mcctl.h"

static json_t *read_variant(sd_bus_message *m)
{
	const char *contents, *s;
	json_t *v = NULL;
	uint64_t t;
	double d;
	char type;
	int b;

	if (sd_bus_message_peek_type(m, &type, &contents) < 0 ||
	    sd_bus_message_enter_container(m, 'v', contents) < 0)
		return NULL;
	if (contents[0] == 's' && sd_bus_message_read(m, "s", &s) > 0)
		v = json_string(s);
	else if (contents[0] == 't' && sd_bus_message_read(m, "t", &t) > 0)
		v = json_integer((json_int_t)t);
	else if (contents[0] == 'd' && sd_bus_message_read(m, "d", &d) > 0)
		v = json_real(d);
	else if (contents[0] == 'b' && sd_bus_message_read(m, "b", &b) > 0)
		v = json_boolean(b);
	(void)sd_bus_message_exit_container(m);
	return v;
}

/* All properties of a guest as a JSON object; NULL after an error was printed. */
static json_t *guest_json(struct ctl *c, const char *name)
{
	sd_bus_message *m = NULL, *reply = NULL;
	json_t *o = json_object();
	char path[256];
	const char *key;

	if (ctl_guest_path(name, path, sizeof(path)) < 0 ||
	    ctl_new_call(c, &m, path, "org.freedesktop.DBus.Properties", "GetAll") < 0 ||
	    sd_bus_message_append(m, "s", MC_IFACE_GUEST) < 0 ||
	    ctl_call(c, m, name, &reply) != 0) {
		json_decref(o);
		return NULL;
	}
	(void)sd_bus_message_enter_container(reply, 'a', "{sv}");
	while (sd_bus_message_enter_container(reply, 'e', "sv") > 0) {
		if (sd_bus_message_read(reply, "s", &key) > 0)
			json_object_set_new(o, key, read_variant(reply));
		(void)sd_bus_message_exit_container(reply);
	}
	sd_bus_message_unref(reply);
	return o;
}

json_t *status_list(struct ctl *c)
{
	sd_bus_message *m = NULL, *reply = NULL;
	json_t *list = json_array();
	const char *name, *path;

	if (ctl_new_call(c, &m, MC_BUS_ROOT, MC_IFACE_MGR, "ListGuests") < 0 ||
	    ctl_call(c, m, NULL, &reply) != 0) {
		json_decref(list);
		return NULL;
	}
	(void)sd_bus_message_enter_container(reply, 'a', "(so)");
	while (sd_bus_message_read(reply, "(so)", &name, &path) > 0) {
		json_t *g = guest_json(c, name);

		if (g)
			json_array_append_new(list, g);
	}
	sd_bus_message_unref(reply);
	return list;
}

/*
 * What the configuration asks for and isn't so, of guest @only or of all: a list of
 * {name, why}, the former "" for a mistake in a file.  Never NULL.
 */
static json_t *pending_list(struct ctl *c, const char *only)
{
	sd_bus_message *m = NULL, *reply = NULL;
	json_t *list = json_array();
	const char *name, *why;

	/* Who doesn't answer was named by the call before. */
	if (ctl_new_call(c, &m, MC_BUS_ROOT, MC_IFACE_MGR, "ListPending") >= 0 &&
	    sd_bus_call(c->bus, m, 0, NULL, &reply) >= 0)
		(void)sd_bus_message_enter_container(reply, 'a', "(ss)");
	while (reply && sd_bus_message_read(reply, "(ss)", &name, &why) > 0)
		if (!only || strcmp(only, name) == 0)
			json_array_append_new(list,
			                      json_pack("{s:s, s:s}", "name", name, "why", why));
	sd_bus_message_unref(m);
	sd_bus_message_unref(reply);
	return list;
}

static void print_pending(FILE *f, const char *prefix, json_t *pending)
{
	json_t *p;
	size_t i;

	json_array_foreach (pending, i, p) {
		const char *name = json_string_value(json_object_get(p, "name"));

		fprintf(f, "%s%s%s%s\n", prefix, name,
		        name[0] ? " is configured, but can't be begun yet: " : "configuration: ",
		        json_string_value(json_object_get(p, "why")));
	}
}

static double ms(json_t *o, const char *key)
{
	return (double)json_integer_value(json_object_get(o, key)) / 1e6;
}

void status_print_row(json_t *g)
{
	printf("%-20s %-8s %-12s %10lld %9.2f %9.2f %9.2f %9.2f %7lld %6lld\n",
	       json_string_value(json_object_get(g, "Name")),
	       json_string_value(json_object_get(g, "Role")),
	       json_string_value(json_object_get(g, "State")),
	       (long long)json_integer_value(json_object_get(g, "CommittedEpoch")),
	       ms(g, "PauseP50"), ms(g, "PauseP99"), ms(g, "CommitP50"), ms(g, "ReleaseP50"),
	       (long long)json_integer_value(json_object_get(g, "HeldPackets")),
	       (long long)json_integer_value(json_object_get(g, "Slabs")));
}

void status_print_head(void)
{
	printf("%-20s %-8s %-12s %10s %9s %9s %9s %9s %7s %6s\n", "GUEST", "ROLE", "STATE",
	       "COMMITTED", "PAUSE p50", "p99 ms", "COMMIT ms", "REL. ms", "HELD", "SLABS");
}

static void print_table(json_t *list)
{
	json_t *g;
	size_t i;

	status_print_head();
	json_array_foreach (list, i, g)
		status_print_row(g);
}

/* What is in nanoseconds on the bus. */
static bool is_time(const char *key)
{
	static const char *const ends[] = {"P50", "P99", "Max", "Sum", "Time", "Lag"};
	size_t len = strlen(key);

	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		if (len > strlen(ends[i]) && strcmp(key + len - strlen(ends[i]), ends[i]) == 0)
			return true;
	return false;
}

static void print_number(const char *key, long long n)
{
	if (is_time(key))
		printf("%-16s %.3f ms\n", key, (double)n / 1e6);
	else if (strncmp(key, "Sync", 4) == 0)
		printf("%-16s %.1f MiB\n", key, (double)n / (1 << 20));
	else
		printf("%-16s %lld\n", key, n);
}

static void print_guest(json_t *g)
{
	const char *key;
	json_t *v;

	json_object_foreach (g, key, v) {
		if (json_is_string(v))
			printf("%-16s %s\n", key, json_string_value(v));
		else if (json_is_integer(v))
			print_number(key, (long long)json_integer_value(v));
		else if (json_is_real(v))
			printf("%-16s %g%s\n", key, json_real_value(v),
			       strcmp(key, "Interval") == 0 ? " ms" : "");
		else
			printf("%-16s %s\n", key, json_is_true(v) ? "yes" : "no");
	}
}

/* Takes @v over: a guest when there is a @name, else all; NULL: that was said already. */
static int run_check(struct ctl *c, const char *name, json_t *v)
{
	json_t *pending = name && v ? json_array() : pending_list(c, name);
	json_t *list = name && v ? json_pack("[O]", v) : json_incref(v);
	int r = check_print(list, pending, name);

	json_decref(list);
	json_decref(pending);
	json_decref(v);
	return r;
}

static int print_status(struct ctl *c, const char *name, json_t *v, bool as_json)
{
	json_t *pending = v && (as_json || name) ? json_array() : pending_list(c, name);

	if (!v)
		print_pending(stderr, "mcctl: ", pending);
	else if (as_json && json_dumpf(v, stdout, JSON_INDENT(1)) == 0)
		putchar('\n');
	else if (name)
		print_guest(v);
	else
		print_table(v);
	/* Not among the guests, which scripts read. */
	if (v)
		print_pending(stderr, "", pending);
	json_decref(pending);
	json_decref(v);
	return v ? 0 : 1;
}

int cmd_status(struct ctl *c, int argc, char **argv)
{
	const char *name = NULL;
	bool as_json = false, check = false;
	json_t *v;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			as_json = true;
		else if (strcmp(argv[i], "--check") == 0)
			check = true;
		else if (argv[i][0] != '-' && !name)
			name = argv[i];
		else {
			fprintf(stderr, "usage: mcctl status [NAME] [--json|--check]\n");
			return 2;
		}
	}
	v = name ? guest_json(c, name) : status_list(c);
	return check ? run_check(c, name, v) : print_status(c, name, v, as_json);
}
