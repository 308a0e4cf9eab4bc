/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Decoders: slabs of one epoch are decoded side by side, by the main thread and by `decoders` - 1
 * threads of mc-restore.  The threads do nothing else: they read encoded slabs and the standby's
 * RAM, which nobody changes meanwhile, and write decoded slabs of our own.
 */
#ifndef MC_RESTORE_DECODERS_H
#define MC_RESTORE_DECODERS_H

#include <stdbool.h>

#include "../ipc/config.h"
#include "../ipc/pool.h"

struct restore;
struct decoders;

struct decode_job {
	mc_handle in;  /* encoded slab, ours */
	mc_handle out; /* decoded slab, when error is 0 */
	bool is_state;
	int error;
};

/* With the main thread's decoder only. -ENOMEM. */
int decoders_new(struct decoders **ret, struct restore *r);
struct decoders *decoders_free(struct decoders *d); /* NULL ok; returns NULL */

/* Adds or ends threads, as far as that is possible; to be called between jobs. @n: 1.. */
void decoders_set(struct decoders *d, unsigned n);
unsigned decoders_count(const struct decoders *d);

/* Does @n jobs (at most decoders_count()) side by side; returns when all are done. */
void decoders_run(struct decoders *d, struct decode_job *job, unsigned n);

/* The main thread's own, for the first copy. */
struct decoder *decoders_main(struct decoders *d);

#endif
