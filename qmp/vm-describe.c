/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The text that must be equal on both ends.
 *
 * Capitalised lines sort before the others, and blanks before dashes: when a machine or a CPU
 * model differs, that is the line which is named, not one of the many that differ in consequence.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/control.h"
#include "../ipc/util.h"
#include "vm-private.h"

struct lines {
	char **line;
	size_t n;
};

static int add_line(struct lines *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int add_line(struct lines *l, const char *fmt, ...)
{
	char **line = reallocarray(l->line, l->n + 1, sizeof(*line));
	va_list ap;
	char *s;
	int r;

	if (!line)
		return -ENOMEM;
	l->line = line;
	va_start(ap, fmt);
	r = vasprintf(&s, fmt, ap);
	va_end(ap);
	if (r < 0)
		return -ENOMEM;
	for (char *p = s; *p; p++)
		if ((unsigned char)*p < 0x20)
			*p = ' ';
	l->line[l->n++] = s;
	return 0;
}

static void lines_done(struct lines *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->line[i]);
	free(l->line);
}

static int compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorts and joins; equal lines become one with their number. */
static int join(struct lines *l, char **ret)
{
	size_t len, same;
	FILE *f = open_memstream(ret, &len);

	if (!f)
		return -ENOMEM;
	qsort(l->line, l->n, sizeof(l->line[0]), compare);
	for (size_t i = 0; i < l->n; i += same) {
		for (same = 1; i + same < l->n && !strcmp(l->line[i], l->line[i + same]);)
			same++;
		if (same > 1)
			fprintf(f, "%s x %zu\n", l->line[i], same);
		else
			fprintf(f, "%s\n", l->line[i]);
	}
	if (fclose(f) != 0) {
		mc_freep(ret);
		return -ENOMEM;
	}
	if (len >= MC_DESC_TEXT) {
		mc_freep(ret);
		return -E2BIG;
	}
	return 0;
}

static int describe_version(struct qmp *q, struct lines *l)
{
	json_t *v = NULL, *n;
	const char *package;
	int r = qmp_command(q, "query-version", NULL, VM_TIMEOUT_MS, &v);

	if (r < 0)
		return r;
	n = json_object_get(v, "qemu");
	package = json_string_value(json_object_get(v, "package"));
	r = add_line(l, "Build: QEMU version %d.%d.%d %s",
	             (int)json_integer_value(json_object_get(n, "major")),
	             (int)json_integer_value(json_object_get(n, "minor")),
	             (int)json_integer_value(json_object_get(n, "micro")), package ? package : "");
	json_decref(v);
	return r;
}

static int describe_accelerator(struct qmp *q, struct lines *l)
{
	json_t *v = NULL;
	int r = qmp_command(q, "query-kvm", NULL, VM_TIMEOUT_MS, &v);

	if (r < 0)
		return r == -EREMOTEIO ? 0 : r;
	r = add_line(l, "Accelerator %s",
	             json_is_true(json_object_get(v, "enabled")) ? "kvm" : "tcg");
	json_decref(v);
	return r;
}

static int describe_machine(struct qmp *q, struct lines *l)
{
	static const char suffix[] = "-machine";
	json_t *memory = NULL;
	char type[128];
	size_t n;
	int r = vm_qom_string(q, "/machine", "type", type, sizeof(type));

	if (r < 0)
		return r;
	n = strlen(type);
	if (n > strlen(suffix) && !strcmp(type + n - strlen(suffix), suffix))
		type[n - strlen(suffix)] = '\0';
	r = add_line(l, "Machine %s", type);
	if (r < 0)
		return r;
	r = vm_qom_get(q, "/machine", "memory", &memory);
	if (r == 0 && json_is_integer(json_object_get(memory, "max-size")))
		r = add_line(l,
		             "RAM slots %" JSON_INTEGER_FORMAT " up to %" JSON_INTEGER_FORMAT
		             " bytes",
		             json_integer_value(json_object_get(memory, "slots")),
		             json_integer_value(json_object_get(memory, "max-size")));
	json_decref(memory);
	return r == -ENOENT ? 0 : r;
}

