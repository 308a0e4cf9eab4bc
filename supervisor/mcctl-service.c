/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mcctl events, metrics, reload, check-config. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../ipc/util.h"
#include "mcctl.h"

/* Calls a method of the Manager that answers with one text. */
static int call_text(struct ctl *c, const char *method, const char *arg, sd_bus_message **reply,
                     const char **text)
{
	sd_bus_message *m = NULL;
	int r = ctl_new_call(c, &m, MC_BUS_ROOT, MC_IFACE_MGR, method);

	if (r >= 0 && arg)
		r = sd_bus_message_append(m, "s", arg);
	if (r < 0) {
		sd_bus_message_unref(m);
		return 1;
	}
	r = ctl_call(c, m, arg, reply);
	return r == 0 && sd_bus_message_read(*reply, "s", text) <= 0 ? 1 : r;
}

static const char *text_of(json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "-";
}

static void print_event(const char *line, size_t len)
{
	json_t *o = json_loadb(line, len, 0, NULL);
	json_int_t epoch = json_integer_value(json_object_get(o, "epoch"));
	char at[32] = "";

	if (!o)
		return;
	if (epoch)
		snprintf(at, sizeof(at), "epoch %lld", (long long)epoch);
	printf("%s  %-12s  %-14s  term %-3lld  %-14s  %s\n", text_of(o, "time"),
	       text_of(o, "event"), text_of(o, "by"),
	       (long long)json_integer_value(json_object_get(o, "term")), at, text_of(o, "text"));
	json_decref(o);
}

int cmd_events(struct ctl *c, int argc, char **argv)
{
	bool as_json = argc == 3 && strcmp(argv[2], "--json") == 0;
	sd_bus_message *reply = NULL;
	const char *text = NULL;
	int r;

	if (argc != 2 && !as_json) {
		fprintf(stderr, "usage: mcctl events NAME [--json]\n");
		return 2;
	}
	r = call_text(c, "Events", argv[1], &reply, &text);
	if (r == 0 && as_json)
		fputs(text, stdout);
	while (r == 0 && !as_json && *text) {
		size_t n = strcspn(text, "\n");

		print_event(text, n);
		text += n + (text[n] == '\n');
	}
	sd_bus_message_unref(reply);
	return r;
}

int cmd_metrics(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *reply = NULL;
	const char *text = NULL;
	int r;

	if (argc != 2 || strcmp(argv[1], "--prometheus") != 0) {
		fprintf(stderr, "usage: mcctl metrics --prometheus\n");
		return 2;
	}
	r = call_text(c, "Metrics", NULL, &reply, &text);
	if (r == 0)
		fputs(text, stdout);
	sd_bus_message_unref(reply);
	return r;
}

int cmd_reload(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *reply = NULL;
	const char *text = NULL;
	int r;

	(void)argv;
	if (argc != 1) {
		fprintf(stderr, "usage: mcctl reload\n");
		return 2;
	}
	r = call_text(c, "Reload", NULL, &reply, &text);
	if (r == 0)
		puts(text);
	sd_bus_message_unref(reply);
	return r;
}

static void print_mistake(void *ctx, const char *text)
{
	(void)ctx;
	fprintf(stderr, "%s\n", text);
}

int cmd_check_config(struct ctl *c, int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : CONF_DIR;
	struct guest_conf *list = NULL;
	struct stat st;
	int r;

	(void)c;
	if (argc > 2 || path[0] == '-') {
		fprintf(stderr, "usage: mcctl check-config [FILE|DIRECTORY]\n");
		return 2;
	}
	if (stat(path, &st) < 0 && (argc > 1 || errno != ENOENT)) {
		fprintf(stderr, "mcctl: %s: %s\n", path, strerror(errno));
		return 1;
	}
	r = argc > 1 && !S_ISDIR(st.st_mode) ? conf_read(path, &list, print_mistake, NULL)
	                                     : conf_read_dir(path, &list, print_mistake, NULL);
	for (struct guest_conf *g = list; g; g = g->next)
		printf("guest %s: %s of QEMU %s%s%s\n", g->rq.cfg.guest,
		       g->primary ? "primary" : "standby", g->rq.cfg.qmp,
		       g->primary ? ", peer " : "", g->primary ? g->rq.cfg.peer : "");
	if (r == 0 && !list)
		printf("%s: no guest is configured\n", path);
	conf_free(list);
	return r ? 1 : 0;
}
