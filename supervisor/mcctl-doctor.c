/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mcctl doctor: looks at this host as a primary and as a backup would, and says for each thing
 * that is wrong what to change.  Needs no running service.  Exit status: 0 nothing in the way,
 * 1 something must be changed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "mcctl.h"

/* Newer than the distribution's headers. */
#define DR_UFFD_USER_MODE_ONLY 1
#define DR_UFFD_WP_UNPOPULATED (1ULL << 13)
#define DR_UFFD_WP_ASYNC       (1ULL << 15)
#define DR_PAGEMAP_SCAN        0xc0606610UL /* _IOWR('f', 16, 96 bytes) */

#define SHM_WANTED  (1ULL << 30)
#define QLEN_WANTED 512

struct doctor {
	struct ctl *ctl;
	bool service; /* it answers on the bus */
	pid_t service_pid;
	unsigned bad, warned;
};

enum level { GOOD, NOTE, WARN, BAD };

static void say(struct doctor *d, enum level l, const char *what, const char *fmt, ...)
        __attribute__((format(printf, 4, 5)));
static void say(struct doctor *d, enum level l, const char *what, const char *fmt, ...)
{
	static const char *const words[] = {"ok  ", "note", "WARN", "BAD "};
	va_list ap;

	printf("%s  %-18s ", words[l], what);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	d->bad += l == BAD;
	d->warned += l == WARN;
}

/* First line of a small file, without its newline; "" when it can't be read. */
static const char *read_line(const char *path, char *buf, size_t len)
{
	int mc_autoclose fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, len - 1);

	buf[n > 0 ? n : 0] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return buf;
}

/* --- kernel -------------------------------------------------------------------------------- */

static bool have_scan(void)
{
	int mc_autoclose fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	/* A null argument: EFAULT from a kernel that knows the call, ENOTTY from one that doesn't.
	 */
	return fd >= 0 && ioctl(fd, DR_PAGEMAP_SCAN, NULL) < 0 && errno != ENOTTY &&
	       errno != EINVAL;
}

