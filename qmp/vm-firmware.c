/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The firmware below 4 GiB ("pc.bios").  QEMU copies it from its file at the first reset, but not
 * while it waits for incoming state, where it expects it from the stream of a migration; a
 * standby that isn't given it runs on until its guest reboots, and then runs zeros.
 *
 * The standby's file serves as the source.  The description holds the content's hash, from memory
 * or, as long as that is empty, from the file: two ends with other firmware don't match.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ipc/hash.h"
#include "../ipc/util.h"
#include "vm-private.h"

#define TOP         (1ULL << 32)
#define SIZE_MAX_FW (16ULL << 20)

struct firmware {
	char name[256]; /* as QEMU was told, or its default */
	uint64_t size;  /* 0: none */
	uint64_t hva;
};

/* The line of `info roms` for what ends at 4 GiB: addr=FFFC0000 size=0x040000 mem=rom name="..." */
static bool parse_line(const char *line, uint64_t *addr, struct firmware *f)
{
	return sscanf(line, "addr=%" SCNx64 " size=0x%" SCNx64 " mem=rom name=\"%255[^\"\n]\"",
	              addr, &f->size, f->name) == 3 &&
	       f->size && f->size <= SIZE_MAX_FW && *addr == TOP - f->size;
}

/* f->size is 0 when the machine has none (flash drives are no ROM). */
static int find(struct qmp *q, struct firmware *f)
{
	mc_autofree char *roms = NULL, *where = NULL;
	uint64_t addr = 0;
	char cmd[64];
	const char *p;
	int r = qmp_hmp(q, "info roms", VM_TIMEOUT_MS, &roms);

	for (p = roms; r == 0 && p && !parse_line(p, &addr, f);) {
		p = strchr(p, '\n');
		p = p ? p + 1 : NULL;
	}
	if (r < 0 || !p || !*p) {
		f->size = 0;
		return r == -EREMOTEIO ? 0 : r;
	}
	snprintf(cmd, sizeof(cmd), "gpa2hva 0x%" PRIx64, addr);
	r = qmp_hmp(q, cmd, VM_TIMEOUT_MS, &where);
	if (r < 0)
		return r;
	p = strstr(where, ") is 0x");
	return p && sscanf(p, ") is %" SCNx64, &f->hva) == 1 ? 0 : -EBADMSG;
}

static int open_memory(pid_t pid, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int read_memory(pid_t pid, const struct firmware *f, uint8_t *to)
{
	int mc_autoclose fd = open_memory(pid, O_RDONLY);

	if (fd < 0)
		return fd;
	return pread(fd, to, f->size, (off_t)f->hva) == (ssize_t)f->size ? 0 : -EIO;
}

static int read_file(const char *dir, const char *name, const struct firmware *f, uint8_t *to)
{
	int mc_autoclose fd = -1;
	char path[1024];
	struct stat st;

	if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != f->size)
		return -EINVAL;
	return read(fd, to, f->size) == (ssize_t)f->size ? 0 : -EIO;
}

/* Where QEMU looked: its directory, those of -L, and those it was built with. */
static int search_file(pid_t pid, const struct firmware *f, uint8_t *to)
{
	static const char *const dirs[] = {"/usr/share/qemu", "/usr/share/seabios",
	                                   "/usr/local/share/qemu"};
	mc_autofree char *args = NULL;
	char cwd[64];
	size_t len = 0;
	int r;

	snprintf(cwd, sizeof(cwd), "/proc/%d/cwd", (int)pid);
	r = read_file(f->name[0] == '/' ? "" : cwd, f->name, f, to);
	if (r == 0 || vm_read_cmdline(pid, &args, &len) < 0)
		return r;
	for (size_t at = 0; at < len; at += strlen(args + at) + 1) {
		const char *a = args + at, *dir = a + strlen(a) + 1;

		if (strcmp(a, "-L") == 0 && dir < args + len && read_file(dir, f->name, f, to) == 0)
			return 0;
	}
	for (size_t i = 0; i < MC_ARRAY_SIZE(dirs); i++)
		if (read_file(dirs[i], f->name, f, to) == 0)
			return 0;
	return -ENOENT;
}

static bool is_empty(const uint8_t *p, size_t n)
{
	return !p[0] && memcmp(p, p + 1, n - 1) == 0;
}

/* The content, from memory or, as that is empty, from the file (*filed). */
static int content(pid_t pid, const struct firmware *f, uint8_t *to, bool *from_file)
{
	int r = read_memory(pid, f, to);

	*from_file = r == 0 && is_empty(to, f->size);
	return *from_file ? search_file(pid, f, to) : r;
}

int vm_firmware_describe(struct qmp *q, pid_t pid, char *line, size_t len)
{
	mc_autofree uint8_t *buf = NULL;
	struct firmware f = {0};
	bool from_file;
	int r = find(q, &f);

	line[0] = '\0';
	if (r < 0 || !f.size)
		return r;
	buf = malloc(f.size);
	if (!buf)
		return -ENOMEM;
	r = content(pid, &f, buf, &from_file);
	if (r < 0)
		snprintf(line, len, "firmware %s that can't be read: %s", f.name, strerror(-r));
	else
		snprintf(line, len, "firmware of %" PRIu64 " bytes, hash %016" PRIx64, f.size,
		         mc_hash(buf, f.size));
	return 0;
}

int vm_firmware_fill(struct qmp *q, pid_t pid)
{
	mc_autofree uint8_t *buf = NULL;
	int mc_autoclose fd = -1;
	struct firmware f = {0};
	bool from_file;
	int r = find(q, &f);

	if (r < 0 || !f.size)
		return r;
	buf = malloc(f.size);
	if (!buf)
		return -ENOMEM;
	r = content(pid, &f, buf, &from_file);
	if (r < 0 || !from_file)
		return r;
	fd = open_memory(pid, O_WRONLY);
	if (fd < 0)
		return fd;
	return pwrite(fd, buf, f.size, (off_t)f.hva) == (ssize_t)f.size ? 0 : -EIO;
}
