/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The files behind a QEMU's RAM blocks, by its /proc entries. */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "../ipc/util.h"
#include "vm-private.h"

/* A line of /proc/PID/maps. */
struct mapping {
	uint64_t start, end, offset, dev, ino;
	bool shared;
};

static bool parse_mapping(const char *line, struct mapping *m)
{
	unsigned major, minor;
	char perm[8];

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %x:%x %" SCNu64, &m->start,
	           &m->end, perm, &m->offset, &major, &minor, &m->ino) != 7)
		return false;
	m->dev = makedev(major, minor);
	m->shared = perm[3] == 's';
	return true;
}

static bool continues(const struct mapping *a, const struct mapping *b)
{
	return b->start == a->end && b->dev == a->dev && b->ino == a->ino &&
	       b->shared == a->shared && (!a->ino || b->offset == a->offset + (a->end - a->start));
}

/*
 * The mapping at @hva; neighbours that continue it count as one: the kernel splits a mapping
 * where its flags change (a registration for tracking, madvise).
 */
static int find_mapping(pid_t pid, uint64_t hva, struct mapping *ret)
{
	mc_autofree char *line = NULL;
	struct mapping m, all = {0};
	bool found = false;
	size_t size = 0;
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (getline(&line, &size, f) > 0) {
		if (!parse_mapping(line, &m))
			continue;
		if (all.end && continues(&all, &m)) {
			all.end = m.end;
		} else if (found) {
			break;
		} else {
			all = m;
		}
		found = hva >= all.start && hva < all.end;
	}
	fclose(f);
	*ret = all;
	return found ? 0 : -ENOENT;
}

static bool is_file(int fd, const struct vm_block *b)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_dev == b->dev &&
	       st.st_ino == b->ino && st.st_size >= 0 && (uint64_t)st.st_size >= b->size;
}

/* By the mapping itself: works for deleted files too; needs CAP_CHECKPOINT_RESTORE. */
static int open_by_mapping(pid_t pid, const struct vm_block *b)
{
	mc_autoclose int fd = -1;
	struct dirent *e;
	char path[64];
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/map_files", (int)pid);
	d = opendir(path);
	if (!d)
		return -errno;
	/* the name is START-END of a piece; the first piece begins at the block's address */
	while (fd < 0 && (e = readdir(d))) {
		char *end;

		if (strtoull(e->d_name, &end, 16) == b->hva && *end == '-')
			fd = openat(dirfd(d), e->d_name, O_RDWR | O_CLOEXEC);
	}
	closedir(d);
	return fd >= 0 && is_file(fd, b) ? mc_take_fd(&fd) : -ENOENT;
}

static int open_by_fd(pid_t pid, const struct vm_block *b)
{
	int fd = -1, error = -ENOENT;
	struct dirent *e;
	char path[64];
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	if (!d)
		return -errno;
	while (fd < 0 && (e = readdir(d))) {
		struct stat st;

		/* looked at before it is opened: opening a tty or a pipe has effects */
		if (fstatat(dirfd(d), e->d_name, &st, 0) < 0 || !S_ISREG(st.st_mode) ||
		    st.st_dev != b->dev || st.st_ino != b->ino)
			continue;
		fd = openat(dirfd(d), e->d_name, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			error = -errno;
		else if (!is_file(fd, b))
			mc_closep(&fd);
	}
	closedir(d);
	return fd >= 0 ? fd : error;
}

int vm_open_block(const struct vm_info *i, unsigned block)
{
	const struct vm_block *b;
	int fd;

	if (block >= i->nblocks)
		return -EINVAL;
	b = &i->block[block];
	if (!b->shared)
		return -EPERM;
	fd = open_by_mapping(i->pid, b);
	return fd >= 0 ? fd : open_by_fd(i->pid, b);
}

/* Page size of the file: huge pages only on hugetlbfs, where a mapping has nothing smaller. */
static uint64_t file_page_size(int fd)
{
	struct statfs s;

	if (fstatfs(fd, &s) == 0 && s.f_type == HUGETLBFS_MAGIC && s.f_bsize > 0)
		return (uint64_t)s.f_bsize;
	return 4096;
}

int vm_map_block(const struct vm_info *i, struct vm_block *b, char *why, size_t len)
{
	struct vm_info one = {.pid = i->pid, .nblocks = 1};
	mc_autoclose int fd = -1;
	struct mapping m = {0};
	int r = find_mapping(i->pid, b->hva, &m);

	if (r < 0)
		return vm_fail(why, len, r,
		               "can't find memory backend %s in the mappings of QEMU (pid %d): %s; "
		               "is that its process on this host? CAP_SYS_PTRACE is needed",
		               b->name, (int)i->pid, strerror(-r));
	b->page_size = 4096;
	b->dev = m.dev;
	b->ino = m.ino;
	b->shared = b->shared && m.shared && m.ino;
	if (!b->shared)
		return 0;
	if (b->hva != m.start || m.offset || m.end - b->hva < b->size)
		return vm_fail(
		        why, len, -ENOTSUP,
		        "memory backend %s isn't mapped as a whole from the start of its file; "
		        "use a file of its own for each backend",
		        b->name);
	one.block[0] = *b;
	fd = vm_open_block(&one, 0);
	if (fd < 0)
		return vm_fail(why, len, fd,
		               "can't open the RAM file of memory backend %s of QEMU (pid %d): %s; "
		               "CAP_SYS_PTRACE is needed",
		               b->name, (int)i->pid, strerror(-fd));
	b->page_size = file_page_size(fd);
	return 0;
}
