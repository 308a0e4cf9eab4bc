/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "confine.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

#define LAST_CAPABILITY 63

/* Memory, clocks, waiting, what is open already, unix sockets (the supervisor's, the journal's). */
static const char *const base_calls[] = {
        "brk",
        "clock_getres",
        "clock_gettime",
        "clock_nanosleep",
        "close",
        "close_range",
        "connect",
        "dup",
        "dup2",
        "dup3",
        "epoll_create1",
        "epoll_ctl",
        "epoll_pwait",
        "epoll_pwait2",
        "epoll_wait",
        "eventfd2",
        "exit",
        "exit_group",
        "fallocate",
        "fcntl",
        "fdatasync",
        "flock",
        "fstat",
        "fsync",
        "futex",
        "getegid",
        "geteuid",
        "getgid",
        "getpeername",
        "getpid",
        "getppid",
        "getrandom",
        "getrlimit",
        "getsockname",
        "getsockopt",
        "gettid",
        "gettimeofday",
        "getuid",
        "kill",
        "lseek",
        "madvise",
        "membarrier",
        "memfd_create",
        "mincore",
        "mlock",
        "mmap",
        "mprotect",
        "mremap",
        "msync",
        "munlock",
        "munmap",
        "nanosleep",
        "newfstatat",
        "pipe2",
        "poll",
        "ppoll",
        "prctl",
        "pread64",
        "preadv",
        "prlimit64",
        "pselect6",
        "pwrite64",
        "pwritev",
        "read",
        "readv",
        "recvfrom",
        "recvmmsg",
        "recvmsg",
        "restart_syscall",
        "rseq",
        "rt_sigaction",
        "rt_sigpending",
        "rt_sigprocmask",
        "rt_sigreturn",
        "rt_sigtimedwait",
        "sched_getaffinity",
        "sched_yield",
        "select",
        "sendmmsg",
        "sendmsg",
        "sendto",
        "setpriority",
        "setsockopt",
        "shutdown",
        "sigaltstack",
        "signalfd4",
        "socketpair",
        "statx",
        "sysinfo",
        "tgkill",
        "time",
        "timerfd_create",
        "timerfd_gettime",
        "timerfd_settime",
        "uname",
        "wait4",
        "waitid",
        "write",
        "writev",
};

static const char *const file_calls[] = {
        "access", "faccessat", "faccessat2", "getdents64", "getcwd", "lstat",  "open",
        "openat", "readlink",  "readlinkat", "stat",       "statfs", "fstatfs"};
static const char *const net_calls[] = {"accept4", "bind", "listen", "socket"};
static const char *const device_calls[] = {"ioctl"};
static const char *const trace_calls[] = {"pidfd_getfd", "pidfd_open", "process_vm_readv",
                                          "process_vm_writev", "ptrace"};
/* A helper is forked, never executed; it drops more before it does anything. */
static const char *const child_calls[] = {
        "capget",          "capset",          "clone",     "clone3",    "fork",
        "getgroups",       "seccomp",         "setgroups", "setresgid", "setresuid",
        "set_robust_list", "set_tid_address", "vfork"};

static const char *const netns_calls[] = {"open", "openat", "setns"};

static const struct {
	unsigned flag; /* 0: always */
	const char *const *names;
	size_t n;
} lists[] = {
        {0, base_calls, MC_ARRAY_SIZE(base_calls)},
        {MC_ALLOW_FILES, file_calls, MC_ARRAY_SIZE(file_calls)},
        {MC_ALLOW_NET, net_calls, MC_ARRAY_SIZE(net_calls)},
        {MC_ALLOW_DEVICE, device_calls, MC_ARRAY_SIZE(device_calls)},
        {MC_ALLOW_TRACE, trace_calls, MC_ARRAY_SIZE(trace_calls)},
        {MC_ALLOW_CHILD, child_calls, MC_ARRAY_SIZE(child_calls)},
        {MC_ALLOW_NETNS, netns_calls, MC_ARRAY_SIZE(netns_calls)},
};

/* A sanitizer's own threads and tracing aren't in any list. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FILTERED false
#else
#define FILTERED true
#endif

static int allow(scmp_filter_ctx ctx, const char *name)
{
	int nr = seccomp_syscall_resolve_name(name);

	/* Not every architecture has every call. */
	return nr == __NR_SCMP_ERROR ? 0 : seccomp_rule_add(ctx, SCMP_ACT_ALLOW, nr, 0);
}

/* Everything else answers EPERM. */
static int filter_calls(unsigned flags)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	int r = ctx ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < MC_ARRAY_SIZE(lists); i++)
		for (size_t n = 0; r == 0 && n < lists[i].n; n++)
			if (!lists[i].flag || lists[i].flag & flags)
				r = allow(ctx, lists[i].names[n]);
	if (r == 0 && !(flags & MC_ALLOW_NET))
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1,
		                     SCMP_A0(SCMP_CMP_EQ, AF_UNIX));
	/* Threads are no processes; clone3() hides its flags, so that the C library uses clone().
	 */
	if (r == 0 && !(flags & MC_ALLOW_CHILD))
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
		                     SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
	if (r == 0 && !(flags & MC_ALLOW_CHILD))
		r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	if (r == 0)
		r = seccomp_load(ctx);
	if (ctx)
		seccomp_release(ctx);
	return r;
}

static int set_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2];
	uint64_t have;

	if (syscall(SYS_capget, &h, d) < 0)
		return -errno;
	have = d[0].permitted | (uint64_t)d[1].permitted << 32;
	keep &= have;
	for (int i = 0; i < 2; i++) {
		d[i].permitted = d[i].effective = (uint32_t)(keep >> (32 * i));
		d[i].inheritable = 0;
	}
	if (syscall(SYS_capset, &h, d) < 0)
		return -errno;
	(void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return 0;
}

/* What exec could give back; nothing here executes, but nothing should have to be trusted. */
static void bound_capabilities(uint64_t keep)
{
	for (int i = 0; i <= LAST_CAPABILITY; i++)
		if (!(keep >> i & 1) && prctl(PR_CAPBSET_READ, i, 0, 0, 0) == 1)
			(void)prctl(PR_CAPBSET_DROP, i, 0, 0, 0);
}

static int switch_user(const struct mc_confine *c)
{
	if (c->uid == (uid_t)-1 || getuid() == c->uid)
		return 0;
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || setgroups(0, NULL) < 0 ||
	    setresgid(c->gid, c->gid, c->gid) < 0 || setresuid(c->uid, c->uid, c->uid) < 0)
		return -errno;
	/* A switch that didn't switch is the worst of all. */
	return getuid() == c->uid && geteuid() == c->uid && getegid() == c->gid ? 0 : -EPERM;
}

int mc_confine(const struct mc_confine *c)
{
	struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
	int r;

	(void)setrlimit(RLIMIT_MEMLOCK, &unlimited);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	bound_capabilities(c->capabilities);
	r = switch_user(c);
	if (r == 0)
		r = set_capabilities(c->capabilities);
	if (r == 0 && FILTERED)
		r = filter_calls(c->allow);
	return r;
}
