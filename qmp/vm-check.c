/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Can this guest be protected wholly?  Refusals by allow list. */
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

bool vm_in_list(const char *list, const char *name, size_t n)
{
	for (const char *p = list; p && *p;) {
		size_t skip = strspn(p, " ,"), w = strcspn(p + skip, " ,");

		if (w && w == n && !memcmp(p + skip, name, n))
			return true;
		p += skip + w;
	}
	return false;
}

bool vm_accepted(const struct vm_refusals *r, const char *name)
{
	return vm_in_list(r->accept, name, strlen(name));
}

int vm_refuse(struct vm_refusals *r, const char *fmt, ...)
{
	char line[512], *p;
	va_list ap;
	size_t n;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line) - 1, fmt, ap);
	va_end(ap);
	n = strcspn(line, "\n");
	line[n++] = '\n';
	line[n] = '\0';
	/* a NIC of several queues, for one, is listed once for each */
	if (r->text && strstr(r->text, line))
		return 0;
	p = realloc(r->text, r->len + n + 1);
	if (!p)
		return -ENOMEM;
	memcpy(p + r->len, line, n + 1);
	r->text = p;
	r->len += n;
	return 0;
}

/* --- devices ---------------------------------------------------------------------------- */

struct device_check {
	struct qmp *q;
	json_t *chardevs; /* answer to query-chardev */
	struct vm_refusals *r;
};

/* True when what goes into the character device @label is thrown away. */
static bool is_null_chardev(json_t *chardevs, const char *label)
{
	json_t *c;
	size_t i;

	json_array_foreach (chardevs, i, c) {
		const char *l = json_string_value(json_object_get(c, "label"));
		const char *file = json_string_value(json_object_get(c, "filename"));

		if (l && file && !strcmp(l, label) && !strcmp(file, "null"))
			return true;
	}
	return false;
}

/* 1: refused; 0: not; or negative errno. */
static int check_chardev(struct device_check *c, const struct vm_device *d)
{
	char label[128];
	int r;

	if (!vm_device_has(d, "chardev"))
		return 0;
	r = vm_qom_string(c->q, d->path, "chardev", label, sizeof(label));
	if (r < 0 || !label[0] || is_null_chardev(c->chardevs, label))
		return r;
	r = vm_refuse(c->r,
	              "device %s writes to character device %s, which no gate holds back; remove "
	              "it or use -chardev null, or protect with --accept %s if that output may be "
	              "seen before it is safe",
	              d->type, label, d->type);
	return r < 0 ? r : 1;
}

/* What QEMU makes of a refused or accepted device by itself goes with it. */
static bool is_part_of(const struct vm_device *d, const struct vm_device *whole)
{
	size_t n = strlen(whole->path);

	return !strncmp(d->path, whole->path, n) && d->path[n] == '/';
}

static int check_devices(struct qmp *q, struct vm_refusals *r)
{
	const struct vm_device *judged = NULL;
	struct device_check c = {.q = q, .r = r};
	struct vm_devices all = {0};
	int e = vm_devices_load(q, &all);

	if (e == 0)
		e = qmp_command(q, "query-chardev", NULL, VM_TIMEOUT_MS, &c.chardevs);
	for (size_t i = 0; e >= 0 && i < all.n; i++) {
		const struct vm_device *d = &all.d[i];

		if (judged && is_part_of(d, judged))
			continue;
		judged = d;
		if (vm_accepted(r, d->type))
			continue;
		if (vm_type_allowed(d->type)) {
			e = check_chardev(&c, d);
			judged = e > 0 ? d : NULL;
		} else {
			e = vm_refuse(r,
			              "device %s%s%s isn't known to be safe to replicate; remove "
			              "it, or protect with --accept %s",
			              d->type, d->id[0] ? " " : "", d->id, d->type);
		}
	}
	json_decref(c.chardevs);
	vm_devices_done(&all);
	return e < 0 ? e : 0;
}

static int check_objects(struct qmp *q, struct vm_refusals *rf)
{
	json_t *list = NULL, *o;
	size_t i;
	int r = qmp_command(q, "qom-list", json_pack("{s:s}", "path", "/objects"), VM_TIMEOUT_MS,
	                    &list);

	if (r < 0)
		return r;
	json_array_foreach (list, i, o) {
		const char *name = json_string_value(json_object_get(o, "name"));
		const char *child = json_string_value(json_object_get(o, "type"));
		char type[128];

		if (!name || !child || sscanf(child, "child<%127[^>]>", type) != 1)
			continue;
		if (vm_object_allowed(type) || vm_accepted(rf, type))
			continue;
		r = vm_refuse(
		        rf,
		        "object %s of type %s isn't known to be safe to replicate; remove it, "
		        "or protect with --accept %s",
		        name, type, type);
		if (r < 0)
			break;
	}
	json_decref(list);
	return r;
}

