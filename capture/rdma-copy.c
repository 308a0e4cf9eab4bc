/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "rdma-copy.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../ipc/util.h"
#include "../verbs/verbs.h"

#define CHUNK    (2ULL << 20) /* of guest RAM, registered as one */
#define REQUESTS 128          /* on their way */
#define PIECES   16           /* of guest RAM in one request */
#define PREPARE  32           /* chunks registered in one go */
#define WANTED   1024         /* chunks remembered for it */
#define PENDING  8192         /* pieces that can be copied again */
#define LIMIT_MS 100

struct block {
	uint8_t *map; /* writable: a device registers nothing else */
	uint64_t size;
	int fd;
	struct ibv_mr **mr; /* of each chunk */
};

/* What was begun since the last finish. */
struct piece {
	const uint8_t *from;
	uint8_t *to;
	size_t len;
};

struct slab_mr {
	struct ibv_mr *mr;
	uint64_t shrunk;
};

struct rdma_copy {
	const struct mc_pool *pool;
	uint64_t limit;
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	struct ibv_qp *qp[2];
	bool broken;
	int error; /* not reported yet */
	struct block block[RDMA_COPY_BLOCKS];
	struct slab_mr *slab; /* [pool->max] */
	struct {
		unsigned block;
		uint64_t chunk;
	} wanted[WANTED];
	unsigned nwanted;
	/* request under construction */
	struct ibv_sge sge[PIECES];
	unsigned nsge;
	uint8_t *to;
	size_t bytes;
	uint32_t rkey;
	unsigned in_flight;
	struct piece *pending; /* [PENDING] */
	unsigned npending;
	struct rdma_copy_stats stats;
};

/* --- life ------------------------------------------------------------------------------ */

static void deregister(struct rdma_copy *c, struct ibv_mr **mr)
{
	if (*mr)
		c->stats.pinned -= (*mr)->length;
	*mr = verbs_mr_free(*mr);
}

static int register_memory(struct rdma_copy *c, void *p, size_t len, int access, struct ibv_mr **mr)
{
	int e = verbs_mr_new(c->pd, p, len, access, mr);

	if (e < 0)
		return e;
	c->stats.pinned += len;
	c->stats.registrations++;
	return 0;
}

static void free_block(struct rdma_copy *c, struct block *b)
{
	for (uint64_t i = 0; b->mr && i < b->size / CHUNK; i++)
		deregister(c, &b->mr[i]);
	free(b->mr);
	if (b->map)
		munmap(b->map, b->size);
	mc_closep(&b->fd);
	*b = (struct block){.fd = -1};
}

struct rdma_copy *rdma_copy_free(struct rdma_copy *c)
{
	if (!c)
		return NULL;
	verbs_loop_free(c->qp);
	for (unsigned i = 0; i < RDMA_COPY_BLOCKS; i++)
		free_block(c, &c->block[i]);
	for (uint64_t i = 0; c->slab && i < c->pool->max; i++)
		deregister(c, &c->slab[i].mr);
	verbs_cq_free(c->cq);
	verbs_comp_channel_free(c->comp);
	verbs_pd_free(c->pd);
	verbs_device_close(c->ctx);
	free(c->slab);
	free(c->pending);
	free(c);
	return NULL;
}

int rdma_copy_new(struct rdma_copy **ret, const struct mc_pool *pool, uint64_t limit)
{
	const struct verbs_qp_size size = {.send = REQUESTS, .recv = 1, .sge = PIECES};
	struct rdma_copy *c = calloc(1, sizeof(*c));
	int e = 0;

	if (!c)
		return -ENOMEM;
	c->pool = pool;
	c->limit = limit;
	for (unsigned i = 0; i < RDMA_COPY_BLOCKS; i++)
		c->block[i].fd = -1;
	c->slab = calloc(pool->max, sizeof(*c->slab));
	c->pending = calloc(PENDING, sizeof(*c->pending));
	if (!c->slab || !c->pending)
		e = -ENOMEM;
	if (e == 0)
		e = verbs_device_open(&c->ctx);
	if (e == 0)
		e = verbs_pd_new(c->ctx, &c->pd);
	if (e == 0)
		e = verbs_comp_channel_new(c->ctx, &c->comp);
	if (e == 0)
		e = verbs_cq_new(c->ctx, REQUESTS + 1, c->comp, &c->cq);
	if (e == 0)
		e = verbs_loop_new(c->pd, c->cq, &size, c->qp);
	if (e < 0) {
		(void)rdma_copy_free(c);
		return e;
	}
	*ret = c;
	return 0;
}

