/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Can this guest be protected wholly?  Refusals by allow list. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

#define TIMEOUT_MS 3000

/*
 * Types whose state is wholly in RAM blocks and device state, and that put out nothing
 * but network frames.  What isn't here is refused until the operator accepts it.
 */
static const char *const allowed_types[] = {
        /* chipsets */
        "ICH9-LPC",
        "ICH9-SMB",
        "PIIX3",
        "PIIX4_PM",
        "i440FX",
        "i440FX-pcihost",
        "mch",
        "q35-pcihost",
        "ich9-ahci",
        "piix3-ide",
        "pcie-root-port",
        "pcie-pci-bridge",
        "pci-bridge",
        "ioh3420",
        "hpet",
        "ioapic",
        "kvm-ioapic",
        "isa-i8259",
        "kvm-i8259",
        "isa-pit",
        "kvm-pit",
        "i8257",
        "i8042",
        "isa-pcspk",
        "mc146818rtc",
        "port92",
        "smbus-eeprom",
        "fw_cfg_io",
        "kvmvapic",
        "kvmclock",
        "vmport",
        "vmmouse",
        "vmcoreinfo",
        "pvpanic",
        "isa-fdc",
        "floppy",
        "ps2-kbd",
        "ps2-mouse",
        "ide-cd",
        "ide-hd",
        "scsi-cd",
        "scsi-hd",
        "i6300esb",
        /* virtio */
        "virtio-net-pci",
        "virtio-net-device",
        "virtio-rng-pci",
        "virtio-rng-device",
        "virtio-blk-pci",
        "virtio-blk-device",
        "virtio-scsi-pci",
        "virtio-scsi-device",
        "virtio-keyboard-pci",
        "virtio-tablet-pci",
        "virtio-input-host-pci",
        "virtio-input-device",
        /* NICs and USB */
        "e1000",
        "e1000-82545em",
        "e1000e",
        "igb",
        "rtl8139",
        "qemu-xhci",
        "nec-usb-xhci",
        "ich9-usb-ehci1",
        "ich9-usb-uhci1",
        "ich9-usb-uhci2",
        "ich9-usb-uhci3",
        "piix3-usb-uhci",
        "usb-tablet",
        "usb-kbd",
        "usb-mouse",
        "usb-hub",
};

struct refusals {
	char *text;
	size_t len;
	const char *accept;
};

/* True when @name is one of the comma separated words of @list. */
static bool in_list(const char *list, const char *name)
{
	size_t n = strlen(name);

	for (const char *p = list; p && *p;) {
		size_t w = strcspn(p, ",");

		if (w == n && memcmp(p, name, n) == 0)
			return true;
		p += w + (p[w] == ',');
	}
	return false;
}

