/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared by the vm*.c files only. */
#ifndef MC_QMP_VM_PRIVATE_H
#define MC_QMP_VM_PRIVATE_H

#include <stdarg.h>

#include "vm.h"

#define VM_TIMEOUT_MS 3000 /* for each command of an inspection */

/* Formats a sentence into @why and returns @r. */
int vm_fail(char *why, size_t len, int r, const char *fmt, ...)
        __attribute__((format(printf, 4, 5)));

/* Makes i->description. */
int vm_describe(struct qmp *q, struct vm_info *i, char *why, size_t why_len);

/* /proc/PID/cmdline: *len bytes of NUL terminated words, malloc'ed. 0 or negative errno. */
int vm_read_cmdline(pid_t pid, char **ret, size_t *len);

/* vm-firmware.c: a line that says which firmware the machine has; "" when it has none of its own.
 */
int vm_firmware_describe(struct qmp *q, pid_t pid, char *line, size_t len);

/* True when @name (of @n bytes) is one of the comma separated words of @list (NULL ok). */
bool vm_in_list(const char *list, const char *name, size_t n);

/* --- devices, vm-devices.c ------------------------------------------------------------- */

struct vm_device {
	char *path;    /* in QEMU's object tree */
	char *type;    /* "virtio-net-pci" */
	char *id;      /* of -device; "" when it has none */
	char *bus;     /* path of the bus it sits on; "" when on none */
	char *address; /* on that bus: " addr=02.0", " iobase=3f8"; may be "" */
	json_t *props; /* answer to qom-list: names and types */
};

struct vm_devices {
	struct vm_device *d;
	size_t n;
};

/* All devices, a device before those that it consists of.  0 or negative errno. */
int vm_devices_load(struct qmp *q, struct vm_devices *ret);
void vm_devices_done(struct vm_devices *l);
bool vm_device_has(const struct vm_device *d, const char *property);
/* The device that @path leads into (a bus or part of it); NULL: none. */
const struct vm_device *vm_device_of(const struct vm_devices *l, const char *path);

/* A property as a new reference; 0, -ENOENT (QEMU knows none such), negative errno. */
int vm_qom_get(struct qmp *q, const char *path, const char *property, json_t **ret);
/* A string property; "" when there is none. */
int vm_qom_string(struct qmp *q, const char *path, const char *property, char *ret, size_t len);

/* --- RAM blocks ------------------------------------------------------------------------ */

/* A line of QEMU's list of RAM blocks. */
struct vm_ramblock {
	char name[256]; /* without "/objects/" */
	uint64_t size;
};
typedef int (*vm_ramblock_fn)(void *ctx, const struct vm_ramblock *b);
/* Calls @fn for each RAM block until it returns negative. */
int vm_ramblocks(struct qmp *q, vm_ramblock_fn fn, void *ctx);
/* The name of a RAM block that is a memory backend, without what old machine types put before. */
const char *vm_block_name(const char *name);

/*
 * Finds the mapping of a block whose hva is known: fills in dev, ino, page_size, shared.
 * A private one is no error here.  0, or negative errno with a sentence.
 */
int vm_map_block(const struct vm_info *i, struct vm_block *b, char *why, size_t len);

/* --- checks, vm-check*.c --------------------------------------------------------------- */

struct vm_refusals {
	const char *accept; /* comma separated; never NULL */
	char *text;         /* a line each */
	size_t len;
};

/* Adds a line unless it is there already. 0 or -ENOMEM. */
int vm_refuse(struct vm_refusals *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool vm_accepted(const struct vm_refusals *r, const char *name);
int vm_check_network(struct qmp *q, pid_t pid, const char *gated, struct vm_refusals *r);
/* The interface of a tap, from its line of `info network`: by name or by descriptor. */
int vm_tap_name(pid_t pid, const char *info, char name[16]);
int vm_check_disks(struct qmp *q, struct vm_refusals *r);
bool vm_type_allowed(const char *type);   /* of a device */
bool vm_object_allowed(const char *type); /* of an -object */

#endif