/* Options of the machine that its device state depends on. */
static int describe_options(struct qmp *q, struct lines *l)
{
	static const char *const names[] = {"smm",   "acpi",  "pit",    "pic", "hpet",  "sata",
	                                    "smbus", "i8042", "vmport", "usb", "nvdimm"};
	int r = 0;

	for (size_t i = 0; r >= 0 && i < MC_ARRAY_SIZE(names); i++) {
		json_t *v = NULL;

		r = vm_qom_get(q, "/machine", names[i], &v);
		if (r == 0 && json_is_string(v))
			r = add_line(l, "Machine-option %s=%s", names[i], json_string_value(v));
		else if (r == 0 && json_is_boolean(v))
			r = add_line(l, "Machine-option %s=%s", names[i],
			             json_is_true(v) ? "on" : "off");
		else if (r == -ENOENT)
			r = 0;
		json_decref(v);
	}
	return r;
}

/* The CPUID words that make the model; the guest may switch its APIC bit off and on. */
static int describe_features(struct qmp *q, const char *path, struct lines *l)
{
	json_t *words = NULL, *w;
	size_t i;
	int r = vm_qom_get(q, path, "feature-words", &words);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	json_array_foreach (words, i, w) {
		const char *reg = json_string_value(json_object_get(w, "cpuid-register"));
		uint64_t leaf = (uint64_t)json_integer_value(json_object_get(w, "cpuid-input-eax"));
		uint64_t bits = (uint64_t)json_integer_value(json_object_get(w, "features"));

		if (leaf == 1 && reg && !strcmp(reg, "EDX"))
			bits &= ~(1ULL << 9);
		if (!reg || !bits)
			continue;
		r = add_line(l, "CPU-features %" PRIx64 ".%d.%s %08" PRIx64, leaf,
		             (int)json_integer_value(json_object_get(w, "cpuid-input-ecx")), reg,
		             bits);
		if (r < 0)
			break;
	}
	json_decref(words);
	return r;
}

static int describe_topology(struct qmp *q, struct lines *l)
{
	json_t *smp = NULL, *v;
	const char *key;
	int r = vm_qom_get(q, "/machine", "smp", &smp);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	json_object_foreach (smp, key, v) {
		r = add_line(l, "CPU topology %s=%" JSON_INTEGER_FORMAT, key,
		             json_integer_value(v));
		if (r < 0)
			break;
	}
	json_decref(smp);
	return r;
}

static int describe_cpus(struct qmp *q, struct lines *l)
{
	json_t *cpus = NULL, *c;
	char type[128];
	size_t n;
	int r = qmp_command(q, "query-cpus-fast", NULL, VM_TIMEOUT_MS, &cpus);

	if (r < 0)
		return r;
	json_array_foreach (cpus, n, c) {
		const char *path = json_string_value(json_object_get(c, "qom-path"));

		r = path ? vm_qom_string(q, path, "type", type, sizeof(type)) : -EBADMSG;
		if (r == 0)
			r = add_line(l, "CPU model %s", type);
		if (r == 0 && n == 0)
			r = describe_features(q, path, l);
		if (r < 0)
			break;
	}
	json_decref(cpus);
	return r < 0 ? r : describe_topology(q, l);
}

struct rom_ctx {
	const struct vm_info *i;
	struct lines *l;
};

/*
 * RAM blocks outside the backends (option ROMs): a standby with others of them can't load the
 * device state.  Tables that QEMU makes itself change in size as it runs.
 */
static int describe_rom(void *ctx, const struct vm_ramblock *b)
{
	struct rom_ctx *c = ctx;

	for (unsigned n = 0; n < c->i->nblocks; n++)
		if (!strcmp(c->i->block[n].name, b->name))
			return 0;
	if (!strncmp(b->name, "/rom@", 5))
		return 0;
	return add_line(c->l, "rom %s %" PRIu64 " bytes", b->name, b->size);
}

