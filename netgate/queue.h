/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames that are held back: a bounded first-in first-out queue with epoch marks.  Memory
 * comes in chunks and goes back as they empty, but for a few.
 */
#ifndef MC_NETGATE_QUEUE_H
#define MC_NETGATE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QUEUE_CHUNK (256 * 1024)
#define FRAME_MAX   65536
#define EPOCH_OPEN  UINT64_MAX /* no barrier was set behind the frame yet */
#define QUEUE_MARKS 64

struct queue_chunk;

/* A barrier: frames before the @end-th that ever came, and behind the mark before, are of @epoch.
 */
struct queue_mark {
	uint64_t epoch, end;
};

struct queue {
	struct queue_chunk *first, *last;
	struct queue_chunk *spare; /* emptied: a burst a few milliseconds long needs them again */
	unsigned spares;
	uint64_t frames, bytes;              /* held */
	uint64_t limit;                      /* bytes */
	uint64_t popped;                     /* frames, ever */
	struct queue_mark mark[QUEUE_MARKS]; /* those of frames that are held, the oldest first */
	unsigned marks;
};

/* A frame at the head of the queue; valid until queue_pop(). */
struct frame {
	const uint8_t *data;
	size_t len;
	uint64_t epoch; /* that it belongs to; EPOCH_OPEN */
};

void queue_init(struct queue *q, uint64_t limit);
void queue_done(struct queue *q); /* frees everything */

/* Appends a copy. 0, -ENOBUFS (limit), -ENOMEM, -EMSGSIZE. */
int queue_push(struct queue *q, const void *data, size_t len);

/*
 * All frames without an epoch get @epoch; later ones are open again.  More than QUEUE_MARKS epochs
 * are not told apart: the frames of the newest one join @epoch.
 */
void queue_mark(struct queue *q, uint64_t epoch);

/* The frame at the head. false: none. */
bool queue_peek(const struct queue *q, struct frame *ret);
/* Up to @max frames from the head on, as many as lie in its chunk. Returns how many. */
unsigned queue_peek_many(const struct queue *q, struct frame *ret, unsigned max);
void queue_pop(struct queue *q);

#endif
