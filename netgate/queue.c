/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SPARES_MAX 16

/* In front of every frame in a chunk. */
struct head {
	uint64_t len;
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
	if (q->spares == SPARES_MAX) {
		free(c);
		return;
	}
	c->next = q->spare;
	q->spare = c;
	q->spares++;
}

void queue_done(struct queue *q)
{
	struct queue_chunk *c;

	while (q->first)
		drop_first_chunk(q);
	while ((c = q->spare)) {
		q->spare = c->next;
		free(c);
	}
	q->frames = q->bytes = q->spares = q->marks = 0;
}

/* An empty chunk at the end. */
static struct queue_chunk *append_chunk(struct queue *q)
{
	struct queue_chunk *c = q->spare;

	if (c) {
		q->spare = c->next;
		q->spares--;
	} else {
		c = malloc(sizeof(*c));
		if (!c)
			return NULL;
	}
	c->next = NULL;
	c->begin = c->end = 0;
	if (q->last)
		q->last->next = c;
	else
		q->first = c;
	q->last = c;
	return c;
}

int queue_push(struct queue *q, const void *data, size_t len)
{
	struct head h = {.len = len};
	struct queue_chunk *c = q->last;

	if (!len || len > FRAME_MAX)
		return -EMSGSIZE;
	if (q->bytes + len > q->limit)
		return -ENOBUFS;
	if (!c || c->end + padded(len) > QUEUE_CHUNK) {
		c = append_chunk(q);
		if (!c)
			return -ENOMEM;
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
	uint64_t end = q->popped + q->frames;

	if (end == (q->marks ? q->mark[q->marks - 1].end : q->popped))
		return; /* nothing came since the mark before */
	if (q->marks == QUEUE_MARKS)
		q->marks--; /* later is safe, earlier would not be */
	q->mark[q->marks++] = (struct queue_mark){epoch, end};
}

unsigned queue_peek_many(const struct queue *q, struct frame *ret, unsigned max)
{
	const struct queue_chunk *c = q->first;
	unsigned n = 0, m = 0;

	for (size_t at = c ? c->begin : 0; c && at < c->end && n < max; n++) {
		struct head h;

		while (m < q->marks && q->mark[m].end <= q->popped + n)
			m++;
		memcpy(&h, c->data + at, sizeof(h));
		ret[n] = (struct frame){.data = c->data + at + sizeof(h),
		                        .len = h.len,
		                        .epoch = m < q->marks ? q->mark[m].epoch : EPOCH_OPEN};
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
	q->popped++;
	q->bytes -= h.len;
	if (q->marks && q->mark[0].end <= q->popped)
		memmove(q->mark, q->mark + 1, --q->marks * sizeof(q->mark[0]));
	if (c->begin == c->end)
		drop_first_chunk(q);
}
