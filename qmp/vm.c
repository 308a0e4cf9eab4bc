/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A running QEMU: who it is, and where its RAM blocks are mapped. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "../ipc/worker-bus.h"
#include "vm-private.h"

int vm_fail(char *why, size_t len, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, len, fmt, ap);
	va_end(ap);
	return r;
}

const char *vm_block_name(const char *name)
{
	static const char objects[] = "/objects/";

	return strncmp(name, objects, strlen(objects)) ? name : name + strlen(objects);
}

static int add_backend(struct vm_info *i, json_t *d, char *why, size_t len)
{
	const char *id = json_string_value(json_object_get(d, "id"));
	json_int_t size = json_integer_value(json_object_get(d, "size"));
	struct vm_block *b;

	if (!id || !id[0])
		return vm_fail(why, len, -EINVAL,
		               "QEMU has a memory backend without a name; give it an id=");
	if (strlen(id) >= sizeof(b->name))
		return vm_fail(why, len, -ENAMETOOLONG,
		               "the name of memory backend %.80s has more than %zu characters; "
		               "give it a shorter id=",
		               id, sizeof(b->name) - 1);
	if (size <= 0 || size % 4096)
		return vm_fail(why, len, -EINVAL,
		               "the size of memory backend %s isn't a multiple of 4096; give it a "
		               "size= that is",
		               id);
	if (i->nblocks == VM_BLOCKS_MAX)
		return vm_fail(why, len, -E2BIG,
		               "QEMU has more than %d memory backends; give it fewer, larger ones",
		               VM_BLOCKS_MAX);
	b = &i->block[i->nblocks++];
	snprintf(b->name, sizeof(b->name), "%s", id);
	b->size = (uint64_t)size;
	b->shared = json_is_true(json_object_get(d, "share"));
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct vm_block *)a)->name, ((const struct vm_block *)b)->name);
}

/* Memory backends, in the order of their names: the same on both ends. */
static int list_backends(struct qmp *q, struct vm_info *i, char *why, size_t len)
{
	json_t *devs = NULL, *d;
	size_t n;
	int r = qmp_command(q, "query-memdev", NULL, VM_TIMEOUT_MS, &devs);

	if (r < 0)
		return vm_fail(why, len, r,
		               "QEMU doesn't list its memory backends (QMP query-memdev: %s %s); "
		               "is it 7.2 or newer? Try again",
		               strerror(-r), qmp_error(q));
	json_array_foreach (devs, n, d) {
		r = add_backend(i, d, why, len);
		if (r < 0)
			break;
	}
	json_decref(devs);
	if (r == 0 && !i->nblocks)
		return vm_fail(
		        why, len, -ENOENT,
		        "QEMU has no memory backend; start it with "
		        "-object memory-backend-file,id=ram,size=SIZE,mem-path=/dev/shm/NAME,"
		        "share=on -machine memory-backend=ram");
	qsort(i->block, i->nblocks, sizeof(i->block[0]), by_name);
	return r;
}

int vm_ramblocks(struct qmp *q, vm_ramblock_fn fn, void *ctx)
{
	const char *text, *line;
	json_t *v = NULL;
	int r = qmp_command(q, "x-query-ramblock", NULL, VM_TIMEOUT_MS, &v);

	if (r == -EREMOTEIO) /* before QEMU 6.2 */
		r = qmp_command(q, "human-monitor-command",
		                json_pack("{s:s}", "command-line", "info ramblock"), VM_TIMEOUT_MS,
		                &v);
	if (r < 0)
		return r;
	text = json_is_object(v) ? json_string_value(json_object_get(v, "human-readable-text"))
	                         : json_string_value(v);
	if (!text || !strstr(text, "Block Name"))
		r = -EBADMSG;
	/* "NAME  4 KiB  OFFSET  USED  TOTAL"; the first line has the headings */
	for (line = text; r == 0 && (line = strchr(line, '\n'));) {
		struct vm_ramblock b;
		char name[sizeof(b.name)];

		line++;
		if (sscanf(line, " %255s %*d %*s %*x %*x %" SCNx64, name, &b.size) != 2)
			continue;
		snprintf(b.name, sizeof(b.name), "%s", vm_block_name(name));
		r = fn(ctx, &b);
	}
	json_decref(v);
	return r < 0 ? r : 0;
}

/*
 * One guest-physical address that the RAM block @name backs, and the offset in the block: from a
 * line "START-END (prio P, ram): NAME [@OFFSET]" of `info mtree -f`.  The name tells apart
 * backends that look the same in /proc/PID/maps.
 */
