/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A confined process can't regain what it gave up. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "arena.h"
#include "confine.h"
#include "util.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FILTERED 0
#else
#define FILTERED 1
#endif

#define NOBODY 65534

/* Runs fn confined in a child; what it returns is the exit status. */
static int confined(const struct mc_confine *c, int (*fn)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		if (mc_confine(c) < 0)
			_exit(99);
		_exit(fn());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static unsigned long long status_field(const char *key)
{
	char buf[4096], *p;
	int fd = open("/proc/self/status", O_RDONLY);
	ssize_t n = read(fd, buf, sizeof(buf) - 1);

	close(fd);
	buf[n > 0 ? n : 0] = '\0';
	p = strstr(buf, key);
	return p ? strtoull(p + strlen(key), NULL, 16) : ~0ULL;
}

static int nothing_left(void)
{
	if (getuid() != NOBODY || geteuid() != NOBODY || getgid() != NOBODY ||
	    getgroups(0, NULL) > 0)
		return 1;
	if (status_field("CapEff:") || status_field("CapPrm:") || status_field("CapBnd:") ||
	    status_field("CapAmb:") || status_field("CapInh:"))
		return 2;
	if (status_field("NoNewPrivs:") != 1 || (FILTERED && status_field("Seccomp:") != 2))
		return 3;
	if (setuid(0) == 0 || setresuid(0, 0, 0) == 0 || setgid(0) == 0 || setgroups(0, NULL) == 0)
		return 4;
	if (open("/etc/shadow", O_RDONLY) >= 0)
		return 5;
	if (FILTERED && (ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0 || fork() >= 0))
		return 6;
	if (FILTERED && socket(AF_INET, SOCK_STREAM, 0) >= 0)
		return 7;
	if (FILTERED && (execl("/bin/true", "true", NULL) == 0 || errno != EPERM))
		return 8;
	if (prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0)
		return 9;
	return socket(AF_UNIX, SOCK_STREAM, 0) >= 0 ? 0 : 10;
}

static void test_nothing_left(void **state)
{
	struct mc_confine c = {.uid = NOBODY, .gid = NOBODY, .allow = MC_ALLOW_FILES};

	(void)state;
	if (geteuid() != 0)
		skip();
	assert_int_equal(confined(&c, nothing_left), 0);
}

static int no_files(void)
{
	return open("/etc/passwd", O_RDONLY) < 0 && errno == EPERM ? 0 : 1;
}

static void test_no_files(void **state)
{
	struct mc_confine c = {.uid = (uid_t)-1};

	(void)state;
	if (FILTERED)
		assert_int_equal(confined(&c, no_files), 0);
}

static int one_capability(void)
{
	if (status_field("CapEff:") != 1ULL << CAP_SYS_PTRACE ||
	    status_field("CapBnd:") != 1ULL << CAP_SYS_PTRACE)
		return 1;
	/* The rest can't be had again, and the one can be given up. */
	if (setuid(0) == 0)
		return 2;
	return mc_confine(&(struct mc_confine){
	               .uid = NOBODY, .gid = NOBODY, .allow = MC_ALLOW_FILES}) == 0 &&
	                       status_field("CapEff:") == 0
	               ? 0
	               : 3;
}

static void test_one_capability(void **state)
{
	struct mc_confine c = {.uid = NOBODY,
	                       .gid = NOBODY,
	                       .capabilities = 1ULL << CAP_SYS_PTRACE,
	                       .allow = MC_ALLOW_FILES | MC_ALLOW_CHILD};

	(void)state;
	if (geteuid() != 0)
		skip();
	assert_int_equal(confined(&c, one_capability), 0);
}

#define CAP(x) (1ULL << CAP_##x)

/* The table of docs/security.md. */
static const struct keeps {
	const char *process;
	uint64_t capabilities;
	unsigned allow;
} table[] = {
        {"mc-capture", CAP(SYS_PTRACE) | CAP(DAC_READ_SEARCH),
         MC_ALLOW_FILES | MC_ALLOW_NET | MC_ALLOW_DEVICE | MC_ALLOW_TRACE | MC_ALLOW_CHILD},
        {"mc-guard", 0, 0},
        {"mc-stage", 0, 0},
        {"mc-transport", 0, MC_ALLOW_FILES | MC_ALLOW_NET | MC_ALLOW_DEVICE},
        {"mc-netgate, relay", 0, MC_ALLOW_NET | MC_ALLOW_DEVICE},
        {"mc-netgate, kernel gate", CAP(NET_ADMIN), MC_ALLOW_NET | MC_ALLOW_DEVICE},
        {"mc-netgate, other namespace", CAP(NET_ADMIN) | CAP(SYS_ADMIN),
         MC_ALLOW_NET | MC_ALLOW_DEVICE | MC_ALLOW_NETNS},
        {"mc-restore", 0, 0},
};

static const struct keeps *tried;

static int set_all(uint64_t permitted)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{.permitted = (uint32_t)permitted},
	                                      {.permitted = (uint32_t)(permitted >> 32)}};

	return (int)syscall(SYS_capset, &h, d);
}

/* Without /proc, which most of them can't open. */
static uint64_t effective(void)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{0}};

	/* Where that is no allowed call it can't be more than was left at the switch. */
	if (syscall(SYS_capget, &h, d) < 0)
		return 0;
	return d[0].effective | (uint64_t)d[1].effective << 32;
}

