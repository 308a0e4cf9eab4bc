/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line of a throw-away QEMU. */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/util.h"
#include "rehearse.h"

struct list {
	char **v;
	size_t n, room;
	bool failed; /* no memory */
};

static void add(struct list *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct list *l, const char *fmt, ...)
{
	va_list ap;
	int r;

	if (l->n + 2 > l->room) {
		size_t room = l->room ? l->room * 2 : 64;
		char **v = realloc(l->v, room * sizeof(*v));

		if (!v) {
			l->failed = true;
			return;
		}
		l->v = v;
		l->room = room;
	}
	va_start(ap, fmt);
	r = vasprintf(&l->v[l->n], fmt, ap);
	va_end(ap);
	if (r < 0)
		l->failed = true;
	else
		l->n++;
	l->v[l->n] = NULL;
}

/* The value of @key in "a,b=c,key=value" or in JSON; "" when there is none. */
static void option_value(const char *text, const char *key, char *buf, size_t len)
{
	size_t k = strlen(key);

	buf[0] = '\0';
	if (text[0] == '{') {
		json_t *j = json_loads(text, 0, NULL), *v = json_object_get(j, key);

		if (json_is_string(v))
			snprintf(buf, len, "%s", json_string_value(v));
		else if (json_is_boolean(v))
			snprintf(buf, len, "%s", json_is_true(v) ? "on" : "off");
		json_decref(j);
		return;
	}
	for (const char *p = text; p; p = strchr(p, ',')) {
		p += *p == ',';
		if (strncmp(p, key, k) == 0 && p[k] == '=')
			snprintf(buf, len, "%.*s", (int)strcspn(p + k + 1, ","), p + k + 1);
	}
}

/* The first word of an option's value, or the member that JSON has for it. */
static void option_type(const char *text, const char *key, char *buf, size_t len)
{
	option_value(text, key, buf, len);
	if (!buf[0] && text[0] != '{')
		snprintf(buf, len, "%.*s", (int)strcspn(text, ","), text);
}

/* What is made of an option and its value. */
struct rewrite {
	struct list *out;
	const struct rehearse_ram *ram;
	unsigned nram, hubs;
	char *why;
	size_t why_len;
};

static int refuse(struct rewrite *w, const char *option, const char *value)
{
	snprintf(w->why, w->why_len,
	         "the standby's option %s %.100s can't be rehearsed: it could do harm outside; "
	         "leave it out, or test this standby by a planned switchover",
	         option, value ? value : "");
	return -EPERM;
}

static int keep(struct rewrite *w, const char *option, const char *value)
{
	add(w->out, "%s", option);
	if (value)
		add(w->out, "%s", value);
	return 0;
}

static int drop(struct rewrite *w, const char *option, const char *value)
{
	(void)w;
	(void)option;
	(void)value;
	return 0;
}

static int null_console(struct rewrite *w, const char *option, const char *value)
{
	bool inside = strncmp(value, "chardev:", 8) == 0 || strcmp(value, "none") == 0;

	return keep(w, option, inside ? value : "null");
}

static int null_chardev(struct rewrite *w, const char *option, const char *value)
{
	char id[128];

	option_value(value, "id", id, sizeof(id));
	add(w->out, "%s", option);
	add(w->out, "null,id=%s", id);
	return 0;
}

/* A hub with this port only; a tap's guests have offloads that only a tap can take. */
static int no_network(struct rewrite *w, const char *option, const char *value)
{
	char id[128], type[32];

	option_value(value, "id", id, sizeof(id));
	option_type(value, "type", type, sizeof(type));
	add(w->out, "%s", option);
	if (strcmp(type, "tap") == 0)
		add(w->out, "tap,id=%s,ifname=rehearse%u,script=no,downscript=no", id, w->hubs++);
	else
		add(w->out, "hubport,id=%s,hubid=%u", id, w->hubs++);
	return 0;
}

static int private_ram(struct rewrite *w, const char *option, const char *value)
{
	char id[64], type[64];

	option_type(value, "qom-type", type, sizeof(type));
	option_value(value, "id", id, sizeof(id));
	if (strncmp(type, "filter-", 7) == 0)
		return 0; /* of a network that isn't there */
	if (strncmp(type, "memory-backend-", 15) != 0)
		return keep(w, option, value);
	for (unsigned i = 0; i < w->nram; i++) {
		if (strcmp(id, w->ram[i].id) != 0)
			continue;
		add(w->out, "%s", option);
		add(w->out, "memory-backend-file,id=%s,size=%llu,mem-path=%s,share=off", id,
		    (unsigned long long)w->ram[i].size, w->ram[i].path);
		return 0;
	}
	return refuse(w, option, value);
}

