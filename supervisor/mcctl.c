/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mcctl: the command line on the D-Bus API.  Exit status: 0 done, 1 refused or failed, 2 usage. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mcctl.h"

#define CALL_US 30000000ULL

struct command {
	const char *name;
	int (*run)(struct ctl *c, int argc, char **argv);
	const char *usage;
	bool offline; /* works without the bus */
};

static int usage_of(const struct command *cmd)
{
	fprintf(stderr, "usage: mcctl [--bus=system|session|ADDRESS] %s %s\n", cmd->name,
	        cmd->usage);
	return 2;
}

static int failed(const sd_bus_error *e, int r)
{
	if (sd_bus_error_has_name(e, SD_BUS_ERROR_SERVICE_UNKNOWN) ||
	    sd_bus_error_has_name(e, SD_BUS_ERROR_NAME_HAS_NO_OWNER)) {
		fprintf(stderr, "mcctl: mc-supervisor doesn't run on this bus: systemctl start "
		                "mc-supervisor (guests stay protected without it)\n");
		return 1;
	}
	if (r == -ETIMEDOUT || sd_bus_error_has_name(e, SD_BUS_ERROR_NO_REPLY) ||
	    sd_bus_error_has_name(e, SD_BUS_ERROR_TIMEOUT)) {
		fprintf(stderr, "mcctl: mc-supervisor gives no answer in time; is this host "
		                "overloaded? journalctl -u mc-supervisor\n");
		return 1;
	}
	fprintf(stderr, "mcctl: %s\n", e && e->message ? e->message : strerror(r < 0 ? -r : EIO));
	return 1;
}

int ctl_guest_path(const char *name, char *buf, size_t len)
{
	char *path = NULL;
	int r = sd_bus_path_encode(MC_BUS_ROOT "/guest", name, &path);

	if (r >= 0)
		snprintf(buf, len, "%s", path);
	free(path);
	return r;
}

/* The bus answers "unknown object" for a guest that isn't there: say it in our words. */
static int failed_guest(const char *name, const sd_bus_error *e, int r)
{
	if (sd_bus_error_has_name(e, SD_BUS_ERROR_UNKNOWN_OBJECT) ||
	    sd_bus_error_has_name(e, SD_BUS_ERROR_UNKNOWN_METHOD) ||
	    sd_bus_error_has_name(e, "org.freedesktop.DBus.Error.UnknownInterface")) {
		fprintf(stderr, "mcctl: there is no guest %s here (mcctl status lists them)\n",
		        name);
		return 1;
	}
	return failed(e, r);
}

/* --- options ---------------------------------------------------------------------------- */

int ctl_append_option(sd_bus_message *m, const char *key, const char *value)
{
	return sd_bus_message_append(m, "{sv}", key, "s", value);
}

/* An option that may be given as "--key value" or "--key=value"; its place in argv moves on. */
static int next_option(int argc, char **argv, int *i, char *key, size_t len, const char **value)
{
	const char *arg = argv[*i], *eq;
	bool flag = false, known = false;
	const char *name;

	if (strncmp(arg, "--", 2) != 0)
		return -EINVAL;
	eq = strchr(arg, '=');
	snprintf(key, len, "%.*s", (int)(eq ? eq - arg - 2 : (long)strlen(arg) - 2), arg + 2);
	for (unsigned n = 0; !known && (name = option_name(n, &flag)); n++)
		known = strcmp(name, key) == 0;
	if (!known)
		return -EINVAL;
	if (eq)
		*value = eq + 1;
	else if (flag)
		*value = "true";
	else if (++*i < argc)
		*value = argv[*i];
	else
		return -EINVAL;
	++*i;
	return 0;
}

static int append_options(sd_bus_message *m, int argc, char **argv, bool *dry_run)
{
	int r = sd_bus_message_open_container(m, 'a', "{sv}");

	for (int i = 0; r >= 0 && i < argc;) {
		const char *value;
		char key[64];

		r = next_option(argc, argv, &i, key, sizeof(key), &value);
		if (r < 0) {
			fprintf(stderr,
			        "mcctl: option '%s' isn't known or lacks its value; mcctl --help "
			        "lists all\n",
			        argv[i < argc ? i : argc - 1]);
			return -EINVAL;
		}
		if (dry_run && strcmp(key, "dry-run") == 0)
			*dry_run = true;
		r = ctl_append_option(m, key, value);
	}
	return r < 0 ? r : sd_bus_message_close_container(m);
}

int ctl_new_call(struct ctl *c, sd_bus_message **m, const char *path, const char *iface,
                 const char *method)
{
	return sd_bus_message_new_method_call(c->bus, m, MC_BUS_NAME, path, iface, method);
}

