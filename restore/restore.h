/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-restore: verifies, decodes, commits and applies epochs, and takes over.
 *
 * Encoded slabs stay in the ring until they are decoded, decoded ones (owned by restore, never
 * writable by a peer) until their epoch is applied: a successor finds everything.
 */
#ifndef MC_RESTORE_RESTORE_H
#define MC_RESTORE_RESTORE_H

#include <stdbool.h>
#include <stdint.h>

#include "../ipc/arbiter.h"
#include "../ipc/worker.h"
#include "../qmp/vm.h"
#include "decode.h"
#include "decoders.h"
#include "rehearse.h"

/* The epoch that is being decoded: its slabs 0 .. n - 1 are here, the ring goes on with n. */
struct assembly {
	uint64_t epoch; /* 0: none */
	uint32_t n;     /* slabs decoded */
	mc_handle slab[MC_EPOCH_SLABS_MAX];
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
	struct decoders *decoders;
	uint64_t *filled; /* first copy: pages of the RAM that may not be zero */
	struct mc_ring_end in;
	struct assembly as;
	bool resumed;      /* the standby runs */
	bool loaded;       /* it has taken the device state in, but may be paused */
	bool standby_gone; /* there is nothing to restore into: only END is answered */
	int state_file;    /* given to the standby by load_prepare(); -1: none */
	bool wants_config; /* the standby expects a configuration section in its stream */
	bool ring_bad;     /* transport's ring can't be trusted: what is committed still can */
	struct mc_arbiter *arbiter; /* asked whether we may take over */
	uint64_t ask_at;            /* ns: not before, after one that gave no answer */
	struct rehearsal {
		bool running; /* one is under way */
		int fd;
		sd_event_source *io;
		uint64_t asked, epoch;
		uint64_t hold_until, limit; /* ns; 0: not holding */
		uint64_t ready_ns;
	} rehearsal;
	int launcher; /* its socket (launcher.c) */
	sd_event_source *timer, *qmp_source;
};

/* restore.c */
void restore_done(struct restore *r); /* accepts a zeroed or half-built struct */

/*
 * launcher.c: who runs the helper of rehearsals once mc-restore can't.  Started before the
 * privileges go; launcher_run() hands @fd to a new helper, launcher_kill() ends it.
 */
int launcher_start(struct restore *r);
int launcher_run(struct restore *r, int fd);
void launcher_kill(struct restore *r);

/* standby.c: the waiting QEMU. */
int standby_attach(struct restore *r); /* 0; negative errno: refusal set, logged */
void standby_detach(struct restore *r);
int standby_empty(struct restore *r); /* gives all of its RAM back: it reads as zero */

/*
 * load.c: load_wants_config() is to be asked while /proc/PID/cmdline may be read.
 *
 * standby_go(): the one load of device state.  Returns once the standby runs.  A successor may
 * call it again for what its predecessor had begun.
 */
bool load_wants_config(const struct restore *r);
/* Gives the standby its state's file, empty, and all but the end of the command that loads it. */
void load_prepare(struct restore *r);
int standby_go(struct restore *r, const void *state, size_t len);

/* sync.c: the first copy. 1 did something, 0 nothing to do, negative errno. */
int sync_step(struct restore *r);
int sync_slab(struct restore *r, mc_handle h, const struct mc_slab_meta *m);

/*
 * hashes.c.  hashes_keep(): the RAM stays as it is when it holds much, else it is emptied.
 * hashes_step(): 1 answered a question, 0 there is none, negative errno.
 */
int hashes_keep(struct restore *r);
int hashes_step(struct restore *r);

/* commit.c: likewise. */
int commit_step(struct restore *r);
void commit_drop_first(struct restore *r, mc_handle h); /* the ring's first entry */
/* Has transport tell the primary that @epoch is refused; UINT64_MAX: the first copy. */
void commit_nack(struct restore *r, uint64_t epoch);
void commit_drop_all(struct restore *r); /* every slab in the ring, and the assembly */
/* Applies the committed epoch from the decoded slabs; the same result however often. */
int commit_apply(struct restore *r, uint64_t epoch);
void commit_first(struct restore *r); /* there is something to take over with: PROTECTED */
mc_handle commit_state_slab(const struct restore *r); /* device state of the committed epoch */

/*
 * recover.c: a successor goes on where its predecessor was: an epoch that was committed is
 * applied, one that was being decoded keeps the slabs that were finished.
 */
int commit_recover(struct restore *r);

/* slab.c: from encoded slabs to decoded ones of our own, and from there to the standby's RAM. */
int slab_open(struct restore *r, struct decoder *d, mc_handle h, struct mc_enc_view *v);
/* Any thread, with a decoder of its own. */
int slab_decode(struct restore *r, struct decoder *d, mc_handle h, mc_handle *ret, bool *is_state);
int slab_apply(struct restore *r, mc_handle h); /* -EBADMSG: not what we had decoded */
void slab_free(struct restore *r, mc_handle h); /* with its descriptors */
int slab_put_page(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content);

/* The device state as a file that QEMU reads from its beginning; fd or negative errno. */
int standby_state_file(const struct restore *r, const uint8_t *state, size_t len);

/* rehearse.c: 1 did something, 0 nothing. */
int rehearse_step(struct restore *r);
bool rehearse_holds(const struct restore *r);            /* nothing may be applied for now */
uint64_t rehearse_deadline(const struct restore *r);     /* ns, UINT64_MAX: none */
void rehearse_abort(struct restore *r, const char *why); /* ends one that is under way */

/* end.c */
int end_step(struct restore *r);
void end_standby(struct restore *r, enum mc_reason why, const char *text); /* none any more */

/* takeover.c */
int takeover_step(struct restore *r);
uint64_t takeover_deadline(const struct restore *r); /* ns, UINT64_MAX: none */

/* inspect.c */
int inspect_main(int argc, char **argv);

extern const struct mc_worker_ops restore_ops;

static inline enum mc_state restore_state(const struct restore *r)
{
	return mc_state_of(atomic_load_explicit(&r->a->control->state, memory_order_acquire));
}

/* True while an epoch in this state may still be committed. */
static inline bool epoch_is_open(enum mc_epoch_state s)
{
	return s == MC_EPOCH_CAPTURING || s == MC_EPOCH_CAPTURED || s == MC_EPOCH_STAGED;
}

static inline uint64_t restore_committed(const struct restore *r)
{
	return mc_commit_epoch(atomic_load_explicit(&r->a->control->commit, memory_order_acquire));
}

#endif
