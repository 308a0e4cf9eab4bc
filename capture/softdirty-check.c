/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * May soft-dirty bits be trusted for this guest?  The kernel drops page table entries of shared
 * memory, and their bits, when it reclaims pages that aren't locked, and when it replaces small
 * pages by a huge one or splits a huge one (mm/khugepaged.c, mm/huge_memory.c).
 */
#include <ctype.h>
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "tracker-private.h"

#define THP_SIZES   "/sys/kernel/mm/transparent_hugepage/hugepages-*kB/shmem_enabled"
#define REMEDY_UFFD "or run Linux 6.7 or newer, whose tracking doesn't mind"

/* What smaps says of the mappings that make up a block. */
struct mapped {
	uint64_t bytes;
	bool unlocked, huge, advised;
};

static int refuse(char *why, size_t len, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, len, fmt, ap);
	va_end(ap);
	return -EPERM;
}

static bool has_flag(const char *flags, const char *flag)
{
	const char *p = strstr(flags, flag);

	return p && p[-1] == ' ' && (p[2] == ' ' || p[2] == '\n' || !p[2]);
}

/* One pass over smaps for all blocks: it may be long. */
static int read_smaps(const struct vm_info *vm, struct mapped *m)
{
	char path[64], line[512];
	uint64_t start = 0, end = 0, kb;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)vm->pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		if (isxdigit((unsigned char)line[0]) && !isupper((unsigned char)line[0])) {
			if (sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) != 2)
				start = end = 0;
			continue;
		}
		for (unsigned i = 0; i < vm->nblocks; i++) {
			const struct vm_block *b = &vm->block[i];
			uint64_t from = mc_max_u64(start, b->hva);
			uint64_t to = mc_min_u64(end, b->hva + b->size);

			if (from >= to)
				continue;
			if (sscanf(line, "ShmemPmdMapped: %" SCNu64, &kb) == 1 && kb)
				m[i].huge = true;
			if (strncmp(line, "VmFlags:", 8) != 0)
				continue;
			m[i].bytes += to - from;
			m[i].unlocked |= !has_flag(line, "lo");
			m[i].advised |= has_flag(line, "hg");
		}
	}
	fclose(f);
	return 0;
}

/* The word in brackets: what was chosen of "always [never]". Empty: there is no such file. */
static void chosen(const char *path, char *word, size_t len)
{
	char line[256] = "", *open_, *close_;
	FILE *f = fopen(path, "re");

	word[0] = '\0';
	if (!f)
		return;
	if (fgets(line, sizeof(line), f) && (open_ = strchr(line, '[')) &&
	    (close_ = strchr(open_, ']'))) {
		*close_ = '\0';
		snprintf(word, len, "%s", open_ + 1);
	}
	fclose(f);
}

/* huge= of the mount that holds the block's file, as QEMU sees it. -ENOENT: not mounted. */
static int mount_policy(const struct vm_info *vm, const struct vm_block *b, char *word, size_t len)
{
	char path[64], line[4096];
	int r = -ENOENT;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", (int)vm->pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (r < 0 && fgets(line, sizeof(line), f)) {
		unsigned major_, minor_;
		const char *huge, *super = strstr(line, " - ");

		if (sscanf(line, "%*d %*d %u:%u ", &major_, &minor_) != 2 ||
		    makedev(major_, minor_) != b->dev || !super)
			continue;
		huge = strstr(super, "huge=");
		snprintf(word, len, "%s", huge ? huge + 5 : "never");
		word[strcspn(word, ",\n ")] = '\0';
		r = 0;
	}
	fclose(f);
	return r;
}

/* Sizes other than the system's one: Linux 6.11. */
static int check_sizes(char *why, size_t len)
{
	glob_t g = {0};
	int r = 0;

	if (glob(THP_SIZES, 0, NULL, &g) == 0)
		for (size_t i = 0; r == 0 && i < g.gl_pathc; i++) {
			char word[32];

			chosen(g.gl_pathv[i], word, sizeof(word));
			if (strcmp(word, "never") != 0 && strcmp(word, "inherit") != 0)
				r = refuse(
				        why, len,
				        "%s is '%s', which makes soft-dirty tracking lose pages; "
				        "echo never >%s",
				        g.gl_pathv[i], word, g.gl_pathv[i]);
		}
	globfree(&g);
	return r;
}