static int refuse(struct refusals *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int refuse(struct refusals *r, const char *fmt, ...)
{
	char line[512], *p;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
	va_end(ap);
	if (n >= (int)sizeof(line) - 1)
		n = (int)sizeof(line) - 2;
	line[n++] = '\n';
	p = realloc(r->text, r->len + (size_t)n + 1);
	if (!p)
		return -ENOMEM;
	memcpy(p + r->len, line, (size_t)n);
	r->text = p;
	r->len += (size_t)n;
	p[r->len] = '\0';
	return 0;
}

static int check_device(void *ctx, const char *type, const char *id, const char *addr)
{
	struct refusals *r = ctx;

	(void)addr;
	for (size_t i = 0; i < MC_ARRAY_SIZE(allowed_types); i++)
		if (strcmp(type, allowed_types[i]) == 0)
			return 0;
	if (in_list(r->accept, type))
		return 0;
	if (strstr(type, "serial") || strstr(type, "parallel") || strstr(type, "console"))
		return refuse(r,
		              "device %s puts out data that isn't held back; remove it, or protect "
		              "with --accept %s if that output doesn't matter",
		              type, type);
	return refuse(
	        r, "device %s%s%s isn't known to be safe; remove it, or protect with --accept %s",
	        type, id[0] ? " " : "", id, type);
}

static int check_blocks(const struct vm_info *i, struct refusals *r)
{
	for (unsigned n = 0; n < i->nblocks; n++) {
		if (i->block[n].shared || in_list(r->accept, i->block[n].name))
			continue;
		if (refuse(r,
		           "RAM block %s is private memory; start QEMU with "
		           "-object memory-backend-file,id=ram,size=...,mem-path=/dev/shm/...,"
		           "share=on -machine memory-backend=ram",
		           i->block[n].name) < 0)
			return -ENOMEM;
	}
	return 0;
}

static bool is_backend(const struct vm_info *i, const char *name)
{
	for (unsigned n = 0; n < i->nblocks; n++)
		if (strcmp(i->block[n].name, name) == 0)
			return true;
	return false;
}

static bool is_rom(const char *name)
{
	size_t n = strlen(name);

	return strncmp(name, "/rom@", 5) == 0 || strcmp(name, "pc.bios") == 0 ||
	       strcmp(name, "pc.rom") == 0 || (n > 4 && strcmp(name + n - 4, ".rom") == 0);
}

/* RAM blocks that the guest can write and that we don't track: video memory and such. */
static int check_ramblocks(struct qmp *q, const struct vm_info *i, struct refusals *rf)
{
	json_t *v = NULL;
	const char *p;
	int r = qmp_command(q, "x-query-ramblock", NULL, TIMEOUT_MS, &v);

	if (r < 0)
		return r;
	p = json_string_value(json_object_get(v, "human-readable-text"));
	p = p ? strchr(p, '\n') : NULL; /* past the headings */
	while (p && *++p && r == 0) {
		char name[256];

		if (sscanf(p, " %255s", name) == 1 && !is_backend(i, name) && !is_rom(name) &&
		    !in_list(rf->accept, name))
			r = refuse(rf,
			           "RAM block %s lies outside the memory backends and can't be "
			           "tracked; remove the device (vga: -vga none)",
			           name);
		p = strchr(p, '\n');
	}
	json_decref(v);
	return r;
}

static int check_disks(struct qmp *q, struct refusals *rf)
{
	json_t *disks = NULL, *d;
	size_t n;
	int r = qmp_command(q, "query-block", NULL, TIMEOUT_MS, &disks);

	if (r < 0)
		return r;
	json_array_foreach(disks, n, d)
	{
		json_t *in = json_object_get(d, "inserted");
		const char *name = json_string_value(json_object_get(d, "device"));
		const char *qdev = json_string_value(json_object_get(d, "qdev"));

		if (!name || !name[0])
			name = qdev ? qdev : "?";
		if (!in || json_is_true(json_object_get(in, "ro")) || in_list(rf->accept, name))
			continue;
		r = refuse(
		        rf,
		        "disk %s is writable and not replicated; attach it read-only, or protect "
		        "with --accept %s if its content doesn't matter",
		        name, name);
		if (r < 0)
			break;
	}
	json_decref(disks);
	return r;
}

/* A line of `info network` that describes a back end: " \ ID: index=N,type=T,..." or "ID: ...". */
static int check_netdev(const char *id, const char *type, const char *gated, struct refusals *rf)
{
	if (strcmp(type, "nic") == 0 || in_list(rf->accept, id))
		return 0;
	if (strcmp(type, "dgram") == 0 || strcmp(type, "tap") == 0) {
		if (!gated || in_list(gated, id))
			return 0;
		return refuse(rf,
		              "network back end %s (%s) has no gate; name it with --relay "
		              "%s=unix:PATH,tap=IF, or ask for --gate none",
		              id, type, id);
	}
	return refuse(rf,
	              "network back end %s is of type %s, whose output can't be held back; use "
	              "-netdev dgram (with --relay) or protect with --accept %s",
	              id, type, id);
}

static int check_gated_exist(const char *text, const char *gated, struct refusals *rf)
{
	for (const char *p = gated; p && *p;) {
		size_t n = strcspn(p, ",");
		char id[64], pattern[80];

		snprintf(id, sizeof(id), "%.*s", (int)n, p);
		snprintf(pattern, sizeof(pattern), "%s: index=", id);
		if (!strstr(text, pattern) &&
		    refuse(rf, "there is no network back end %s in this QEMU (--relay %s=...)", id,
		           id) < 0)
			return -ENOMEM;
		p += n + (p[n] == ',');
	}
	return 0;
}

static int check_network(struct qmp *q, const char *gated, struct refusals *rf)
{
	char mc_autofree *text = NULL;
	int r = qmp_hmp(q, "info network", TIMEOUT_MS, &text);

	if (r < 0)
		return r;
	for (const char *line = text; line && *line && r == 0;) {
		char id[64], type[64];
		const char *p = line + strspn(line, " \\");

		if (sscanf(p, "%63[^:]: index=%*d,type=%63[^,\r\n]", id, type) == 2)
			r = check_netdev(id, type, gated, rf);
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return r == 0 ? check_gated_exist(text, gated, rf) : r;
}

int vm_check(struct qmp *q, const struct vm_info *i, const char *accept, const char *gated,
             char *why, size_t why_len, char **all)
{
	struct refusals rf = {.accept = accept ? accept : ""};
	int r = check_blocks(i, &rf);

	if (r == 0)
		r = check_ramblocks(q, i, &rf);
	if (r == 0)
		r = vm_devices(q, check_device, &rf);
	if (r == 0)
		r = check_disks(q, &rf);
	if (r == 0)
		r = check_network(q, gated, &rf);
	if (r < 0) {
		free(rf.text);
		return vm_fail(why, why_len, r, "can't examine the guest by QMP: %s %s",
		               strerror(-r), qmp_error(q));
	}
	if (!rf.text) {
		if (all)
			*all = strdup("");
		return 0;
	}
	snprintf(why, why_len, "%.*s", (int)strcspn(rf.text, "\n"), rf.text);
	if (all)
		*all = rf.text;
	else
		free(rf.text);
	return -EPERM;
}
