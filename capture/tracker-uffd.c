/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tracking by userfaultfd and PAGEMAP_SCAN. */
#include "tracker-private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"
#include "inject.h"
#include "pagemap-scan.h"
#include "uffd-scan.h"

/* Linux 6.7 ABI that older headers lack (include/uapi/linux/userfaultfd.h). */
#define UFFD_WP_UNPOPULATED (1 << 13)
#define UFFD_WP_ASYNC       (1 << 15)
#define UFFD_USER_ONLY      1
#define UFFD_LINK           "anon_inode:[userfaultfd]" /* in /proc/PID/fd */

#define INJECT_NS   MC_NS_PER_S       /* above inject.c's own limit */
#define REGISTER_NS (5 * MC_NS_PER_S) /* a large guest has many page tables */

/* The userfaultfd that QEMU holds, left by a predecessor: its number there, or -ENOENT. */
static int find_remote(pid_t pid)
{
	char path[64], text[64];
	struct dirent *e;
	int found = -ENOENT;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	if (!d)
		return -errno;
	while (found < 0 && (e = readdir(d))) {
		ssize_t n = readlinkat(dirfd(d), e->d_name, text, sizeof(text) - 1);

		if (n <= 0)
			continue;
		text[n] = '\0';
		if (strcmp(text, UFFD_LINK) == 0)
			found = atoi(e->d_name);
	}
	closedir(d);
	return found;
}

static int make_remote(pid_t pid, char *why, size_t why_len)
{
	const uint64_t arg[3] = {O_CLOEXEC | O_NONBLOCK | UFFD_USER_ONLY, 0, 0};
	int64_t fd = -1;
	int r = inject_syscall(pid, SYS_userfaultfd, arg, &fd, NULL);

	if (r < 0) {
		snprintf(why, why_len,
		         "can't make a system call in QEMU %d: %s; CAP_SYS_PTRACE is needed and "
		         "nobody else (gdb, strace) may trace it",
		         (int)pid, strerror(-r));
		return r;
	}
	if (fd < 0) {
		snprintf(why, why_len,
		         "QEMU %d can't create a userfaultfd: %s; a seccomp sandbox (-sandbox) "
		         "must allow userfaultfd",
		         (int)pid, strerror((int)-fd));
		return (int)fd;
	}
	return (int)fd;
}

/* QEMU named the number: no ioctl of ours goes to anything else that it may have there. */
static bool is_userfaultfd(int fd)
{
	char path[64], text[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	return strcmp(text, UFFD_LINK) == 0;
}

static int fetch(struct tracker *t, char *why, size_t why_len)
{
	int mc_autoclose pidfd = (int)syscall(SYS_pidfd_open, t->vm->pid, 0);

	if (pidfd >= 0)
		t->uffd = (int)syscall(SYS_pidfd_getfd, pidfd, t->remote_fd, 0);
	if (pidfd < 0 || t->uffd < 0) {
		int r = -errno;

		t->uffd = -1;
		snprintf(why, why_len,
		         "can't fetch the userfaultfd of QEMU %d: %s; mcctl doctor says whether "
		         "this host allows it",
		         (int)t->vm->pid, strerror(-r));
		return r;
	}
	if (!is_userfaultfd(t->uffd)) {
		mc_closep(&t->uffd);
		snprintf(why, why_len,
		         "QEMU %d has something else in place of its userfaultfd; it can't be "
		         "trusted: start it again",
		         (int)t->vm->pid);
		return -EPERM;
	}
	return 0;
}

static int enable(struct tracker *t, char *why, size_t why_len)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_WP_ASYNC | UFFD_WP_UNPOPULATED};

	/* EINVAL as well when a predecessor did it: then registering tells. */
	if (ioctl(t->uffd, UFFDIO_API, &api) < 0 && errno != EINVAL && errno != EPERM) {
		snprintf(why, why_len,
		         "this kernel refuses the features of userfaultfd that tracking needs "
		         "(UFFDIO_API: %s); Linux 6.7 or newer has them, tracker=soft-dirty does "
		         "without",
		         strerror(errno));
		return -errno;
	}
	for (unsigned i = 0; i < t->vm->nblocks; i++) {
		struct uffdio_register reg = {
		        .range = {.start = t->vm->block[i].hva, .len = t->vm->block[i].size},
		        .mode = UFFDIO_REGISTER_MODE_WP};

		if (ioctl(t->uffd, UFFDIO_REGISTER, &reg) == 0 || errno == EBUSY)
			continue;
		snprintf(why, why_len,
		         "this kernel can't track writes to RAM block %s (%s); Linux 6.7 or newer "
		         "is needed",
		         t->vm->block[i].name, strerror(errno));
		return errno == EINVAL ? -EOPNOTSUPP : -errno;
	}
	return 0;
}

/*
 * With a huge page mapped as one every write counts for all of its 512 pages.  QEMU asks for
 * them for its RAM by itself, so that is what it gets back.  What can't be had is done without.
 */
