/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-restore: verifies, decodes, commits and applies epochs, and takes over.
 *
 * Encoded slabs stay in the ring until their epoch is committed, decoded ones (owned by
 * restore, never writable by a peer) until it is applied: a successor finds everything.
 */
#ifndef MC_RESTORE_RESTORE_H
#define MC_RESTORE_RESTORE_H

#include <stdbool.h>
#include <stdint.h>

#include "../ipc/worker.h"
#include "../qmp/vm.h"
#include "decode.h"

/* The epoch that is being decoded. */
struct assembly {
	uint64_t epoch; /* 0: none */
	uint32_t n;     /* slabs decoded, in ring order */
	mc_handle slab[MC_EPOCH_SLABS_MAX];
	uint64_t seen[MC_EPOCH_SLABS_MAX / 64]; /* by seq */
	bool have_state;
};

struct restore {
	struct mc_worker *w;
	struct mc_arena *a;
	struct qmp *q;
	struct vm_info vm;
	uint8_t *ram[VM_BLOCKS_MAX];
	int ram_fd[VM_BLOCKS_MAX];
	uint64_t block_size[VM_BLOCKS_MAX];
	struct decoder *decoder;
	struct mc_ring_end in;
	struct assembly as;
	bool resumed; /* QMP RESUME was seen */
	bool standby_gone;
	bool failed; /* takeover failed: nothing more to do */
	sd_event_source *timer, *qmp_source;
};

/* standby.c: the waiting QEMU. */
int standby_attach(struct restore *r); /* 0; negative errno: refusal set, logged */
void standby_detach(struct restore *r);
int standby_empty(struct restore *r); /* gives all of its RAM back: it reads as zero */
int standby_go(struct restore *r, const void *state, size_t len); /* loads the state, runs */
bool standby_wants_config(const struct restore *r);

/* commit.c: 1 did something, 0 nothing to do, negative errno. */
int commit_step(struct restore *r);
int commit_recover(struct restore *r);
void commit_drop_all(struct restore *r); /* every slab in the ring, and the assembly */
bool commit_has_whole_epoch(const struct restore *r);
mc_handle commit_state_slab(const struct restore *r); /* device state of the committed epoch */

/* takeover.c */
int takeover_step(struct restore *r);
uint64_t takeover_deadline(const struct restore *r); /* ns, UINT64_MAX: none */

/* inspect.c */
int inspect_main(int argc, char **argv);

extern const struct mc_worker_ops restore_ops;

#endif