static int find_gpa(const char *mtree, const char *name, uint64_t *gpa, uint64_t *offset)
{
	const char *line = strstr(mtree, " AS \"memory\",");

	for (; line && strncmp(line, "\nFlatView", 9) != 0; line = strchr(line + 1, '\n')) {
		uint64_t start, end, off = 0;
		char found[256], at = 0;
		int prio, n;

		n = sscanf(line, " %" SCNx64 "-%" SCNx64 " (prio %d, ram): %255[^ \r\n] %c%" SCNx64,
		           &start, &end, &prio, found, &at, &off);
		if (n < 4 || strcmp(vm_block_name(found), name) != 0)
			continue;
		*gpa = start;
		*offset = n == 6 && at == '@' ? off : 0;
		return 0;
	}
	return -ENOENT;
}

static int find_hva(struct qmp *q, const char *mtree, struct vm_block *b)
{
	uint64_t gpa, offset, hva;
	mc_autofree char *text = NULL;
	char cmd[64];
	const char *p;
	int r = find_gpa(mtree, b->name, &gpa, &offset);

	if (r < 0)
		return r;
	snprintf(cmd, sizeof(cmd), "gpa2hva 0x%" PRIx64, gpa);
	r = qmp_hmp(q, cmd, VM_TIMEOUT_MS, &text);
	if (r < 0)
		return r;
	/* "Host virtual address for 0x0 (NAME) is 0x7f..." */
	p = strstr(text, ") is 0x");
	if (!p || sscanf(p, ") is %" SCNx64, &hva) != 1 || hva < offset)
		return -EBADMSG;
	b->hva = hva - offset;
	return 0;
}

static int locate_block(struct qmp *q, const struct vm_info *i, const char *mtree,
                        struct vm_block *b, char *why, size_t len)
{
	int r = find_hva(q, mtree, b);

	if (r == -ENOENT)
		return vm_fail(
		        why, len, r,
		        "memory backend %s isn't mapped in the guest's memory; remove it, or "
		        "use it as RAM",
		        b->name);
	if (r < 0)
		return vm_fail(why, len, r,
		               "can't find out where QEMU maps memory backend %s: %s %s; is it 7.2 "
		               "or newer? Try again",
		               b->name, strerror(-r), qmp_error(q));
	return vm_map_block(i, b, why, len);
}

static int locate_blocks(struct qmp *q, struct vm_info *i, char *why, size_t len)
{
	mc_autofree char *mtree = NULL;
	int r = qmp_hmp(q, "info mtree -f", VM_TIMEOUT_MS, &mtree);

	if (r < 0)
		return vm_fail(why, len, r,
		               "QEMU doesn't describe its memory (HMP info mtree -f: %s %s); is it "
		               "7.2 or newer? Try again",
		               strerror(-r), qmp_error(q));
	for (unsigned n = 0; r == 0 && n < i->nblocks; n++)
		r = locate_block(q, i, mtree, &i->block[n], why, len);
	for (unsigned n = 1; r == 0 && n < i->nblocks; n++)
		for (unsigned m = 0; m < n; m++)
			if (i->block[n].hva == i->block[m].hva)
				return vm_fail(why, len, -EBADMSG,
				               "memory backends %s and %s seem to be mapped at the "
				               "same address; use only one of them as RAM",
				               i->block[m].name, i->block[n].name);
	return r;
}

int vm_inspect(struct qmp *q, struct vm_info *ret, char *why, size_t why_len)
{
	struct vm_info i = {.pid = qmp_peer_pid(q)};
	int r;

	i.start_time = i.pid > 0 ? mc_pid_start_time(i.pid) : 0;
	if (!i.start_time)
		return vm_fail(
		        why, why_len, -ESRCH,
		        "the QEMU behind the QMP socket (pid %d) can't be seen from here; run "
		        "microcheckpoint in the same PID namespace",
		        (int)i.pid);
	r = list_backends(q, &i, why, why_len);
	if (r == 0)
		r = locate_blocks(q, &i, why, why_len);
	if (r == 0)
		r = vm_describe(q, &i, why, why_len);
	if (r == 0 && mc_pid_start_time(i.pid) != i.start_time)
		r = vm_fail(why, why_len, -ESRCH, "QEMU (pid %d) ended meanwhile; start it again",
		            (int)i.pid);
	if (r < 0) {
		vm_info_done(&i);
		return r;
	}
	*ret = i;
	return 0;
}

void vm_info_done(struct vm_info *i)
{
	mc_freep(&i->description);
}