/* 0, or which of the ways back was open. */
static int cant_regain(void)
{
	for (int i = 0; i <= CAP_LAST_CAP; i++)
		if (!(tried->capabilities >> i & 1) &&
		    set_all(tried->capabilities | 1ULL << i) == 0)
			return 100 + i;
	if (setuid(0) == 0 || setresuid(0, 0, 0) == 0 || setresgid(0, 0, 0) == 0 ||
	    setgroups(1, (gid_t[]){0}) == 0)
		return 1;
	if (prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 || prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
		return 2;
	/* Everything is allowed to the root of a new user namespace. */
	if (FILTERED && unshare(CLONE_NEWUSER) == 0)
		return 3;
	if (execl("/bin/true", "true", NULL) == 0 || (FILTERED && errno != EPERM))
		return 4;
	if (kill(getppid(), 0) == 0)
		return 5;
	if (!(tried->capabilities & CAP(SYS_PTRACE)) &&
	    ptrace(PTRACE_ATTACH, getppid(), NULL, NULL) == 0)
		return 6;
	if (mount("none", "/proc", "tmpfs", 0, NULL) == 0)
		return 7;
	if (open("/etc/shadow", O_WRONLY) >= 0 || unlink("/etc/shadow") == 0)
		return 8;
	if (FILTERED && !(tried->allow & MC_ALLOW_NET) && socket(AF_INET, SOCK_STREAM, 0) >= 0)
		return 9;
	return effective() & ~tried->capabilities ? 10 : 0;
}

static void test_table(void **state)
{
	(void)state;
	if (geteuid() != 0)
		skip();
	for (size_t i = 0; i < MC_ARRAY_SIZE(table); i++) {
		struct mc_confine c = {.uid = NOBODY,
		                       .gid = NOBODY,
		                       .capabilities = table[i].capabilities,
		                       .allow = table[i].allow};
		int r;

		tried = &table[i];
		r = confined(&c, cant_regain);
		if (r)
			fail_msg("%s: way %d was open", tried->process, r);
	}
}

static struct mc_arena arena;
static int reader;

/* 0, or which of the ways to another configuration was open. */
static int config_stays(void)
{
	char path[64];
	void *m;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", reader);
	m = mmap(NULL, 4096, PROT_READ, MAP_SHARED, reader, 0);
	if (m == MAP_FAILED)
		return 1;
	if (mprotect(m, 4096, PROT_READ | PROT_WRITE) == 0)
		return 2;
	if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reader, 0) != MAP_FAILED)
		return 3;
	if (pwrite(reader, "x", 1, 0) >= 0 || ftruncate(reader, 0) == 0 ||
	    fallocate(reader, 3, 0, 4096) == 0)
		return 4;
	/* By its name in /proc, as it was opened. */
	if (open(path, O_RDWR) >= 0 || truncate(path, 0) == 0)
		return 5;
	if (open("/dev/shm/mc-test-confine:config", O_RDWR) >= 0 ||
	    unlink("/dev/shm/mc-test-confine:config") == 0)
		return 6;
	/* And the arena can't be cut short under those who map it. */
	return FILTERED && ftruncate(arena.fd, 4096) == 0 ? 7 : 0;
}

/* No process of a guest can change what another one, or its successor, is going to do. */
static void test_config(void **state)
{
	struct mc_arena_params p = {.slab_size = 65536,
	                            .max_memory = 4 * 65536,
	                            .ram_pages = 16,
	                            .side = MC_SIDE_PRIMARY};

	(void)state;
	if (geteuid() != 0)
		skip();
	mc_arena_unlink("/mc-test-confine");
	assert_int_equal(mc_arena_create(&arena, "/mc-test-confine", &p), 0);
	reader = mc_arena_config_reader(&arena);
	assert_true(reader >= 0);
	for (size_t i = 0; i < MC_ARRAY_SIZE(table); i++) {
		struct mc_confine c = {.uid = NOBODY,
		                       .gid = NOBODY,
		                       .capabilities = table[i].capabilities,
		                       .allow = table[i].allow};
		int r = confined(&c, config_stays);

		if (r)
			fail_msg("%s: way %d was open", table[i].process, r);
	}
	close(reader);
	mc_arena_unlink("/mc-test-confine");
	mc_arena_done(&arena);
}

/* A successor finds the configuration by the arena's name, and takes no other arena for it. */
static void test_reopen(void **state)
{
	struct mc_arena_params p = {.slab_size = 65536,
	                            .max_memory = 4 * 65536,
	                            .ram_pages = 16,
	                            .side = MC_SIDE_PRIMARY};
	struct mc_arena a, forged;
	struct mc_config *c;
	int fd;

	(void)state;
	mc_arena_unlink("/mc-test-reopen");
	assert_int_equal(mc_arena_create(&a, "/mc-test-reopen", &p), 0);
	assert_int_equal(mc_arena_create(&forged, NULL, &p), 0);
	assert_int_equal(mc_arena_reopen_config("/mc-test-reopen", forged.fd), -ESTALE);
	fd = mc_arena_reopen_config("/mc-test-reopen", a.fd);
	assert_true(fd >= 0);
	c = mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(c, MAP_FAILED);
	atomic_store(&c->interval_us, 12345);
	assert_int_equal(atomic_load(&a.config->interval_us), 12345);
	munmap(c, sizeof(*c));
	close(fd);
	mc_arena_unlink("/mc-test-reopen");
	assert_int_equal(mc_arena_reopen_config("/mc-test-reopen", a.fd), -ENOENT);
	mc_arena_done(&a);
	mc_arena_done(&forged);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_table),    cmocka_unit_test(test_config),
	        cmocka_unit_test(test_reopen),   cmocka_unit_test(test_nothing_left),
	        cmocka_unit_test(test_no_files), cmocka_unit_test(test_one_capability),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