int rdma_copy_add_block(struct rdma_copy *c, unsigned block, int fd, uint64_t size)
{
	struct block *b = block < RDMA_COPY_BLOCKS ? &c->block[block] : NULL;
	void *p;

	if (!b || b->map)
		return -EINVAL;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	b->map = p;
	b->size = size;
	b->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	b->mr = calloc(size / CHUNK + 1, sizeof(struct ibv_mr *));
	if (b->fd >= 0 && b->mr)
		return 0;
	free_block(c, b);
	return -ENOMEM;
}

/* --- outside of the pause -------------------------------------------------------------- */

/* True when no page of the chunk is a hole. */
static bool exists(const struct block *b, uint64_t chunk)
{
	off_t at = (off_t)(chunk * CHUNK);
	off_t hole = lseek(b->fd, at, SEEK_HOLE);

	return hole >= at + (off_t)CHUNK;
}

static void prepare_ram(struct rdma_copy *c)
{
	unsigned n = 0, k = 0;

	for (; k < c->nwanted && n < PREPARE; k++) {
		struct block *b = &c->block[c->wanted[k].block];
		uint64_t chunk = c->wanted[k].chunk;

		if (b->mr[chunk] || c->stats.pinned + CHUNK > c->limit || !exists(b, chunk))
			continue;
		n++;
		if (register_memory(c, b->map + chunk * CHUNK, CHUNK, 0, &b->mr[chunk]) < 0)
			c->limit = c->stats.pinned; /* as much as the host lets us have */
	}
	/* What was not reached is asked for again by the next memcpy. */
	c->nwanted = 0;
}

/*
 * Slabs: only this process' role shrinks the primary's pool, so that a free slab stays as it is
 * while it is registered.  After a shrink a slab may have lost its pages and got others.
 */
static void prepare_slabs(struct rdma_copy *c)
{
	const struct mc_pool *p = c->pool;
	uint64_t shrunk = atomic_load_explicit(&p->shm->shrunk, memory_order_acquire);

	for (uint64_t i = 0; i < p->max; i++) {
		uint64_t w = atomic_load_explicit(&p->word[i], memory_order_acquire);
		struct slab_mr *s = &c->slab[i];

		if (s->mr && s->shrunk != shrunk)
			deregister(c, &s->mr);
		if (s->mr || mc_slab_word_state(w) != MC_SLAB_FREE)
			continue;
		if (register_memory(c, p->data + i * p->unit, p->unit,
		                    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, &s->mr) < 0)
			return;
		s->shrunk = shrunk;
	}
}

void rdma_copy_prepare(struct rdma_copy *c)
{
	if (c->broken)
		return;
	prepare_slabs(c);
	prepare_ram(c);
}

/* --- copying --------------------------------------------------------------------------- */

static void by_cpu(struct rdma_copy *c, const uint8_t *from, uint8_t *to, size_t len)
{
	memcpy(to, from, len);
	c->stats.by_cpu += len;
}

/* The device is not used any more; what it may not have done is done by the CPU. */
static void give_up(struct rdma_copy *c, int error)
{
	c->broken = true;
	c->error = error;
	verbs_loop_free(c->qp); /* first: nothing late may come over what follows */
	for (unsigned i = 0; i < c->npending; i++)
		by_cpu(c, c->pending[i].from, c->pending[i].to, c->pending[i].len);
	c->npending = c->nsge = c->in_flight = 0;
	c->bytes = 0;
}

/* Takes completions; with @wait at least one, within the limit. */
static int reap(struct rdma_copy *c, bool wait)
{
	uint64_t end = mc_now_ns() + LIMIT_MS * MC_NS_PER_MS;
	struct ibv_wc wc[16];

	for (;;) {
		struct pollfd p = {.fd = c->comp->fd, .events = POLLIN};
		int n = verbs_poll(c->cq, MC_ARRAY_SIZE(wc), wc), e = n < 0 ? n : 0;

		for (int i = 0; i < n && e == 0; i++)
			e = verbs_wc_error(&wc[i]);
		if (e < 0)
			return e;
		c->in_flight -= (unsigned)n;
		if (n || !wait)
			return 0;
		if (mc_now_ns() > end)
			return -ETIMEDOUT;
		e = verbs_cq_arm(c->cq);
		if (e == 0) {
			n = verbs_poll(c->cq, 1, wc);
			e = n == 1 ? verbs_wc_error(&wc[0]) : n;
			if (e == 0 && n == 1) {
				c->in_flight--;
				return 0;
			}
		}
		if (e == 0)
			(void)poll(&p, 1, LIMIT_MS);
		if (e == 0)
			e = verbs_cq_wakeups(c->comp, c->cq);
		if (e < 0)
			return e;
	}
}

