/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What was found out about a QEMU, on record for the other processes, and for a successor: it is
 * still so, if it is the same QEMU.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/worker-bus.h"
#include "vm-private.h"

int vm_recall(struct qmp *q, const struct mc_control *ctl, struct vm_info *ret)
{
	uint64_t n = atomic_load_explicit(&ctl->blocks, memory_order_acquire);
	struct vm_info i = {.pid = qmp_peer_pid(q)};

	i.start_time = mc_pid_start_time(i.pid);
	if (!i.start_time || atomic_load(&ctl->qemu_pid) != (uint64_t)i.pid ||
	    atomic_load(&ctl->qemu_start) != i.start_time)
		return -ESTALE;
	if (!n || n > VM_BLOCKS_MAX || n > MC_BLOCKS_MAX)
		return -EBADMSG;
	i.nblocks = (unsigned)n;
	for (unsigned k = 0; k < i.nblocks; k++) {
		const struct mc_block *m = &ctl->block[k];
		struct vm_block *v = &i.block[k];

		snprintf(v->name, sizeof(v->name), "%.*s", (int)sizeof(m->name) - 1, m->name);
		v->size = m->size;
		v->hva = m->hva;
		v->dev = m->dev;
		v->ino = m->ino;
		v->shared = true; /* checked by the predecessor */
	}
	i.description = strndup(ctl->description, sizeof(ctl->description) - 1);
	if (!i.description)
		return -ENOMEM;
	*ret = i;
	return 0;
}

int vm_record(const struct vm_info *vm, struct mc_control *ctl, uint64_t max_pages)
{
	uint64_t first = 0;

	/* A word of a bitmap never spans two blocks. */
	for (unsigned i = 0; i < vm->nblocks; i++)
		first += MC_ALIGN_UP(vm->block[i].size / MC_PAGE_SIZE, 64);
	if (first > max_pages)
		return -E2BIG;
	first = 0;
	for (unsigned i = 0; i < vm->nblocks; i++) {
		const struct vm_block *b = &vm->block[i];
		struct mc_block *to = &ctl->block[i];

		snprintf(to->name, sizeof(to->name), "%s", b->name);
		to->size = b->size;
		to->first_page = first;
		to->hva = b->hva;
		to->dev = b->dev;
		to->ino = b->ino;
		first += MC_ALIGN_UP(b->size / MC_PAGE_SIZE, 64);
	}
	atomic_store(&ctl->qemu_pid, (uint64_t)vm->pid);
	atomic_store(&ctl->qemu_start, vm->start_time);
	snprintf(ctl->description, sizeof(ctl->description), "%s", vm->description);
	atomic_store_explicit(&ctl->blocks, vm->nblocks, memory_order_release);
	return 0;
}
