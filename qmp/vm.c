/* SPDX-License-Identifier: GPL-2.0-or-later */
/* RAM blocks of a QEMU and its description. */
#include "vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "../ipc/util.h"
#include "vm-private.h"

#define TIMEOUT_MS 3000

int vm_fail(char *why, size_t len, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, len, fmt, ap);
	va_end(ap);
	return r;
}

static uint64_t start_time(pid_t pid)
{
	char path[64], buf[1024], *p;
	FILE *f;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	n = fread(buf, 1, sizeof(buf) - 1, f);
	fclose(f);
	buf[n] = '\0';
	p = strrchr(buf, ')');
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p ? strtoull(p + 1, NULL, 10) : 0;
}

/* Memory backends that are RAM blocks of this machine, in the order of their names. */
static int list_backends(struct qmp *q, struct vm_info *i, char *why, size_t len)
{
	json_t *devs = NULL, *d;
	size_t n;
	int r = qmp_command(q, "query-memdev", NULL, TIMEOUT_MS, &devs);

	if (r < 0)
		return vm_fail(why, len, r, "QMP query-memdev: %s", qmp_error(q));
	json_array_foreach(devs, n, d)
	{
		struct vm_block *b = &i->block[i->nblocks];
		const char *id = json_string_value(json_object_get(d, "id"));

		if (!id || !id[0] || strlen(id) >= sizeof(b->name))
			continue;
		if (i->nblocks == VM_BLOCKS_MAX) {
			json_decref(devs);
			return vm_fail(why, len, -E2BIG, "more than %d memory backends",
			               VM_BLOCKS_MAX);
		}
		*b = (struct vm_block){
		        .size = (uint64_t)json_integer_value(json_object_get(d, "size")),
		        .shared = json_is_true(json_object_get(d, "share"))};
		snprintf(b->name, sizeof(b->name), "%s", id);
		i->nblocks++;
	}
	json_decref(devs);
	if (!i->nblocks)
		return vm_fail(why, len, -ENOENT,
		               "QEMU has no memory backend; start it with "
		               "-object memory-backend-file,share=on,... and "
		               "-machine memory-backend=ID");
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct vm_block *)a)->name, ((const struct vm_block *)b)->name);
}

/*
 * One guest-physical address that a RAM block backs, and the offset in the block:
 * a line "START-END (prio P, ram): NAME [@OFFSET]" of `info mtree -f`.
 */
static int find_gpa(const char *mtree, const char *name, uint64_t *gpa, uint64_t *offset)
{
	const char *line = mtree;

	for (; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
		uint64_t start, end, off = 0;
		char found[128], at;
		int prio, n;

		n = sscanf(line, " %" SCNx64 "-%" SCNx64 " (prio %d, ram): %127s %c%" SCNx64,
		           &start, &end, &prio, found, &at, &off);
		if (n < 4 || strcmp(found, name) != 0)
			continue;
		*gpa = start;
		*offset = n == 6 && at == '@' ? off : 0;
		return 0;
	}
	return -ENOENT;
}

static int find_hva(struct qmp *q, const char *mtree, struct vm_block *b)
{
	char cmd[64], mc_autofree *text = NULL;
	uint64_t gpa, offset, hva;
	const char *p;
	int r = find_gpa(mtree, b->name, &gpa, &offset);

	if (r < 0)
		return r;
	snprintf(cmd, sizeof(cmd), "gpa2hva 0x%" PRIx64, gpa);
	r = qmp_hmp(q, cmd, TIMEOUT_MS, &text);
	if (r < 0)
		return r;
	p = strstr(text, ") is 0x");
	if (!p || sscanf(p, ") is %" SCNx64, &hva) != 1 || hva < offset)
		return -EBADMSG;
	b->hva = hva - offset;
	return 0;
}

