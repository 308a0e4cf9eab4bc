/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "inject.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"

#define RED_ZONE     128
#define XSTATE_MAX   16384
#define XSAVE_SW     464 /* sw_reserved bytes of the FXSAVE area (asm/sigcontext.h) */
#define FP_MAGIC1    0x46505853U
#define FP_MAGIC2    0x46505845U
#define STOP_LIMIT   (500 * MC_NS_PER_MS)
#define UC_FP_XSTATE 1
#define UC_SS        6 /* UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */

/* The kernel's rt_sigframe of x86-64 up to the signal mask (arch/x86/include/asm/sigframe.h). */
struct frame {
	uint64_t restorer;
	uint64_t uc_flags, uc_link, ss_sp, ss_flags, ss_size;
	uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip,
	        eflags;
	uint16_t cs, gs, fs, ss;
	uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
	uint64_t sigmask;
};

struct target {
	pid_t pid, tid;
	uint64_t call;     /* `syscall; ret` */
	uint64_t restorer; /* `mov $15, %rax; syscall` */
	void (*step)(int n);
	int steps;
};

static void passed(struct target *t, enum mc_fault_point p)
{
	(void)mc_fault(p);
	if (t->step)
		t->step(t->steps++);
}

/* Address of @pattern in [start, end) of the process, or 0. */
static uint64_t search(int mem, uint64_t start, uint64_t end, const char *pattern, size_t n)
{
	static const size_t piece = 1 << 20;
	uint8_t mc_autofree *buf = malloc(piece);

	for (uint64_t at = start; buf && at < end; at += piece - n) {
		size_t len = mc_min_u64(piece, end - at);
		ssize_t got = pread(mem, buf, len, (off_t)at);
		uint8_t *hit = got > 0 ? memmem(buf, (size_t)got, pattern, n) : NULL;

		if (hit)
			return at + (uint64_t)(hit - buf);
		if (got < (ssize_t)len || len < piece)
			break;
	}
	return 0;
}

/* Finds both pieces of existing text. */
static int find_text(struct target *t)
{
	static const char call[] = "\x0f\x05\xc3";
	static const char restorer[] = "\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05";
	char path[64], line[512];
	int mc_autoclose mem = -1;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)t->pid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (mem < 0)
		return errno == EACCES ? -EPERM : -errno;
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)t->pid);
	maps = fopen(path, "re");
	if (!maps)
		return -errno;
	while (fgets(line, sizeof(line), maps) && !(t->call && t->restorer)) {
		uint64_t start, end;
		char perm[8];

		/* Program text only: code that a JIT wrote may vanish under us. */
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &start, &end, perm) != 3 ||
		    strcmp(perm, "r-xp") != 0 || !strchr(line, '/'))
			continue;
		if (!t->call)
			t->call = search(mem, start, end, call, sizeof(call) - 1);
		if (!t->restorer)
			t->restorer = search(mem, start, end, restorer, sizeof(restorer) - 1);
	}
	fclose(maps);
	return t->call && t->restorer ? 0 : -ENOENT;
}

/* Waits for the next stop of the thread; its status. */
static int wait_stop(struct target *t, int *status)
{
	uint64_t end = mc_now_ns() + STOP_LIMIT;
	struct timespec nap = {.tv_nsec = 100000};

	for (;;) {
		pid_t r = waitpid(t->tid, status, __WALL | WNOHANG);

		if (r == t->tid)
			return WIFSTOPPED(*status) ? 0 : -ESRCH;
		if (r < 0 && errno != EINTR)
			return -errno;
		if (mc_now_ns() > end)
			return -ETIMEDOUT;
		/* waitpid() has no time limit of its own. */
		nanosleep(&nap, NULL);
	}
}

/*
 * The registers that the thread would have had without us.  A system call that was
 * interrupted by our stop is entered again, as the kernel would have done; one that has to be
 * restarted by restart_syscall() returns EINTR, since rt_sigreturn forgets the restart block.
 */