static int only_readable(struct rewrite *w, const char *option, const char *value)
{
	static const char *const keys[] = {"readonly", "read-only"};
	char v[32];

	for (size_t i = 0; i < MC_ARRAY_SIZE(keys); i++) {
		option_value(value, keys[i], v, sizeof(v));
		if (strcmp(v, "on") == 0)
			return keep(w, option, value);
	}
	option_value(value, "media", v, sizeof(v));
	return strcmp(v, "cdrom") == 0 ? keep(w, option, value) : refuse(w, option, value);
}

static int none_only(struct rewrite *w, const char *option, const char *value)
{
	return strcmp(value, "none") == 0 ? keep(w, option, value) : refuse(w, option, value);
}

static const struct {
	const char *name;
	bool has_value;
	int (*fn)(struct rewrite *w, const char *option, const char *value);
} rules[] = {
        {"S", false, drop},
        {"s", false, drop},
        {"daemonize", false, drop},
        {"nographic", false, drop},
        {"incoming", true, drop},
        {"loadvm", true, drop},
        {"qmp", true, drop},
        {"qmp-pretty", true, drop},
        {"monitor", true, drop},
        {"mon", true, drop},
        {"pidfile", true, drop},
        {"gdb", true, drop},
        {"D", true, drop},
        {"d", true, drop},
        {"vnc", true, drop},
        {"spice", true, drop},
        {"display", true, drop},
        {"chroot", true, drop},
        {"runas", true, drop},
        {"serial", true, null_console},
        {"parallel", true, null_console},
        {"debugcon", true, null_console},
        {"chardev", true, null_chardev},
        {"netdev", true, no_network},
        {"object", true, private_ram},
        {"drive", true, only_readable},
        {"blockdev", true, only_readable},
        {"net", true, none_only},
        {"nic", true, none_only},
        {"hda", true, refuse},
        {"hdb", true, refuse},
        {"hdc", true, refuse},
        {"hdd", true, refuse},
        {"fda", true, refuse},
        {"fdb", true, refuse},
        {"sd", true, refuse},
        {"mtdblock", true, refuse},
        {"pflash", true, refuse},
        {"fsdev", true, refuse},
        {"virtfs", true, refuse},
        {"tpmdev", true, refuse},
        {"readconfig", true, refuse},
        {"plugin", true, refuse},
        /* Their values may look like options. */
        {"append", true, keep},
        {"name", true, keep},
        {"kernel", true, keep},
        {"initrd", true, keep},
        {"global", true, keep},
};

static int rewrite_one(struct rewrite *w, char *const **p)
{
	const char *option = *(*p)++, *name = option + 1;

	name += *name == '-'; /* one dash or two */
	for (size_t i = 0; option[0] == '-' && i < MC_ARRAY_SIZE(rules); i++) {
		const char *value = NULL;

		if (strcmp(name, rules[i].name) != 0)
			continue;
		if (rules[i].has_value) {
			value = *(*p);
			if (!value)
				return refuse(w, option, "without a value");
			(*p)++;
		}
		return rules[i].fn(w, option, value);
	}
	return keep(w, option, NULL);
}

int rehearse_args(char *const *standby, const struct rehearse_ram *ram, unsigned nram, int qmp_fd,
                  char ***ret, char *why, size_t why_len)
{
	struct list l = {0};
	struct rewrite w = {.out = &l, .ram = ram, .nram = nram, .why = why, .why_len = why_len};
	char *const *p = standby;
	int e = 0;

	if (*p)
		add(&l, "%s", *p++);
	while (e == 0 && *p)
		e = rewrite_one(&w, &p);
	add(&l, "-S");
	add(&l, "-incoming");
	add(&l, "defer");
	add(&l, "-display");
	add(&l, "none");
	add(&l, "-monitor");
	add(&l, "none");
	add(&l, "-chardev");
	add(&l, "socket,id=mc-rehearse,fd=%d", qmp_fd);
	add(&l, "-mon");
	add(&l, "chardev=mc-rehearse,mode=control");
	if (l.failed)
		e = -ENOMEM;
	if (e < 0) {
		rehearse_args_free(l.v);
		return e;
	}
	*ret = l.v;
	return 0;
}

void rehearse_args_free(char **argv)
{
	for (char **p = argv; p && *p; p++)
		free(*p);
	free(argv);
}