static int check_policy(const struct vm_info *vm, unsigned i, const struct mapped *m, char *why,
                        size_t len)
{
	const struct vm_block *b = &vm->block[i];
	char all[32], word[32];
	bool mounted = mount_policy(vm, b, word, sizeof(word)) == 0;

	chosen(SOFTDIRTY_THP, all, sizeof(all));
	if (!all[0] || strcmp(all, "deny") == 0)
		return 0;
	if (!mounted || strcmp(all, "force") == 0)
		snprintf(word, sizeof(word), "%s", all);
	/* QEMU asks for huge pages for its RAM; one that didn't gets none by "advise". */
	if (strcmp(word, "never") == 0 || (strcmp(word, "advise") == 0 && !m->advised))
		return 0;
	if (mounted && strcmp(all, "force") != 0)
		return refuse(why, len,
		              "RAM block %s is on a file system mounted with huge=%s, which makes "
		              "soft-dirty tracking lose pages; remount it with huge=never and "
		              "restart QEMU, " REMEDY_UFFD,
		              b->name, word);
	return refuse(why, len,
	              "huge pages for shared memory are on (%s is '%s'), which makes soft-dirty "
	              "tracking of RAM block %s lose pages; echo never >%s and restart "
	              "QEMU, " REMEDY_UFFD,
	              SOFTDIRTY_THP, all, b->name, SOFTDIRTY_THP);
}

static int check_file(const struct vm_info *vm, unsigned i, char *why, size_t len)
{
	mc_autoclose int fd = vm_open_block(vm, i);
	struct statfs s;

	if (fd < 0 || fstatfs(fd, &s) < 0)
		return refuse(why, len,
		              "can't open RAM block %s; is QEMU's file still there, and may root "
		              "read it?",
		              vm->block[i].name);
	if (s.f_type == TMPFS_MAGIC)
		return 0;
	return refuse(why, len,
	              "RAM block %s is on %s; soft-dirty tracking needs it on tmpfs (/dev/shm) or "
	              "in a memfd, " REMEDY_UFFD,
	              vm->block[i].name,
	              s.f_type == HUGETLBFS_MAGIC ? "hugetlbfs" : "another file system");
}

int softdirty_check_mapping(const struct vm_info *vm, char *why, size_t why_len)
{
	struct mapped m[VM_BLOCKS_MAX] = {0};
	int r = read_smaps(vm, m);

	if (r < 0) {
		snprintf(why, why_len,
		         "can't read /proc/%d/smaps: %s; capture needs CAP_SYS_PTRACE and the "
		         "host's /proc",
		         (int)vm->pid, strerror(-r));
		return r;
	}
	r = check_sizes(why, why_len);
	for (unsigned i = 0; r == 0 && i < vm->nblocks; i++) {
		const struct vm_block *b = &vm->block[i];

		if (m[i].bytes != b->size || m[i].unlocked)
			return refuse(
			        why, why_len,
			        "RAM block %s isn't locked in memory, and soft-dirty tracking "
			        "would lose what the kernel reclaims; start QEMU with "
			        "-overcommit mem-lock=on, " REMEDY_UFFD,
			        b->name);
		if (m[i].huge)
			return refuse(why, why_len,
			              "RAM block %s is mapped by huge pages, whose soft-dirty bits "
			              "get lost; turn them off (%s) and restart QEMU, " REMEDY_UFFD,
			              b->name, SOFTDIRTY_THP);
		r = check_policy(vm, i, &m[i], why, why_len);
	}
	return r;
}

int softdirty_check(const struct vm_info *vm, char *why, size_t why_len)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < vm->nblocks; i++)
		r = check_file(vm, i, why, why_len);
	return r < 0 ? r : softdirty_check_mapping(vm, why, why_len);
}