int ctl_call(struct ctl *c, sd_bus_message *m, const char *name, sd_bus_message **reply)
{
	sd_bus_error e = SD_BUS_ERROR_NULL;
	int r = sd_bus_call(c->bus, m, CALL_US, &e, reply);

	sd_bus_message_unref(m);
	r = r < 0 ? (name ? failed_guest(name, &e, r) : failed(&e, r)) : 0;
	sd_bus_error_free(&e);
	return r;
}

/* --- starting and ending ------------------------------------------------------------------ */

static uint64_t get_number(struct ctl *c, const char *path, const char *prop)
{
	uint64_t v = 0;

	(void)sd_bus_get_property_trivial(c->bus, MC_BUS_NAME, path, MC_IFACE_GUEST, prop, NULL,
	                                  't', &v);
	return v;
}

static char *get_text(struct ctl *c, const char *path, const char *prop)
{
	char *s = NULL;

	(void)sd_bus_get_property_string(c->bus, MC_BUS_NAME, path, MC_IFACE_GUEST, prop, NULL, &s);
	return s;
}

/* Shows the first copy until it is over, when somebody looks. */
static int show_progress(struct ctl *c, const char *name)
{
	char path[256];
	int status = -1;

	if (!isatty(STDOUT_FILENO) || ctl_guest_path(name, path, sizeof(path)) < 0)
		return 0;
	while (status < 0) {
		char *state = get_text(c, path, "State");
		uint64_t done = get_number(c, path, "SyncDone"),
		         total = get_number(c, path, "SyncTotal");

		printf("\r%s: %s, first copy %llu of %llu MiB   ", name, state ? state : "?",
		       (unsigned long long)done >> 20, (unsigned long long)total >> 20);
		fflush(stdout);
		if (!state || strcmp(state, "SYNCING") != 0)
			status = state && strcmp(state, "PROTECTED") == 0 ? 0 : 1;
		free(state);
		(void)poll(NULL, 0, 200);
	}
	putchar('\n');
	if (status) {
		char *why = get_text(c, path, "Message");

		fprintf(stderr, "mcctl: %s\n", why && why[0] ? why : "the protection ended");
		free(why);
	}
	return status;
}

static int start(struct ctl *c, const char *method, int argc, char **argv, const char *usage)
{
	sd_bus_message *m = NULL, *reply = NULL;
	bool dry_run = false;
	const char *text;
	int r;

	if (argc < 2 || argv[1][0] == '-') {
		fprintf(stderr, "usage: mcctl %s %s\n", argv[0], usage);
		return 2;
	}
	r = ctl_new_call(c, &m, MC_BUS_ROOT, MC_IFACE_MGR, method);
	if (r >= 0)
		r = sd_bus_message_append(m, "s", argv[1]);
	if (r >= 0)
		r = append_options(m, argc - 2, argv + 2, &dry_run);
	if (r < 0) {
		sd_bus_message_unref(m);
		return 2;
	}
	r = ctl_call(c, m, NULL, &reply);
	if (r == 0 && dry_run && sd_bus_message_read(reply, "s", &text) > 0)
		printf("guest %s can be protected; a standby for it:\n%s\n", argv[1], text);
	sd_bus_message_unref(reply);
	return r || dry_run || strcmp(method, "Protect") != 0 ? r : show_progress(c, argv[1]);
}

static int cmd_protect(struct ctl *c, int argc, char **argv)
{
	return start(c, "Protect", argc, argv,
	             "NAME --qmp SOCKET --peer ADDRESS:PORT [--interval MS] "
	             "[--nic IFNAME | --relay NETDEV=unix:PATH,tap=IF | --gate none] [--accept "
	             "TYPE] [--dry-run] ...");
}

static int cmd_standby(struct ctl *c, int argc, char **argv)
{
	return start(c, "Standby", argc, argv,
	             "NAME --qmp SOCKET [--nic IFNAME | --relay NETDEV=unix:PATH,tap=IF] ...");
}

static int cmd_standby_args(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *m = NULL, *reply = NULL;
	const char *text;
	int r;

	if (argc < 4) {
		fprintf(stderr, "usage: mcctl standby-args NAME --qmp SOCKET [--accept TYPE]\n");
		return 2;
	}
	r = ctl_new_call(c, &m, MC_BUS_ROOT, MC_IFACE_MGR, "StandbyArgs");
	if (r >= 0)
		r = append_options(m, argc - 2, argv + 2, NULL);
	if (r < 0) {
		sd_bus_message_unref(m);
		return 2;
	}
	r = ctl_call(c, m, NULL, &reply);
	if (r == 0 && sd_bus_message_read(reply, "s", &text) > 0)
		puts(text);
	sd_bus_message_unref(reply);
	return r;
}

