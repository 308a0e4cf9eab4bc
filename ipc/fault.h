/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fault points for tests: MC_FAULT=name[:nth][:crash|stall|error] in the environment makes
 * the nth passage (default 1) of the named point kill the process (SIGKILL to itself),
 * stop it (SIGSTOP) or return -EIO.  Compiled in when MC_FAULTS is defined (test builds), a
 * constant 0 otherwise.
 *
 * Use:  r = mc_fault("capture.scan.after"); if (r < 0) return r;
 */
#ifndef MC_IPC_FAULT_H
#define MC_IPC_FAULT_H

#ifdef MC_FAULTS
/* 0, or -EIO when the point is armed with "error". */
int mc_fault(const char *name);
#else
static inline int mc_fault(const char *name)
{
	(void)name;
	return 0;
}
#endif

#endif