static void undo_interruption(struct user_regs_struct *r)
{
	int64_t rax = (int64_t)r->rax;

	if ((int64_t)r->orig_rax < 0)
		return;
	if (rax == -512 || rax == -513 || rax == -514) { /* ERESTARTSYS, NOINTR, NOHAND */
		r->rax = r->orig_rax;
		r->rip -= 2;
	} else if (rax == -516) { /* ERESTART_RESTARTBLOCK */
		r->rax = (uint64_t)-EINTR;
	}
}

static void fill_frame(struct frame *f, const struct user_regs_struct *r)
{
	f->uc_flags = UC_FP_XSTATE | UC_SS;
	f->r8 = r->r8, f->r9 = r->r9, f->r10 = r->r10, f->r11 = r->r11;
	f->r12 = r->r12, f->r13 = r->r13, f->r14 = r->r14, f->r15 = r->r15;
	f->rdi = r->rdi, f->rsi = r->rsi, f->rbp = r->rbp, f->rbx = r->rbx;
	f->rdx = r->rdx, f->rax = r->rax, f->rcx = r->rcx, f->rsp = r->rsp;
	f->rip = r->rip, f->eflags = r->eflags;
	f->cs = (uint16_t)r->cs, f->ss = (uint16_t)r->ss;
	f->ss_flags = 2; /* SS_DISABLE: no alternate stack, as QEMU's threads have it */
}

/* Writes FPU state and frame below the stack; *sp is where the stack pointer has to go. */
static int write_frame(struct target *t, struct frame *f, uint64_t *sp)
{
	uint8_t xstate[XSTATE_MAX + 4];
	struct iovec reg = {.iov_base = xstate, .iov_len = XSTATE_MAX};
	struct iovec local[2], remote[2];
	uint64_t fp, at, mask, features;
	uint32_t sw[2], magic2 = FP_MAGIC2, size32;

	memset(xstate, 0, sizeof(xstate));
	if (ptrace(PTRACE_GETREGSET, t->tid, NT_X86_XSTATE, &reg) < 0 ||
	    ptrace(PTRACE_GETSIGMASK, t->tid, sizeof(mask), &mask) < 0)
		return -errno;
	passed(t, MC_FAULT_PTRACE_FRAME);
	/* ptrace keeps the feature mask where the signal frame has its software bytes. */
	memcpy(&features, xstate + XSAVE_SW, sizeof(features));
	sw[0] = FP_MAGIC1;
	sw[1] = (uint32_t)reg.iov_len + 4;
	size32 = (uint32_t)reg.iov_len;
	memcpy(xstate + XSAVE_SW, sw, sizeof(sw));
	memcpy(xstate + XSAVE_SW + 8, &features, sizeof(features));
	memcpy(xstate + XSAVE_SW + 16, &size32, sizeof(size32));
	memcpy(xstate + reg.iov_len, &magic2, sizeof(magic2));

	fp = (f->rsp - RED_ZONE - reg.iov_len - 4) & ~63ULL;
	at = ((fp - sizeof(*f)) & ~15ULL) - 8;
	f->fpstate = fp;
	f->sigmask = mask;
	f->restorer = t->restorer;
	local[0] = (struct iovec){f, sizeof(*f)};
	local[1] = (struct iovec){xstate, reg.iov_len + 4};
	remote[0] = (struct iovec){(void *)at, local[0].iov_len};
	remote[1] = (struct iovec){(void *)fp, local[1].iov_len};
	if (process_vm_writev(t->pid, local, 2, remote, 2, 0) !=
	    (ssize_t)(local[0].iov_len + local[1].iov_len))
		return -EFAULT;
	*sp = at;
	return 0;
}

