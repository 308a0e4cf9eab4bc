/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* In front of every frame in a chunk. */
struct head {
	uint64_t epoch;
	uint32_t len;
	uint32_t reserved;
};

struct queue_chunk {
	struct queue_chunk *next;
	size_t begin, end; /* of what is used */
	uint8_t data[QUEUE_CHUNK];
};

void queue_init(struct queue *q, uint64_t limit)
{
	*q = (struct queue){.limit = limit};
}

static size_t padded(size_t len)
{
	return sizeof(struct head) + ((len + 7) & ~(size_t)7);
}

static void drop_first_chunk(struct queue *q)
{
	struct queue_chunk *c = q->first;

	q->first = c->next;
	if (!q->first)
		q->last = NULL;
	free(c);
}

void queue_done(struct queue *q)
{
	while (q->first)
		drop_first_chunk(q);
	q->frames = q->bytes = 0;
}

int queue_push(struct queue *q, const void *data, size_t len)
{
	struct head h = {.epoch = EPOCH_OPEN, .len = (uint32_t)len};
	struct queue_chunk *c = q->last;

	if (!len || len > FRAME_MAX)
		return -EMSGSIZE;
	if (q->bytes + len > q->limit)
		return -ENOBUFS;
	if (!c || c->end + padded(len) > QUEUE_CHUNK) {
		c = malloc(sizeof(*c));
		if (!c)
			return -ENOMEM;
		c->next = NULL;
		c->begin = c->end = 0;
		if (q->last)
			q->last->next = c;
		else
			q->first = c;
		q->last = c;
	}
	memcpy(c->data + c->end, &h, sizeof(h));
	memcpy(c->data + c->end + sizeof(h), data, len);
	c->end += padded(len);
	q->frames++;
	q->bytes += len;
	return 0;
}

void queue_mark(struct queue *q, uint64_t epoch)
{
	for (struct queue_chunk *c = q->first; c; c = c->next) {
		for (size_t at = c->begin; at < c->end;) {
			struct head h;

			memcpy(&h, c->data + at, sizeof(h));
			if (h.epoch == EPOCH_OPEN) {
				h.epoch = epoch;
				memcpy(c->data + at, &h, sizeof(h));
			}
			at += padded(h.len);
		}
	}
	q->mark = epoch;
}

unsigned queue_peek_many(const struct queue *q, struct frame *ret, unsigned max)
{
	const struct queue_chunk *c = q->first;
	unsigned n = 0;

	for (size_t at = c ? c->begin : 0; c && at < c->end && n < max; n++) {
		struct head h;

		memcpy(&h, c->data + at, sizeof(h));
		ret[n] = (struct frame){
		        .data = c->data + at + sizeof(h), .len = h.len, .epoch = h.epoch};
		at += padded(h.len);
	}
	return n;
}

bool queue_peek(const struct queue *q, struct frame *ret)
{
	return queue_peek_many(q, ret, 1) == 1;
}

void queue_pop(struct queue *q)
{
	struct queue_chunk *c = q->first;
	struct head h;

	memcpy(&h, c->data + c->begin, sizeof(h));
	c->begin += padded(h.len);
	q->frames--;
	q->bytes -= h.len;
	if (c->begin == c->end)
		drop_first_chunk(q);
}
