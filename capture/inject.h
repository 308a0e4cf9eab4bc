/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One system call inside another process, without writing program text.
 *
 * A thread is stopped by ptrace; below the red zone of its stack a signal frame is written
 * that holds all its registers as they are.  One PTRACE_SETREGS then points it at an existing
 * `syscall; ret` with the stack pointer at the address of an existing sigreturn restorer in
 * front of that frame: system call, ret, rt_sigreturn, and the thread is where it was.  The
 * tracer may die at any step: before SETREGS nothing has changed but unused stack, after it
 * the thread finds its way back alone.
 */
#ifndef MC_CAPTURE_INJECT_H
#define MC_CAPTURE_INJECT_H

#include <stdint.h>
#include <sys/types.h>

/*
 * Runs system call @nr with up to three arguments in process @pid; its result (or negative
 * errno) goes to *result.  0; -EPERM (no CAP_SYS_PTRACE, or traced by somebody else);
 * -ENOENT (no usable instruction found); -ETIMEDOUT; -ESRCH.  @step, for tests: called with
 * 0, 1, 2... after every ptrace step; NULL otherwise.
 */
int inject_syscall(pid_t pid, long nr, const uint64_t arg[3], int64_t *result, void (*step)(int n));

#endif