static void advise(const struct tracker *t, uint64_t advice)
{
	for (unsigned i = 0; i < t->vm->nblocks; i++) {
		const uint64_t arg[3] = {t->vm->block[i].hva, t->vm->block[i].size, advice};
		int64_t result;

		mc_arena_busy(t->arena, MC_ROLE_CAPTURE, INJECT_NS);
		(void)inject_syscall(t->vm->pid, SYS_madvise, arg, &result, NULL);
	}
}

/* Its number in QEMU, or negative errno. */
static int have_remote(const struct tracker *t, char *why, size_t why_len)
{
	int fd = find_remote(t->vm->pid);

	/* One that hangs here may keep a thread of QEMU standing still. */
	mc_arena_busy(t->arena, MC_ROLE_CAPTURE, INJECT_NS);
	if (fd != -ENOENT)
		return fd;
	fd = make_remote(t->vm->pid, why, why_len);
	if (fd >= 0)
		advise(t, MADV_NOHUGEPAGE);
	return fd;
}

static int uffd_attach(struct tracker *t, char *why, size_t why_len)
{
	int r;

	t->remote_fd = have_remote(t, why, why_len);
	if (t->remote_fd < 0)
		return t->remote_fd;
	mc_arena_busy(t->arena, MC_ROLE_CAPTURE, REGISTER_NS);
	r = fetch(t, why, why_len);
	(void)mc_fault(MC_FAULT_CAPTURE_FETCHED);
	if (r == 0)
		r = enable(t, why, why_len);
	(void)mc_fault(MC_FAULT_CAPTURE_REGISTERED);
	if (r == 0)
		(void)madvise(t->arena->vector, sizeof(struct mc_region) * MC_VECTOR_REGIONS,
		              MADV_POPULATE_WRITE);
	if (r == 0) {
		r = uffd_scan_new(&t->scan, t);
		if (r < 0)
			snprintf(why, why_len,
			         "can't look at the RAM's files: %s; is QEMU's file still there, "
			         "and may root read it?",
			         strerror(-r));
	}
	return r;
}

/* Both came with Linux 6.7; either may be missing from a kernel's configuration. */
static bool uffd_supported(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_WP_ASYNC | UFFD_WP_UNPOPULATED};
	int mc_autoclose pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int mc_autoclose fd =
	        (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_ONLY);
	struct pm_scan nothing = {.size = sizeof(nothing),
	                          .category_mask = PM_PAGE_WRITTEN,
	                          .return_mask = PM_PAGE_WRITTEN};

	/* What is forbidden to us is asked of QEMU: it is there. */
	if (fd < 0 && errno == ENOSYS)
		return false;
	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0 && errno == EINVAL)
		return false;
	return pagemap < 0 || ioctl(pagemap, PM_SCAN_IOCTL, &nothing) >= 0 || errno != ENOTTY;
}

static int uffd_detach(struct tracker *t)
{
	uint64_t arg[3] = {(uint64_t)t->remote_fd, 0, 0};
	int64_t result = 0;
	int r;

	for (unsigned i = 0; i < t->vm->nblocks; i++) {
		struct uffdio_range range = {.start = t->vm->block[i].hva,
		                             .len = t->vm->block[i].size};

		(void)ioctl(t->uffd, UFFDIO_UNREGISTER, &range);
	}
	mc_closep(&t->uffd);
	/* Only the descriptor that we made is closed: the number may have been reused. */
	if (find_remote(t->vm->pid) != t->remote_fd)
		return 0;
	advise(t, MADV_HUGEPAGE);
	r = inject_syscall(t->vm->pid, SYS_close, arg, &result, NULL);
	return r < 0 ? r : (int)result;
}

/* On two CPUs the other one is QEMU's, which writes its device state meanwhile. */
static bool has_cpu_to_spare(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) < 0 || CPU_COUNT(&set) > 2;
}

static int uffd_start(struct tracker *t)
{
	if (!has_cpu_to_spare())
		return 0;
	return uffd_scan_start(t->scan, UFFD_SCAN_PARALLEL);
}

static int64_t uffd_run(struct tracker *t, _Atomic uint64_t *bitmap, _Atomic uint64_t *also)
{
	return uffd_scan_run(t->scan, bitmap, also);
}

static int64_t uffd_recover(struct tracker *t, _Atomic uint64_t *bitmap)
{
	return uffd_scan_recover(t->scan, bitmap);
}

static void uffd_done(struct tracker *t)
{
	t->scan = uffd_scan_free(t->scan);
}

const struct tracker_ops tracker_uffd = {
        .kind = MC_TRACKER_UFFD,
        .needs = "PAGEMAP_SCAN and userfaultfd in asynchronous mode (Linux 6.7)",
        .supported = uffd_supported,
        .attach = uffd_attach,
        .detach = uffd_detach,
        .start = uffd_start,
        .scan = uffd_run,
        .recover = uffd_recover,
        .done = uffd_done,
};
