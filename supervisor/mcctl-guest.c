/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mcctl's commands on a guest that is there: one method each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mcctl.h"

static int simple(struct ctl *c, const char *method, int argc, char **argv)
{
	sd_bus_message *m = NULL;
	char path[256];

	if (argc != 2) {
		fprintf(stderr, "usage: mcctl %s NAME\n", argv[0]);
		return 2;
	}
	if (ctl_guest_path(argv[1], path, sizeof(path)) < 0 ||
	    ctl_new_call(c, &m, path, MC_IFACE_GUEST, method) < 0)
		return 1;
	return ctl_call(c, m, argv[1], NULL);
}

int cmd_checkpoint(struct ctl *c, int argc, char **argv)
{
	return simple(c, "Checkpoint", argc, argv);
}

int cmd_rehearse(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *m = NULL, *reply = NULL;
	const char *text;
	char path[256];
	int r;

	if (argc != 2) {
		fprintf(stderr, "usage: mcctl rehearse NAME\n");
		return 2;
	}
	if (ctl_guest_path(argv[1], path, sizeof(path)) < 0 ||
	    ctl_new_call(c, &m, path, MC_IFACE_GUEST, "Rehearse") < 0)
		return 1;
	r = ctl_call(c, m, argv[1], &reply);
	if (r == 0 && sd_bus_message_read(reply, "s", &text) > 0)
		printf("guest %s: %s\n", argv[1], text);
	sd_bus_message_unref(reply);
	return r;
}

int cmd_hold(struct ctl *c, int argc, char **argv)
{
	return simple(c, "Hold", argc, argv);
}

int cmd_resume(struct ctl *c, int argc, char **argv)
{
	return simple(c, "Resume", argc, argv);
}

int cmd_failover(struct ctl *c, int argc, char **argv)
{
	bool planned = argc == 3 && strcmp(argv[2], "--planned") == 0;
	sd_bus_message *m = NULL;
	char path[256];

	if (argc != 2 && !planned) {
		fprintf(stderr, "usage: mcctl failover NAME [--planned]\n");
		return 2;
	}
	if (ctl_guest_path(argv[1], path, sizeof(path)) < 0 ||
	    ctl_new_call(c, &m, path, MC_IFACE_GUEST, "Failover") < 0 ||
	    sd_bus_message_append(m, "b", planned) < 0)
		return 1;
	return ctl_call(c, m, argv[1], NULL);
}

int cmd_resolve(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *m = NULL;
	char path[256];

	if (argc != 3) {
		fprintf(stderr, "usage: mcctl resolve NAME promote|demote\n");
		return 2;
	}
	if (ctl_guest_path(argv[1], path, sizeof(path)) < 0 ||
	    ctl_new_call(c, &m, path, MC_IFACE_GUEST, "Resolve") < 0 ||
	    sd_bus_message_append(m, "s", argv[2]) < 0)
		return 1;
	return ctl_call(c, m, argv[1], NULL);
}

int cmd_set(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *m = NULL;
	char path[256];
	int r;

	if (argc < 3) {
		fprintf(stderr, "usage: mcctl set NAME KEY=VALUE...\n");
		return 2;
	}
	if (ctl_guest_path(argv[1], path, sizeof(path)) < 0 ||
	    ctl_new_call(c, &m, path, MC_IFACE_GUEST, "Set") < 0)
		return 1;
	r = sd_bus_message_open_container(m, 'a', "{sv}");
	for (int i = 2; r >= 0 && i < argc; i++) {
		char *eq = strchr(argv[i], '=');

		if (!eq) {
			fprintf(stderr, "mcctl: '%s' isn't KEY=VALUE; for example interval=25\n",
			        argv[i]);
			sd_bus_message_unref(m);
			return 2;
		}
		*eq = '\0';
		r = ctl_append_option(m, argv[i], eq + 1);
	}
	if (r >= 0)
		r = sd_bus_message_close_container(m);
	return r < 0 ? 1 : ctl_call(c, m, argv[1], NULL);
}

int cmd_workers(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *m = NULL;
	char path[256], *end;
	unsigned long n = argc == 4 ? strtoul(argv[3], &end, 10) : 0;

	if (argc != 4 || *end || n > UINT32_MAX) {
		fprintf(stderr, "usage: mcctl workers NAME STAGE N\n");
		return 2;
	}
	if (ctl_guest_path(argv[1], path, sizeof(path)) < 0 ||
	    ctl_new_call(c, &m, path, MC_IFACE_GUEST, "SetWorkers") < 0 ||
	    sd_bus_message_append(m, "su", argv[2], (uint32_t)n) < 0)
		return 1;
	return ctl_call(c, m, argv[1], NULL);
}

int cmd_restart(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *m = NULL;
	char path[256], stage[320], what[160];
	enum mc_role role;

	if (argc != 3) {
		fprintf(stderr, "usage: mcctl restart NAME STAGE\n");
		return 2;
	}
	if (mc_role_parse(argv[2], 0, &role) < 0 || role == MC_ROLE_SUPERVISOR) {
		fprintf(stderr,
		        "mcctl: there is no stage '%.32s'; stages are capture, stage, transport, "
		        "netgate, restore\n",
		        argv[2]);
		return 1;
	}
	snprintf(what, sizeof(what), "%.63s with a process mc-%s", argv[1], mc_role_name(role));
	if (ctl_guest_path(argv[1], path, sizeof(path)) < 0)
		return 1;
	snprintf(stage, sizeof(stage), "%s/%.32s/0", path, argv[2]);
	if (ctl_new_call(c, &m, stage, MC_IFACE_STAGE, "Restart") < 0)
		return 1;
	return ctl_call(c, m, what, NULL);
}