static int cmd_unprotect(struct ctl *c, int argc, char **argv)
{
	sd_bus_message *m = NULL;

	if (argc != 2) {
		fprintf(stderr, "usage: mcctl unprotect NAME\n");
		return 2;
	}
	if (ctl_new_call(c, &m, MC_BUS_ROOT, MC_IFACE_MGR, "Unprotect") < 0 ||
	    sd_bus_message_append(m, "s", argv[1]) < 0)
		return 1;
	return ctl_call(c, m, NULL, NULL);
}

static const struct command commands[] = {
        {"standby", cmd_standby,
         "NAME --qmp SOCKET [--nic IFNAME | --relay NETDEV=unix:PATH,tap=IF] [OPTIONS]", false},
        {"standby-args", cmd_standby_args, "NAME --qmp SOCKET", false},
        {"protect", cmd_protect, "NAME --qmp SOCKET --peer ADDRESS:PORT [OPTIONS] [--dry-run]",
         false},
        {"unprotect", cmd_unprotect, "NAME", false},
        {"status", cmd_status, "[NAME] [--json|--check]", false},
        {"top", cmd_top, "[--once|--rounds N]", false},
        {"checkpoint", cmd_checkpoint, "NAME", false},
        {"failover", cmd_failover, "NAME [--planned]", false},
        {"rehearse", cmd_rehearse, "NAME", false},
        {"hold", cmd_hold, "NAME", false},
        {"resume", cmd_resume, "NAME", false},
        {"resolve", cmd_resolve, "NAME promote|demote", false},
        {"set", cmd_set, "NAME KEY=VALUE...", false},
        {"workers", cmd_workers, "NAME STAGE N", false},
        {"restart", cmd_restart, "NAME STAGE", false},
        {"events", cmd_events, "NAME [--json]", false},
        {"metrics", cmd_metrics, "--prometheus", false},
        {"reload", cmd_reload, "", false},
        {"check-config", cmd_check_config, "[FILE|DIRECTORY]", true},
        {"doctor", cmd_doctor, "", true},
        {"arena", cmd_arena, "NAME | --file PATH", true},
};

#define NCOMMANDS (sizeof(commands) / sizeof(commands[0]))

static int usage(FILE *f)
{
	const char *name;
	bool flag;

	fprintf(f, "usage: mcctl [--bus=system|session|ADDRESS] COMMAND ...\n\n");
	for (size_t i = 0; i < NCOMMANDS; i++)
		fprintf(f, "  %-13s %s\n", commands[i].name, commands[i].usage);
	fprintf(f, "\noptions of standby and protect:\n ");
	for (unsigned i = 0; (name = option_name(i, &flag)); i++)
		fprintf(f, " --%s%s", name, flag ? "" : "=...");
	fputc('\n', f);
	return f == stdout ? 0 : 2;
}

int ctl_connect(struct ctl *c)
{
	int r;

	if (strcmp(c->bus_address, "system") == 0)
		return sd_bus_open_system(&c->bus);
	if (strcmp(c->bus_address, "session") == 0)
		return sd_bus_open_user(&c->bus);
	r = sd_bus_new(&c->bus);
	if (r >= 0)
		r = sd_bus_set_address(c->bus, c->bus_address);
	if (r >= 0)
		r = sd_bus_set_bus_client(c->bus, 1);
	return r < 0 ? r : sd_bus_start(c->bus);
}

static int no_bus(const struct ctl *c, int r, int argc, char **argv)
{
	fprintf(stderr,
	        "mcctl: can't connect to the %s bus: %s; is dbus running, and may you use "
	        "it?\n",
	        c->bus_address, strerror(-r));
	for (int i = 2; i < argc; i++)
		if (strcmp(argv[1], "status") == 0 && strcmp(argv[i], "--check") == 0)
			return check_print(NULL, NULL, NULL);
	return 1;
}

int main(int argc, char **argv)
{
	struct ctl c = {.bus_address = getenv("MC_BUS") ?: "system"};
	int r;

	if (argc > 1 && strncmp(argv[1], "--bus=", 6) == 0) {
		c.bus_address = argv[1] + 6;
		argc--;
		argv++;
	}
	if (argc > 1 && strcmp(argv[1], "--help") == 0)
		return usage(stdout);
	for (size_t i = 0; argc > 1 && i < NCOMMANDS; i++) {
		if (strcmp(argv[1], commands[i].name) != 0)
			continue;
		if (argc > 2 && strcmp(argv[2], "--help") == 0)
			return usage_of(&commands[i]) * 0;
		r = commands[i].offline ? 0 : ctl_connect(&c);
		if (r < 0)
			return no_bus(&c, r, argc, argv);
		r = commands[i].run(&c, argc - 1, argv + 1);
		sd_bus_flush_close_unref(c.bus);
		return r;
	}
	return usage(stderr);
}
