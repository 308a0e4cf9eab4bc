/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a running QEMU is: its RAM blocks and where they are mapped, its devices, back
 * ends, and the description that must be equal on both ends.
 */
#ifndef MC_QMP_VM_H
#define MC_QMP_VM_H

#include "../ipc/control.h"
#include "qmp.h"

#define VM_BLOCKS_MAX 16

struct vm_block {
	char name[64];      /* memory backend id */
	uint64_t size;      /* bytes */
	uint64_t hva;       /* in QEMU's address space */
	uint64_t page_size; /* of its file: 4096, or huge pages */
	uint64_t dev, ino;
	bool shared;
};

struct vm_info {
	pid_t pid;
	uint64_t start_time; /* field 22 of /proc/PID/stat */
	unsigned nblocks;
	struct vm_block block[VM_BLOCKS_MAX];
	char *description; /* malloc'ed: a line each, sorted; control.h */
};

/*
 * Finds RAM blocks (memory backends in use, by query-memdev, x-query-ramblock, gpa2hva and
 * /proc/PID/maps) and makes the description (version, machine, CPU model and count, RAM,
 * devices with type, id and bus address).  0, or negative errno with a sentence in @why
 * (>= 256) that names what is in the way and the remedy.
 */
int vm_inspect(struct qmp *q, struct vm_info *ret, char *why, size_t why_len);
/*
 * Writes it into the control block for the other processes, and for vm_recall(); the number of
 * blocks last, with release.  0; -E2BIG: its RAM has more than @max_pages, nothing is written.
 */
int vm_record(const struct vm_info *vm, struct mc_control *ctl, uint64_t max_pages);
/*
 * Without asking QEMU, what a predecessor wrote into the control block, for a successor.  0;
 * -ESTALE: another QEMU answers; -EBADMSG: the list of blocks is damaged; -ENOMEM.
 */
int vm_recall(struct qmp *q, const struct mc_control *ctl, struct vm_info *ret);
void vm_info_done(struct vm_info *i);

/*
 * Checks that the guest can be protected: only allowed device types and back ends, RAM
 * shared, no guest-writable RAM block outside, no writable disk, NICs on back ends that the
 * gate holds.  @accept: comma separated types that the operator vouches for.
 * RAM that isn't shared and a migration under way can't be accepted.
 * @gated: comma separated netdev ids (relay) or interfaces of taps (plug) that a gate is asked
 * for; NULL: gate none was asked for.
 * 0, or -EPERM with the first refusal in @why; @all (may be NULL) receives every refusal, a
 * line each (malloc'ed).
 */
int vm_check(struct qmp *q, const struct vm_info *i, const char *accept, const char *gated,
             char *why, size_t why_len, char **all);

/*
 * Gives a QEMU that waits for incoming state its firmware, which it would expect from a migration's
 * stream; from its own file.  Nothing to do, and 0, when it has it or needs none.  0; -ENOENT: the
 * file wasn't found; negative errno.  Needs the right to trace QEMU.
 */
int vm_firmware_fill(struct qmp *q, pid_t pid);

/* 1 with the first line in which two descriptions differ, as a sentence; 0: none does. */
int vm_description_diff(const char *ours, const char *theirs, char *why, size_t why_len);

/*
 * Opens the file behind a block's mapping, read-write.  Device, inode and size were compared.
 * fd; -EPERM (not shared), -ENOENT, -EACCES, -EINVAL (no such block).
 */
int vm_open_block(const struct vm_info *i, unsigned block);

/*
 * The standby's command line: that of the guest (/proc/PID/cmdline), quoted for a shell, without
 * -S, -loadvm and -incoming, with what a standby needs.  What was plugged in later comes
 * first, as lines of comment.  *ret is malloc'ed.
 */
int vm_standby_args(struct qmp *q, const struct vm_info *i, char **ret);

/*
 * Unix addresses that -netdev dgram back ends are bound to, as an object {netdev: path}; *ret is
 * a new reference.
 */
int vm_dgram_paths(struct qmp *q, json_t **ret);

/*
 * The taps that QEMU has open, as an array of {netdev, tap, netns}, also where they came to it as
 * descriptors; netns is "" for ours, else a path.  *ret is a new reference.
 */
int vm_taps(struct qmp *q, pid_t pid, json_t **ret);

#endif
