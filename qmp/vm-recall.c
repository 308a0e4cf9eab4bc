/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A successor: what its predecessor found out about a QEMU is still so, if it is the same one. */
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