static int have_async(void)
{
	struct uffdio_api api = {.api = UFFD_API,
	                         .features = DR_UFFD_WP_ASYNC | DR_UFFD_WP_UNPOPULATED};
	int mc_autoclose fd =
	        (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | DR_UFFD_USER_MODE_ONLY);

	if (fd < 0)
		return -errno;
	return ioctl(fd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

/* The older way: bit 55 of a page's entry goes when "4" is written to clear_refs. */
static bool have_soft_dirty(void)
{
	long size = sysconf(_SC_PAGESIZE);
	int mc_autoclose map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int mc_autoclose refs = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	uint64_t before = 0, after = 0;
	char *page = aligned_alloc((size_t)size, (size_t)size);
	off_t at = (off_t)((uintptr_t)page / (uintptr_t)size * sizeof(before));
	bool ok = false;

	if (page) {
		*(volatile char *)page = 1;
		ok = pread(map, &before, sizeof(before), at) == sizeof(before) &&
		     write(refs, "4", 1) == 1 &&
		     pread(map, &after, sizeof(after), at) == sizeof(after) && before >> 55 & 1 &&
		     !(after >> 55 & 1);
	}
	free(page);
	return ok;
}

static void check_kernel(struct doctor *d)
{
	struct utsname u;
	int r = have_async();

	(void)uname(&u);
	if (r == 0 && have_scan())
		say(d, GOOD, "dirty tracking", "Linux %s has PAGEMAP_SCAN and WP_ASYNC", u.release);
	else if (have_soft_dirty())
		say(d, WARN, "dirty tracking",
		    "Linux %s has only soft-dirty bits: slower, whole-process; Linux 6.7 or newer "
		    "is better for a primary",
		    u.release);
	else if (r == -ENOSYS || r == -EPERM)
		say(d, BAD, "dirty tracking",
		    "userfaultfd(2): %s; a seccomp filter or a kernel without CONFIG_USERFAULTFD; "
		    "a primary needs it",
		    strerror(-r));
	else
		say(d, BAD, "dirty tracking",
		    "Linux %s lacks PAGEMAP_SCAN, WP_ASYNC and soft-dirty bits; a primary needs "
		    "Linux 6.7 or newer "
		    "(a backup doesn't)",
		    u.release);
}

/* True when a line of the file has the word. */
static bool file_has(const char *path, const char *word)
{
	char line[1024];
	bool found = false;
	FILE *f = fopen(path, "re");

	while (f && !found && fgets(line, sizeof(line), f)) {
		line[strcspn(line, ":")] = '\0'; /* modules.dep: what follows are others */
		found = strstr(line, word) != NULL;
	}
	if (f)
		fclose(f);
	return found;
}

/* Loaded, there to be loaded, or built in (by a symbol of it). */
static bool have_module(const char *name, const char *symbol)
{
	char path[256], word[64];
	struct utsname u;

	(void)uname(&u);
	snprintf(path, sizeof(path), "/sys/module/%s", name);
	if (access(path, F_OK) == 0)
		return true;
	snprintf(word, sizeof(word), "/%s.ko", name);
	snprintf(path, sizeof(path), "/lib/modules/%s/modules.dep", u.release);
	if (file_has(path, word))
		return true;
	return file_has("/proc/kallsyms", symbol);
}

static void check_gate(struct doctor *d)
{
	bool plug = have_module("sch_plug", " plug_qdisc_ops"),
	     ifb = have_module("ifb", " ifb_setup");

	if (access("/dev/net/tun", R_OK | W_OK) == 0)
		say(d, GOOD, "gate relay", "/dev/net/tun can be used");
	else
		say(d, WARN, "gate relay",
		    "/dev/net/tun: %s; the relay gate needs it for taps (modprobe tun)",
		    strerror(errno));
	if (plug && ifb)
		say(d, GOOD, "gate plug", "the kernel has sch_plug and ifb");
	else
		say(d, NOTE, "gate plug",
		    "the kernel has no %s%s%s; taps can't be gated in the kernel here, use the "
		    "relay gate",
		    plug ? "" : "sch_plug", !plug && !ifb ? " and no " : "", ifb ? "" : "ifb");
}

static void check_rdma(struct doctor *d)
{
	DIR *dir = opendir("/sys/class/infiniband");
	struct dirent *e;
	unsigned n = 0;

	while (dir && (e = readdir(dir))) {
		char path[400], state[64];

		if (e->d_name[0] == '.')
			continue;
		n++;
		snprintf(path, sizeof(path), "/sys/class/infiniband/%s/ports/1/state", e->d_name);
		(void)read_line(path, state, sizeof(state));
		say(d, strstr(state, "ACTIVE") ? GOOD : WARN, "RDMA", "device %s, port 1 is %s%s",
		    e->d_name, state[0] ? state : "unknown",
		    strstr(state, "ACTIVE") ? "" : "; check its cable and subnet manager");
	}
	if (dir)
		closedir(dir);
	if (!n)
		say(d, NOTE, "RDMA", "no device; links use TCP");
}

/* --- limits -------------------------------------------------------------------------------- */

/* The limit that counts is the service's; without one, what it would inherit from here. */
static unsigned long long memlock_limit(const struct doctor *d)
{
	struct rlimit l = {0};

	if (d->service_pid > 0 && prlimit(d->service_pid, RLIMIT_MEMLOCK, NULL, &l) == 0)
		return l.rlim_cur;
	(void)getrlimit(RLIMIT_MEMLOCK, &l);
	return l.rlim_cur;
}

static void check_limits(struct doctor *d)
{
	unsigned long long lock = memlock_limit(d);
	struct statvfs v;
	unsigned long long size, space;

	if (lock == RLIM_INFINITY || lock >= SHM_WANTED)
		say(d, GOOD, "memlock", "memory may be locked for RDMA");
	else
		say(d, NOTE, "memlock",
		    "%llu KiB may be locked; RDMA registers all slabs: LimitMEMLOCK=infinity in "
		    "mc-supervisor.service, or ulimit -l unlimited",
		    lock >> 10);
	if (statvfs("/dev/shm", &v) < 0) {
		say(d, BAD, "/dev/shm", "%s; mount a tmpfs there", strerror(errno));
		return;
	}
	size = (unsigned long long)v.f_blocks * v.f_frsize;
	space = (unsigned long long)v.f_bavail * v.f_frsize;
	say(d,
	    space < 256 << 20    ? BAD
	    : space < SHM_WANTED ? WARN
	                         : GOOD,
	    "/dev/shm", "%llu of %llu MiB free%s", space >> 20, size >> 20,
	    space < SHM_WANTED ? "; a guest needs up to its max-memory (1 GiB) there: mount -o "
	                         "remount,size=... /dev/shm, and the same in /etc/fstab"
	                       : "");
}

static void check_qemu(struct doctor *d)
{
	unsigned major = 0, minor = 0;
	char line[256] = "", *v;
	FILE *f = popen("qemu-system-x86_64 --version 2>/dev/null", "re");

	if (f && !fgets(line, sizeof(line), f))
		line[0] = '\0';
	if (f)
		pclose(f);
	v = strstr(line, "version ");
	if (!v || sscanf(v + 8, "%u.%u", &major, &minor) != 2)
		say(d, WARN, "QEMU", "no qemu-system-x86_64 in the PATH; install qemu-system-x86");
	else if (major < 7 || (major == 7 && minor < 2))
		say(d, BAD, "QEMU", "version %u.%u; 7.2 or newer is needed", major, minor);
	else
		say(d, GOOD, "QEMU", "version %u.%u", major, minor);
	if (access("/dev/kvm", R_OK | W_OK) < 0)
		say(d, NOTE, "KVM", "/dev/kvm: %s; guests are emulated and slow", strerror(errno));
}

/* --- permissions, network, time ------------------------------------------------------------ */

static bool have_capability(int cap)
{
	char line[256];
	unsigned long long eff = 0;
	FILE *f = fopen("/proc/self/status", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %llx", &eff) == 1)
			break;
	if (f)
		fclose(f);
	return eff >> cap & 1;
}

static void check_permissions(struct doctor *d)
{
	char scope[16];

	if (geteuid() != 0) {
		say(d, NOTE, "permissions", "run as root to check them: sudo mcctl doctor");
		return;
	}
	say(d, have_capability(19) ? GOOD : BAD, "CAP_SYS_PTRACE",
	    have_capability(19) ? "may look into QEMU's memory"
	                        : "is missing; capture needs it (a container must be given it)");
	say(d, have_capability(12) ? GOOD : WARN, "CAP_NET_ADMIN",
	    have_capability(12)
	            ? "may open taps"
	            : "is missing; the gate needs it for taps (a container must be given it)");
	(void)read_line("/proc/sys/kernel/yama/ptrace_scope", scope, sizeof(scope));
	if (scope[0] == '3')
		say(d, BAD, "ptrace_scope",
		    "is 3: nobody may attach to QEMU; sysctl kernel.yama.ptrace_scope=1 (after a "
		    "reboot)");
}

static void check_network(struct doctor *d)
{
	char line[32];
	int n = atoi(read_line("/proc/sys/net/unix/max_dgram_qlen", line, sizeof(line)));

	if (n >= QLEN_WANTED)
		say(d, GOOD, "max_dgram_qlen", "%d", n);
	else
		say(d, WARN, "max_dgram_qlen",
		    "%d: bursts of a guest's packets are dropped while the gate is busy; sysctl "
		    "-w net.unix.max_dgram_qlen=4096 before QEMU is started",
		    n);
}

static void check_time(struct doctor *d)
{
	struct timex t = {0};
	int state = adjtimex(&t);

	if (state < 0 || state == TIME_ERROR || t.status & STA_UNSYNC)
		say(d, WARN, "time",
		    "this host's clock isn't synchronized; events of both hosts can't be compared "
		    "(install chrony)");
	else
		say(d, GOOD, "time", "the clock is synchronized");
}

static void check_service(struct doctor *d)
{
	char *version = NULL;

	if (!d->service) {
		say(d, NOTE, "service",
		    "%s gives no answer on the %s bus: systemctl start mc-supervisor", MC_BUS_NAME,
		    d->ctl->bus_address);
		return;
	}
	if (sd_bus_get_property_string(d->ctl->bus, MC_BUS_NAME, MC_BUS_ROOT, MC_IFACE_MGR,
	                               "Version", NULL, &version) < 0)
		say(d, WARN, "service", "runs, but doesn't say its version");
	else if (strcmp(version, mc_build_id()) != 0)
		say(d, WARN, "service",
		    "is version %s, this mcctl is %s: systemctl restart mc-supervisor", version,
		    mc_build_id());
	else
		say(d, GOOD, "service", "runs, version %s", version);
	free(version);
}

static void print_mistake(void *ctx, const char *text)
{
	say(ctx, BAD, "configuration", "%s", text);
}

static void check_config(struct doctor *d)
{
	struct guest_conf *list = NULL;
	unsigned n = 0;

	if (conf_read_dir(CONF_DIR, &list, print_mistake, d) == 0) {
		for (struct guest_conf *g = list; g; g = g->next)
			n++;
		say(d, GOOD, "configuration", "%u guests in %s", n, CONF_DIR);
	}
	conf_free(list);
}

static void find_service(struct doctor *d)
{
	sd_bus_creds *creds = NULL;

	if (ctl_connect(d->ctl) < 0)
		return;
	if (sd_bus_get_name_creds(d->ctl->bus, MC_BUS_NAME, SD_BUS_CREDS_PID, &creds) < 0)
		return;
	d->service = true;
	(void)sd_bus_creds_get_pid(creds, &d->service_pid);
	sd_bus_creds_unref(creds);
}

int cmd_doctor(struct ctl *c, int argc, char **argv)
{
	struct doctor d = {.ctl = c};

	(void)argv;
	if (argc != 1) {
		fprintf(stderr, "usage: mcctl doctor\n");
		return 2;
	}
	find_service(&d);
	check_kernel(&d);
	check_gate(&d);
	check_rdma(&d);
	check_limits(&d);
	check_qemu(&d);
	check_permissions(&d);
	check_network(&d);
	check_time(&d);
	check_service(&d);
	check_config(&d);
	printf("%u to be changed, %u to be looked at\n", d.bad, d.warned);
	return d.bad ? 1 : 0;
}