/* --- memory ----------------------------------------------------------------------------- */

static int check_blocks(const struct vm_info *i, struct vm_refusals *r)
{
	for (unsigned n = 0; n < i->nblocks; n++) {
		if (i->block[n].shared)
			continue;
		/* nothing can vouch for memory that can't be read */
		if (vm_refuse(r,
		              "RAM block %s is private memory of QEMU; start it with "
		              "-object memory-backend-file,id=ram,size=SIZE,"
		              "mem-path=/dev/shm/NAME,share=on -machine memory-backend=ram",
		              i->block[n].name) < 0)
			return -ENOMEM;
	}
	return 0;
}

/* What the guest can't write: firmware and option ROMs, tables made by QEMU. */
static bool is_rom(const char *name)
{
	size_t n = strlen(name);

	return !strncmp(name, "/rom@", 5) || !strcmp(name, "pc.bios") || !strcmp(name, "pc.rom") ||
	       !strcmp(name, "isa-bios") || !strncmp(name, "system.flash", 12) ||
	       (n > 4 && !strcmp(name + n - 4, ".rom"));
}

struct block_check {
	const struct vm_info *i;
	struct vm_refusals *r;
};

static int check_ramblock(void *ctx, const struct vm_ramblock *b)
{
	const char *slash = strrchr(b->name, '/');
	const char *last = slash ? slash + 1 : b->name;
	struct block_check *c = ctx;

	for (unsigned n = 0; n < c->i->nblocks; n++)
		if (!strcmp(c->i->block[n].name, b->name))
			return 0;
	if (is_rom(b->name) || vm_accepted(c->r, b->name) || vm_accepted(c->r, last))
		return 0;
	return vm_refuse(
	        c->r,
	        "memory %s of a device is outside the shared RAM and can't be tracked; "
	        "remove the device (-vga none), or protect with --accept %s if its content "
	        "may be lost",
	        b->name, last);
}

/* --- QEMU's own objections -------------------------------------------------------------- */

static int check_migration(struct qmp *q, struct vm_refusals *rf)
{
	static const char *const under_way[] = {
	        "setup",          "cancelling", "active",      "postcopy-active",
	        "pre-switchover", "device",     "wait-unplug", "colo"};
	json_t *v = NULL, *reasons, *text;
	const char *status;
	size_t i;
	int r = qmp_command(q, "query-migrate", NULL, VM_TIMEOUT_MS, &v);

	if (r < 0)
		return r;
	status = json_string_value(json_object_get(v, "status"));
	for (i = 0; r == 0 && status && i < MC_ARRAY_SIZE(under_way); i++)
		if (!strcmp(status, under_way[i]))
			r = vm_refuse(rf,
			              "a migration of this guest is under way (%s); cancel it or "
			              "wait for its end",
			              status);
	reasons = json_object_get(v, "blocked-reasons");
	json_array_foreach (reasons, i, text) {
		if (r == 0 && json_is_string(text) && !vm_accepted(rf, "migration-blocker"))
			r = vm_refuse(rf,
			              "QEMU can't save all state of this guest (%s); remove the "
			              "device, or protect with --accept migration-blocker",
			              json_string_value(text));
	}
	json_decref(v);
	return r;
}

static int check_all(struct qmp *q, const struct vm_info *i, const char *gated,
                     struct vm_refusals *rf)
{
	struct block_check blocks = {i, rf};
	int r = check_blocks(i, rf);

	if (r == 0)
		r = check_devices(q, rf);
	if (r == 0)
		r = vm_ramblocks(q, check_ramblock, &blocks);
	if (r == 0)
		r = vm_check_disks(q, rf);
	if (r == 0)
		r = vm_check_network(q, i->pid, gated, rf);
	if (r == 0)
		r = check_objects(q, rf);
	return r < 0 ? r : check_migration(q, rf);
}

int vm_check(struct qmp *q, const struct vm_info *i, const char *accept, const char *gated,
             char *why, size_t why_len, char **all)
{
	struct vm_refusals rf = {.accept = accept ? accept : ""};
	int r = check_all(q, i, gated, &rf);

	if (r < 0) {
		free(rf.text);
		return vm_fail(why, why_len, r,
		               "can't examine the guest by QMP: %s %s; is this QEMU 7.2 or newer? "
		               "Try again",
		               strerror(-r), qmp_error(q));
	}
	if (!rf.text) {
		if (all && !(*all = strdup("")))
			return -ENOMEM;
		return 0;
	}
	snprintf(why, why_len, "%.*s", (int)strcspn(rf.text, "\n"), rf.text);
	if (all)
		*all = rf.text;
	else
		free(rf.text);
	return -EPERM;
}
