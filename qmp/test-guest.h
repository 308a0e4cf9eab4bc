/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A real QEMU without a kernel, for the tests of this folder. */
#ifndef MC_QMP_TEST_GUEST_H
#define MC_QMP_TEST_GUEST_H

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "vm.h"

#define MIB      (1024ULL * 1024)
#define ARGS_MAX 80
#define LIMIT_MS 10000

struct guest {
	char dir[32], sock[64], ram[64];
	pid_t pid;
	struct qmp *q;
	char *argv[ARGS_MAX]; /* as QEMU was started */
};

/* What a failed test leaves behind; its own struct is gone by then. */
static struct guest guests_left[8];

static inline struct guest *guest_slot(const char *dir)
{
	for (size_t i = 0; i < MC_ARRAY_SIZE(guests_left); i++)
		if (!strcmp(guests_left[i].dir, dir))
			return &guests_left[i];
	return NULL;
}

static inline void guest_remember(const struct guest *g)
{
	struct guest *slot = guest_slot("");

	assert_non_null(slot);
	*slot = *g;
}

/* Splits @text at blanks; '~' stands for a blank within an argument. */
static inline void guest_args(struct guest *g, const char *text)
{
	size_t n = 0;

	while (g->argv[n])
		n++;
	while (*(text += strspn(text, " "))) {
		size_t len = strcspn(text, " ");

		assert_true(n + 1 < ARGS_MAX);
		g->argv[n] = strndup(text, len);
		for (char *p = g->argv[n]; *p; p++)
			if (*p == '~')
				*p = ' ';
		n++;
		text += len;
	}
}

static inline void guest_spawn(struct guest *g)
{
	int fd;

	fflush(NULL);
	g->pid = fork();
	assert_true(g->pid >= 0);
	if (g->pid)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	fd = open("/dev/null", O_RDWR);
	dup2(fd, 0);
	dup2(fd, 1);
	if (!getenv("MC_TEST_VERBOSE"))
		dup2(fd, 2);
	execvp(g->argv[0], g->argv);
	_exit(127);
}

/* Waits for the monitor of a QEMU that has just been started. */
static inline void guest_connect(struct guest *g)
{
	uint64_t end = mc_now_ns() + LIMIT_MS * MC_NS_PER_MS;
	int r;

	while ((r = qmp_connect(&g->q, g->sock, LIMIT_MS)) < 0) {
		if ((r != -ENOENT && r != -ECONNREFUSED) || mc_now_ns() > end ||
		    waitpid(g->pid, NULL, WNOHANG))
			fail_msg("QEMU did not start: %s: %s", g->sock, strerror(-r));
		poll(NULL, 0, 5);
	}
}

/*
 * Starts QEMU with the arguments @fmt; "%s" is a RAM file of the guest's own in /dev/shm.
 */
static inline void guest_start(struct guest *g, const char *fmt)
{
	mc_autofree char *text = NULL;
	char head[256];

	memset(g, 0, sizeof(*g));
	strcpy(g->dir, "/tmp/test-vm-XXXXXX");
	assert_non_null(mkdtemp(g->dir));
	snprintf(g->sock, sizeof(g->sock), "%s/qmp", g->dir);
	snprintf(g->ram, sizeof(g->ram), "/dev/shm/%s", g->dir + strlen("/tmp/"));
	snprintf(head, sizeof(head),
	         "qemu-system-x86_64 -accel tcg -nodefaults -vga none -display none -qmp "
	         "unix:%s,server=on,wait=off ",
	         g->sock);
	guest_args(g, head);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	assert_true(asprintf(&text, fmt, g->ram) > 0);
#pragma GCC diagnostic pop
	guest_args(g, text);
	guest_spawn(g);
	guest_remember(g);
	guest_connect(g);
}

static inline void guest_kill(struct guest *g)
{
	if (!g->pid)
		return;
	kill(g->pid, SIGKILL);
	waitpid(g->pid, NULL, 0);
	g->pid = 0;
}

static inline void guest_remove(struct guest *g)
{
	guest_kill(g);
	unlink(g->sock);
	unlink(g->ram);
	rmdir(g->dir);
}

static inline void guest_end(struct guest *g)
{
	struct guest *slot = guest_slot(g->dir);

	guest_remove(g);
	g->q = qmp_free(g->q);
	for (size_t i = 0; g->argv[i]; i++)
		mc_freep(&g->argv[i]);
	if (slot)
		memset(slot, 0, sizeof(*slot));
}

/* Group teardown: QEMUs and files of tests that failed. */
static inline int guests_sweep(void **state)
{
	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(guests_left); i++)
		if (guests_left[i].dir[0])
			guest_remove(&guests_left[i]);
	return 0;
}

static inline void guest_inspect(struct guest *g, struct vm_info *i)
{
	char why[512] = "";
	int r = vm_inspect(g->q, i, why, sizeof(why));

	if (r < 0)
		fail_msg("vm_inspect: %s (%s)", why, strerror(-r));
	assert_int_equal(i->pid, g->pid);
}

#define RAM_FILE                                                                                   \
	" -m 64 -object memory-backend-file,id=ram,size=64M,mem-path=%s,share=on -S -machine "

#endif