/* File behind the mapping that holds a block, from /proc/PID/maps. */
static int find_mapping(const struct vm_info *i, struct vm_block *b)
{
	char path[64], line[512];
	int r = -ENOENT;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)i->pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		uint64_t start, end, off, ino;
		unsigned maj, min;
		char perm[8];

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %x:%x %" SCNu64, &start,
		           &end, perm, &off, &maj, &min, &ino) != 7)
			continue;
		if (b->hva < start || b->hva + b->size > end)
			continue;
		b->dev = makedev(maj, min);
		b->ino = ino;
		b->shared = b->shared && perm[3] == 's' && off == 0 && b->hva == start;
		r = 0;
		break;
	}
	fclose(f);
	return r;
}

static int locate_blocks(struct qmp *q, struct vm_info *i, char *why, size_t len)
{
	char mc_autofree *mtree = NULL;
	int r = qmp_hmp(q, "info mtree -f", TIMEOUT_MS, &mtree);

	if (r < 0)
		return vm_fail(why, len, r, "HMP info mtree -f: %s", qmp_error(q));
	for (unsigned n = 0; n < i->nblocks; n++) {
		struct vm_block *b = &i->block[n];
		int mc_autoclose fd = -1;
		struct stat st;

		r = find_hva(q, mtree, b);
		if (r < 0)
			return vm_fail(why, len, r,
			               "memory backend %s isn't mapped in the guest's physical "
			               "memory; remove it or use it as RAM",
			               b->name);
		r = find_mapping(i, b);
		if (r < 0)
			return vm_fail(why, len, r, "can't find memory backend %s in /proc/%d/maps",
			               b->name, (int)i->pid);
		b->page_size = 4096;
		if (!b->shared)
			continue;
		fd = vm_open_block(i, n);
		if (fd < 0)
			return vm_fail(why, len, fd,
			               "can't open the RAM file of memory backend %s of QEMU %d: "
			               "%s; CAP_SYS_PTRACE is needed",
			               b->name, (int)i->pid, strerror(-fd));
		if (fstat(fd, &st) == 0 && st.st_blksize > 4096 && st.st_blksize >= 2 << 20)
			b->page_size = (uint64_t)st.st_blksize;
	}
	return 0;
}

static int matches(int fd, const struct vm_block *b)
{
	struct stat st;

	return fstat(fd, &st) == 0 && st.st_ino == b->ino && st.st_size >= (off_t)b->size;
}

int vm_open_block(const struct vm_info *i, unsigned block)
{
	const struct vm_block *b = &i->block[block];
	char path[128];
	struct dirent *e;
	int fd, result = -ENOENT;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, (int)i->pid, b->hva,
	         b->hva + b->size);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		if (matches(fd, b))
			return fd;
		close(fd);
	}
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)i->pid);
	d = opendir(path);
	if (!d)
		return -errno;
	while (result < 0 && (e = readdir(d))) {
		struct stat st;

		if (fstatat(dirfd(d), e->d_name, &st, 0) < 0 || st.st_ino != b->ino ||
		    !S_ISREG(st.st_mode))
			continue;
		fd = openat(dirfd(d), e->d_name, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (matches(fd, b))
			result = fd;
		else
			close(fd);
	}
	closedir(d);
	return result;
}

int vm_inspect(struct qmp *q, struct vm_info *ret, char *why, size_t why_len)
{
	struct vm_info i = {.pid = qmp_peer_pid(q)};
	int r;

	i.start_time = start_time(i.pid);
	if (!i.start_time)
		return vm_fail(why, why_len, -ESRCH, "the QEMU behind the socket (pid %d) is gone",
		               (int)i.pid);
	r = list_backends(q, &i, why, why_len);
	if (r < 0)
		return r;
	qsort(i.block, i.nblocks, sizeof(i.block[0]), by_name);
	r = locate_blocks(q, &i, why, why_len);
	if (r == 0)
		r = vm_describe(q, &i, why, why_len);
	if (r < 0) {
		vm_info_done(&i);
		return r;
	}
	*ret = i;
	return 0;
}

void vm_info_done(struct vm_info *i)
{
	free(i->description);
	i->description = NULL;
}
