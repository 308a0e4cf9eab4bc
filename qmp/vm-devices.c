/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The devices of a machine, by a walk through QEMU's object tree. */
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

#define DEPTH_MAX 12    /* of the tree; QEMU's has 6 levels */
#define NODES_MAX 20000 /* a machine with so many objects isn't one */

struct walk {
	struct qmp *q;
	struct vm_devices *list;
	unsigned nodes;
};

int vm_qom_get(struct qmp *q, const char *path, const char *property, json_t **ret)
{
	int r = qmp_command(q, "qom-get",
	                    json_pack("{s:s, s:s}", "path", path, "property", property),
	                    VM_TIMEOUT_MS, ret);

	return r == -EREMOTEIO ? -ENOENT : r;
}

int vm_qom_string(struct qmp *q, const char *path, const char *property, char *ret, size_t len)
{
	json_t *v = NULL;
	int r = vm_qom_get(q, path, property, &v);

	ret[0] = '\0';
	if (r == 0 && json_is_string(v))
		snprintf(ret, len, "%s", json_string_value(v));
	json_decref(v);
	return r == -ENOENT ? 0 : r;
}

bool vm_device_has(const struct vm_device *d, const char *property)
{
	json_t *p;
	size_t i;

	json_array_foreach (d->props, i, p) {
		const char *name = json_string_value(json_object_get(p, "name"));

		if (name && !strcmp(name, property))
			return true;
	}
	return false;
}

const struct vm_device *vm_device_of(const struct vm_devices *l, const char *path)
{
	const struct vm_device *found = NULL;
	size_t best = 0;

	for (size_t i = 0; i < l->n; i++) {
		size_t n = strlen(l->d[i].path);

		if (n > best && !strncmp(path, l->d[i].path, n) &&
		    (path[n] == '/' || path[n] == '\0')) {
			best = n;
			found = &l->d[i];
		}
	}
	return found;
}

void vm_devices_done(struct vm_devices *l)
{
	for (size_t i = 0; i < l->n; i++) {
		free(l->d[i].path);
		free(l->d[i].type);
		free(l->d[i].id);
		free(l->d[i].bus);
		free(l->d[i].address);
		json_decref(l->d[i].props);
	}
	free(l->d);
	*l = (struct vm_devices){0};
}

static int put_address(FILE *f, const char *name, json_t *v)
{
	json_int_t n = json_integer_value(v);

	if (json_is_string(v)) {
		if (json_string_length(v))
			fprintf(f, " %s=%s", name, json_string_value(v));
	} else if (json_is_integer(v) && n >= 0) {
		if (!strcmp(name, "addr")) /* PCI: slot and function in one byte */
			fprintf(f, " addr=%02llx.%llx", n >> 3 & 0x1f, n & 7);
		else
			fprintf(f, " %s=%llx", name, n);
	}
	return ferror(f) ? -ENOMEM : 0;
}

/* Where on its bus a device sits, whatever the bus calls that. */
static int find_address(struct qmp *q, struct vm_device *d)
{
	static const char *const names[] = {"addr", "port", "channel", "scsi-id", "lun",
	                                    "unit", "nr",   "iobase",  "slot",    "chassis"};
	size_t len;
	FILE *f = open_memstream(&d->address, &len);
	int r = f ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < MC_ARRAY_SIZE(names); i++) {
		json_t *v = NULL;

		if (!vm_device_has(d, names[i]))
			continue;
		r = vm_qom_get(q, d->path, names[i], &v);
		if (r == 0)
			r = put_address(f, names[i], v);
		else if (r == -ENOENT)
			r = 0;
		json_decref(v);
	}
	if (f && fclose(f) != 0)
		r = -ENOMEM;
	return r;
}

static int add_device(struct walk *w, const char *path, const char *type, json_t *props)
{
	static const char user[] = "/machine/peripheral/";
	struct vm_devices *l = w->list;
	struct vm_device *d = reallocarray(l->d, l->n + 1, sizeof(*d));
	const char *id = "";
	char bus[512];
	int r;

	if (!d)
		return -ENOMEM;
	l->d = d;
	if (!strncmp(path, user, strlen(user)) && !strchr(path + strlen(user), '/'))
		id = path + strlen(user);
	r = vm_qom_string(w->q, path, "parent_bus", bus, sizeof(bus));
	if (r < 0)
		return r;
	d = &l->d[l->n++];
	*d = (struct vm_device){.path = strdup(path),
	                        .type = strdup(type),
	                        .id = strdup(id),
	                        .bus = strdup(bus),
	                        .props = json_incref(props)};
	if (!d->path || !d->type || !d->id || !d->bus)
		return -ENOMEM;
	return find_address(w->q, d);
}

static bool list_has(json_t *props, const char *name)
{
	struct vm_device d = {.props = props};

	return vm_device_has(&d, name);
}

static int walk_node(struct walk *w, const char *path, const char *type, unsigned depth);

static int walk_children(struct walk *w, const char *path, json_t *props, unsigned depth)
{
	json_t *p;
	size_t i;
	int r = 0;

	json_array_foreach (props, i, p) {
		const char *name = json_string_value(json_object_get(p, "name"));
		const char *type = json_string_value(json_object_get(p, "type"));
		char child[512], t[128];

		if (!name || !type || sscanf(type, "child<%127[^>]>", t) != 1)
			continue;
		/* the two kinds that make up most of the tree and have nothing in them */
		if (!strcmp(t, "irq") || !strcmp(t, "memory-region"))
			continue;
		if (snprintf(child, sizeof(child), "%s/%s", path, name) >= (int)sizeof(child))
			return -E2BIG;
		r = walk_node(w, child, t, depth + 1);
		if (r < 0)
			break;
	}
	return r;
}

static int walk_node(struct walk *w, const char *path, const char *type, unsigned depth)
{
	json_t *props = NULL;
	int r;

	if (depth > DEPTH_MAX || ++w->nodes > NODES_MAX)
		return -E2BIG;
	r = qmp_command(w->q, "qom-list", json_pack("{s:s}", "path", path), VM_TIMEOUT_MS, &props);
	if (r == -EREMOTEIO)
		return 0; /* unplugged since its parent was listed */
	if (r < 0)
		return r;
	if (list_has(props, "parent_bus"))
		r = add_device(w, path, type, props);
	/* what else is "realized" is a bus: its devices are children of others */
	if (r == 0 && (list_has(props, "parent_bus") || !list_has(props, "realized")))
		r = walk_children(w, path, props, depth);
	json_decref(props);
	return r;
}

int vm_devices_load(struct qmp *q, struct vm_devices *ret)
{
	struct vm_devices l = {0};
	struct walk w = {.q = q, .list = &l};
	int r = walk_node(&w, "/machine", "machine", 0);

	if (r == 0 && !l.n)
		r = -EBADMSG;
	if (r < 0)
		vm_devices_done(&l);
	else
		*ret = l;
	return r;
}
