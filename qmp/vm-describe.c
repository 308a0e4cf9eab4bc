/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The text that must be equal on both ends. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/control.h"
#include "../ipc/util.h"
#include "vm-private.h"

#define TIMEOUT_MS 3000
#define LINES_MAX  512

struct lines {
	char *line[LINES_MAX];
	size_t n;
	size_t bytes;
};

static int add_line(struct lines *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int add_line(struct lines *l, const char *fmt, ...)
{
	va_list ap;
	char *s;
	int r;

	va_start(ap, fmt);
	r = vasprintf(&s, fmt, ap);
	va_end(ap);
	if (r < 0)
		return -ENOMEM;
	if (l->n == LINES_MAX || l->bytes + (size_t)r + 1 >= MC_DESC_TEXT) {
		free(s);
		return -E2BIG;
	}
	l->line[l->n++] = s;
	l->bytes += (size_t)r + 1;
	return 0;
}

static void lines_done(struct lines *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->line[i]);
}

static int compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static char *join(struct lines *l)
{
	char *s = calloc(1, l->bytes + 1), *p = s;

	qsort(l->line, l->n, sizeof(l->line[0]), compare);
	for (size_t i = 0; s && i < l->n; i++)
		p += sprintf(p, "%s\n", l->line[i]);
	return s;
}

/* The value after "key = " of an indented property line, without its end of line. */
static int property(const char *line, size_t len, const char *key, char *ret, size_t ret_len)
{
	size_t k = strlen(key);

	while (len && *line == ' ')
		line++, len--;
	if (len < k + 3 || memcmp(line, key, k) != 0 || memcmp(line + k, " = ", 3) != 0)
		return 0;
	snprintf(ret, ret_len, "%.*s", (int)(len - k - 3), line + k + 3);
	return 1;
}

static size_t indent_of(const char *line)
{
	return strspn(line, " ");
}

int vm_devices(struct qmp *q, vm_device_fn fn, void *ctx)
{
	char mc_autofree *tree = NULL;
	char type[128] = "", id[128] = "", addr[64] = "";
	size_t indent = 0;
	int r = qmp_hmp(q, "info qtree", TIMEOUT_MS, &tree);

	for (char *line = tree; r >= 0 && line && *line;) {
		size_t len = strcspn(line, "\r\n");
		char t[128], name[128] = "";

		if (sscanf(line, " dev: %127[^,], id \"%127[^\"]\"", t, name) >= 1) {
			if (type[0])
				r = fn(ctx, type, id, addr);
			strcpy(type, t);
			strcpy(id, name);
			addr[0] = '\0';
			indent = indent_of(line);
		} else if (indent_of(line) == indent + 2 && !addr[0]) {
			(void)property(line, len, "addr", addr, sizeof(addr));
		}
		line += len;
		line += strspn(line, "\r\n");
	}
	if (r >= 0 && type[0])
		r = fn(ctx, type, id, addr);
	return r < 0 ? r : 0;
}

static int describe_device(void *ctx, const char *type, const char *id, const char *addr)
{
	return add_line(ctx, "device %s%s%s%s%s", type, id[0] ? " id " : "", id,
	                addr[0] ? " addr " : "", addr);
}

static int describe_version(struct qmp *q, struct lines *l)
{
	json_t *v = NULL, *n;
	int r = qmp_command(q, "query-version", NULL, TIMEOUT_MS, &v);

	if (r < 0)
		return r;
	n = json_object_get(v, "qemu");
	r = add_line(l, "qemu version %d.%d.%d %s",
	             (int)json_integer_value(json_object_get(n, "major")),
	             (int)json_integer_value(json_object_get(n, "minor")),
	             (int)json_integer_value(json_object_get(n, "micro")),
	             json_string_value(json_object_get(v, "package")) ?: "");
	json_decref(v);
	return r;
}

static int qom_type(struct qmp *q, const char *path, char *ret, size_t len)
{
	json_t *v = NULL;
	int r = qmp_command(q, "qom-get", json_pack("{s:s, s:s}", "path", path, "property", "type"),
	                    TIMEOUT_MS, &v);

	if (r == 0)
		snprintf(ret, len, "%s", json_string_value(v) ?: "?");
	json_decref(v);
	return r;
}

static int describe_machine(struct qmp *q, struct lines *l)
{
	char type[128];
	int r = qom_type(q, "/machine", type, sizeof(type));

	return r < 0 ? r : add_line(l, "machine %s", type);
}

static int describe_cpus(struct qmp *q, struct lines *l)
{
	json_t *cpus = NULL, *c;
	char type[128];
	size_t n;
	int r = qmp_command(q, "query-cpus-fast", NULL, TIMEOUT_MS, &cpus);

	if (r < 0)
		return r;
	json_array_foreach(cpus, n, c)
	{
		const char *path = json_string_value(json_object_get(c, "qom-path"));

		r = path ? qom_type(q, path, type, sizeof(type)) : -EBADMSG;
		if (r == 0)
			r = add_line(l, "cpu %zu %s", n, type);
		if (r < 0)
			break;
	}
	json_decref(cpus);
	return r;
}

int vm_describe(struct qmp *q, struct vm_info *i, char *why, size_t why_len)
{
	struct lines l = {0};
	int r = describe_version(q, &l);

	if (r == 0)
		r = describe_machine(q, &l);
	if (r == 0)
		r = describe_cpus(q, &l);
	for (unsigned n = 0; r == 0 && n < i->nblocks; n++)
		r = add_line(&l, "ram %s %" PRIu64 " bytes", i->block[n].name, i->block[n].size);
	if (r == 0)
		r = vm_devices(q, describe_device, &l);
	if (r == 0 && !(i->description = join(&l)))
		r = -ENOMEM;
	lines_done(&l);
	if (r < 0)
		return vm_fail(why, why_len, r, "can't describe the machine by QMP: %s%s",
		               strerror(-r), qmp_error(q));
	return 0;
}

int vm_description_diff(const char *ours, const char *theirs, char *why, size_t why_len)
{
	while (*ours || *theirs) {
		size_t a = strcspn(ours, "\n"), b = strcspn(theirs, "\n");

		if (a != b || memcmp(ours, theirs, a) != 0) {
			snprintf(why, why_len, "'%.*s' here, '%.*s' there", (int)a,
			         a ? ours : "nothing", (int)b, b ? theirs : "nothing");
			return 1;
		}
		ours += a + (ours[a] == '\n');
		theirs += b + (theirs[b] == '\n');
	}
	return 0;
}