/* Options of a device that its state depends on, if it has them. */
static int put_options(struct qmp *q, const struct vm_device *d, FILE *f)
{
	static const char *const names[] = {"mac",
	                                    "vectors",
	                                    "mq",
	                                    "num-queues",
	                                    "queue-size",
	                                    "rx_queue_size",
	                                    "tx_queue_size",
	                                    "disable-legacy",
	                                    "disable-modern",
	                                    "packed",
	                                    "max_ports",
	                                    "p2",
	                                    "p3",
	                                    "intrs",
	                                    "slots"};
	int r = 0;

	for (size_t i = 0; r == 0 && i < MC_ARRAY_SIZE(names); i++) {
		json_t *v = NULL;

		if (!vm_device_has(d, names[i]))
			continue;
		r = vm_qom_get(q, d->path, names[i], &v);
		if (json_is_string(v))
			fprintf(f, " %s=%s", names[i], json_string_value(v));
		else if (json_is_integer(v))
			fprintf(f, " %s=%" JSON_INTEGER_FORMAT, names[i], json_integer_value(v));
		else if (json_is_boolean(v))
			fprintf(f, " %s=%s", names[i], json_is_true(v) ? "on" : "off");
		json_decref(v);
		if (r == -ENOENT)
			r = 0;
	}
	return r;
}

/* Parts that QEMU makes of a device by itself say nothing new: they are left out. */
static bool is_part(const struct vm_devices *all, const struct vm_device *d)
{
	const char *slash = strrchr(d->path, '/');
	mc_autofree char *parent = strndup(d->path, (size_t)(slash - d->path));

	return parent && vm_device_of(all, parent);
}

/* By the device that has it: "rp0", "qemu-xhci(addr=02.0)". */
static void put_bus(FILE *f, const struct vm_device *on)
{
	if (on->id[0])
		fprintf(f, " on %s", on->id);
	else if (on->address[0])
		fprintf(f, " on %s(%s)", on->type, on->address + 1);
	else
		fprintf(f, " on %s", on->type);
}

static int describe_device(struct qmp *q, const struct vm_devices *all, const struct vm_device *d,
                           struct lines *l)
{
	const struct vm_device *on = d->bus[0] ? vm_device_of(all, d->bus) : NULL;
	mc_autofree char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);
	int r;

	if (!f)
		return -ENOMEM;
	fprintf(f, "device %s", d->type);
	if (d->id[0])
		fprintf(f, " id=%s", d->id);
	/* not the path of the bus: it counts devices in the order in which they came */
	if (on)
		put_bus(f, on);
	fprintf(f, "%s", d->address);
	r = put_options(q, d, f);
	if (fclose(f) != 0)
		return -ENOMEM;
	return r < 0 ? r : add_line(l, "%s", text);
}

static int describe_devices(struct qmp *q, struct lines *l)
{
	struct vm_devices all = {0};
	int r = vm_devices_load(q, &all);

	for (size_t i = 0; r == 0 && i < all.n; i++)
		if (!is_part(&all, &all.d[i]))
			r = describe_device(q, &all, &all.d[i], l);
	vm_devices_done(&all);
	return r;
}

int vm_describe(struct qmp *q, struct vm_info *i, char *why, size_t why_len)
{
	static int (*const part[])(struct qmp *, struct lines *) = {
	        describe_version, describe_accelerator, describe_machine,
	        describe_options, describe_cpus,        describe_devices,
	};
	struct lines l = {0};
	struct rom_ctx roms = {i, &l};
	char firmware[400];
	int r = 0;

	for (size_t n = 0; r == 0 && n < MC_ARRAY_SIZE(part); n++)
		r = part[n](q, &l);
	for (unsigned n = 0; r == 0 && n < i->nblocks; n++)
		r = add_line(&l, "RAM %s %" PRIu64 " bytes", i->block[n].name, i->block[n].size);
	if (r == 0)
		r = vm_ramblocks(q, describe_rom, &roms);
	if (r == 0)
		r = vm_firmware_describe(q, i->pid, firmware, sizeof(firmware));
	if (r == 0 && firmware[0])
		r = add_line(&l, "%s", firmware);
	if (r == 0)
		r = join(&l, &i->description);
	lines_done(&l);
	if (r == -E2BIG)
		return vm_fail(why, why_len, r,
		               "the machine has more devices than can be described in %d bytes; "
		               "take some out",
		               MC_DESC_TEXT);
	if (r < 0)
		return vm_fail(why, why_len, r,
		               "can't describe the machine by QMP: %s %s; is this QEMU 7.2 or "
		               "newer? Try again",
		               strerror(-r), qmp_error(q));
	return 0;
}