static int post(struct rdma_copy *c)
{
	struct ibv_send_wr wr = {
	        .sg_list = c->sge,
	        .num_sge = (int)c->nsge,
	        .opcode = IBV_WR_RDMA_WRITE,
	        .wr.rdma = {.remote_addr = (uintptr_t)c->to, .rkey = c->rkey},
	};
	int e = 0;

	if (!c->nsge)
		return 0;
	while (e == 0 && c->in_flight == REQUESTS)
		e = reap(c, true);
	if (e == 0)
		e = verbs_post_send(c->qp[0], &wr);
	if (e < 0)
		return e;
	c->in_flight++;
	c->stats.by_device += c->bytes;
	c->nsge = 0;
	c->bytes = 0;
	return 0;
}

static struct ibv_mr *ram_mr(struct rdma_copy *c, unsigned block, uint64_t off, size_t len)
{
	struct block *b = block < RDMA_COPY_BLOCKS ? &c->block[block] : NULL;
	uint64_t chunk = off / CHUNK;

	if (!b || !b->map || off + len > (chunk + 1) * CHUNK || (chunk + 1) * CHUNK > b->size)
		return NULL;
	if (b->mr[chunk])
		return b->mr[chunk];
	if (c->nwanted < WANTED && (!c->nwanted || c->wanted[c->nwanted - 1].chunk != chunk ||
	                            c->wanted[c->nwanted - 1].block != block)) {
		c->wanted[c->nwanted].block = block;
		c->wanted[c->nwanted++].chunk = chunk;
	}
	return NULL;
}

static struct ibv_mr *slab_mr(const struct rdma_copy *c, const uint8_t *to)
{
	uint64_t i = (uint64_t)(to - c->pool->data) / c->pool->unit;
	const struct slab_mr *s = i < c->pool->max ? &c->slab[i] : NULL;
	uint64_t shrunk = atomic_load_explicit(&c->pool->shm->shrunk, memory_order_acquire);

	return s && s->shrunk == shrunk ? s->mr : NULL;
}

/* True when @addr goes on where the last piece ends, in the same registration. */
static bool follows(const struct ibv_sge *last, const struct ibv_mr *mr, uint64_t addr)
{
	return last->lkey == mr->lkey && last->addr + last->length == addr;
}

void rdma_copy(struct rdma_copy *c, unsigned block, uint64_t off, const uint8_t *from, uint8_t *to,
               size_t len)
{
	struct ibv_mr *src = c->broken ? NULL : ram_mr(c, block, off, len);
	struct ibv_mr *dst = src ? slab_mr(c, to) : NULL;
	uint64_t addr;
	bool joins;
	int e = 0;

	if (!dst || c->npending == PENDING) {
		by_cpu(c, from, to, len);
		return;
	}
	addr = (uintptr_t)c->block[block].map + off;
	joins = c->nsge && follows(&c->sge[c->nsge - 1], src, addr);
	if (c->nsge && (c->to + c->bytes != to || c->rkey != dst->rkey || c->bytes + len > CHUNK ||
	                (!joins && c->nsge == PIECES))) {
		e = post(c);
		joins = false;
	}
	c->pending[c->npending++] = (struct piece){from, to, len};
	if (e < 0) {
		give_up(c, e);
		return;
	}
	if (!c->nsge) {
		c->to = to;
		c->rkey = dst->rkey;
	}
	if (joins)
		c->sge[c->nsge - 1].length += (uint32_t)len;
	else
		c->sge[c->nsge++] = (struct ibv_sge){addr, (uint32_t)len, src->lkey};
	c->bytes += len;
}

int rdma_copy_finish(struct rdma_copy *c)
{
	int e = c->broken ? 0 : post(c);

	while (e == 0 && c->in_flight)
		e = reap(c, true);
	if (e < 0)
		give_up(c, e);
	c->npending = 0;
	e = c->error;
	c->error = 0;
	return e;
}

void rdma_copy_get_stats(const struct rdma_copy *c, struct rdma_copy_stats *ret)
{
	*ret = c->stats;
}