/* Runs to the next system call stop, passing signals on. */
static int to_syscall_stop(struct target *t)
{
	long sig = 0;

	for (int i = 0; i < 64; i++) {
		int status, r;

		if (ptrace(PTRACE_SYSCALL, t->tid, NULL, (void *)sig) < 0)
			return -errno;
		passed(t, MC_FAULT_PTRACE_CONTINUED);
		r = wait_stop(t, &status);
		if (r < 0)
			return r;
		if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			(void)mc_fault(MC_FAULT_PTRACE_SYSCALL);
			return 0;
		}
		sig = status >> 16 ? 0 : WSTOPSIG(status);
	}
	return -EBUSY;
}

static int run_call(struct target *t, long nr, const uint64_t arg[3], int64_t *result)
{
	struct user_regs_struct r, call;
	struct frame f = {0};
	uint64_t sp;
	int e;

	if (ptrace(PTRACE_GETREGS, t->tid, NULL, &r) < 0)
		return -errno;
	passed(t, MC_FAULT_PTRACE_REGISTERS);
	call = r;
	undo_interruption(&r);
	fill_frame(&f, &r);
	e = write_frame(t, &f, &sp);
	if (e < 0)
		return e;
	passed(t, MC_FAULT_PTRACE_WRITTEN);
	call.rip = t->call;
	call.rsp = sp;
	call.rax = (uint64_t)nr;
	call.orig_rax = (uint64_t)-1; /* nothing to restart: the frame does it */
	call.rdi = arg[0], call.rsi = arg[1], call.rdx = arg[2];
	call.eflags &= ~0x400ULL; /* direction flag clear, as the ABI has it */
	if (ptrace(PTRACE_SETREGS, t->tid, NULL, &call) < 0)
		return -errno;
	passed(t, MC_FAULT_PTRACE_SET);
	e = to_syscall_stop(t);
	if (e == 0)
		e = to_syscall_stop(t);
	if (e < 0)
		return e;
	if (ptrace(PTRACE_GETREGS, t->tid, NULL, &call) < 0)
		return -errno;
	(void)mc_fault(MC_FAULT_PTRACE_RESULT);
	*result = (int64_t)call.rax;
	return 0;
}

static int try_thread(struct target *t, long nr, const uint64_t arg[3], int64_t *result)
{
	int status, r;

	if (ptrace(PTRACE_SEIZE, t->tid, NULL, (void *)PTRACE_O_TRACESYSGOOD) < 0)
		return -errno;
	passed(t, MC_FAULT_PTRACE_SEIZED);
	r = ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0 ? -errno : 0;
	passed(t, MC_FAULT_PTRACE_INTERRUPTED);
	if (r == 0)
		r = wait_stop(t, &status);
	(void)mc_fault(MC_FAULT_PTRACE_STOPPED);
	if (r == 0 && WSTOPSIG(status) != SIGTRAP)
		r = -EAGAIN; /* a signal came first: leave it to the thread */
	if (r == 0)
		r = run_call(t, nr, arg, result);
	/* A stop by a signal that we don't pass on here would be lost: none was taken. */
	if (ptrace(PTRACE_DETACH, t->tid, NULL,
	           (void *)(long)(r == -EAGAIN ? WSTOPSIG(status) : 0)) < 0 &&
	    r == 0)
		r = -errno;
	passed(t, MC_FAULT_PTRACE_DETACHED);
	return r;
}

int inject_syscall(pid_t pid, long nr, const uint64_t arg[3], int64_t *result, void (*step)(int n))
{
	struct target t = {.pid = pid, .step = step};
	char path[64];
	struct dirent *e;
	DIR *d;
	int r = find_text(&t);

	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	d = opendir(path);
	if (!d)
		return -errno;
	/* The main thread first (it sleeps in poll); another one when its stack is too small. */
	r = -ESRCH;
	while ((e = readdir(d))) {
		t.tid = (pid_t)atoi(e->d_name);
		if (t.tid <= 0)
			continue;
		r = try_thread(&t, nr, arg, result);
		if (r != -EFAULT && r != -EAGAIN && r != -ESRCH)
			break;
	}
	closedir(d);
	return r;
}
