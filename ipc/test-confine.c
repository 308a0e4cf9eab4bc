/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A confined process can't regain what it gave up. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "confine.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_nothing_left),
	        cmocka_unit_test(test_no_files),
	        cmocka_unit_test(test_one_capability),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
