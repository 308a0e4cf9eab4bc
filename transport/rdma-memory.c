/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory that the device reaches: control buffers, and the slabs that are sent.
 *
 * A slab is registered when it is first sent after the pool grew by it: it is ours then, so the
 * pool can't give it back meanwhile, and it is populated.  A registration pins the pages that
 * the slab had: when the pool has shrunk, each slab may have lost its pages and got others since.
 * So every registration made before the shrink is dropped, which also lets the kernel have the
 * memory.  The cost (0.2 ms for 5 MiB) falls on this process, not on the guest's pause.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../ipc/util.h"
#include "rdma.h"

#define LARGE     MC_ALIGN_UP(MC_RDMA_LARGE, 64)
#define SEND_AREA ((size_t)SENDS * MC_RDMA_SMALL + LARGE)
#define RECV_AREA ((size_t)(MC_RDMA_RECVS - 1) * MC_RDMA_SMALL + LARGE)
#define AREA      MC_ALIGN_UP(SEND_AREA + RECV_AREA, 4096)

uint8_t *memory_send_buffer(const struct rdma *r, unsigned i)
{
	return r->area + (size_t)i * MC_RDMA_SMALL;
}

uint8_t *memory_recv_buffer(const struct rdma *r, unsigned i, uint32_t *len)
{
	*len = i ? MC_RDMA_SMALL : LARGE;
	return r->area + SEND_AREA + (i ? LARGE + (size_t)(i - 1) * MC_RDMA_SMALL : 0);
}

int memory_register(struct rdma *r, void *p, size_t len, int access, struct ibv_mr **ret)
{
	int e = verbs_mr_new(r->pd, p, len, access, ret);

	if (e == 0)
		r->l.pinned += len;
	return e;
}

void memory_deregister(struct rdma *r, struct ibv_mr **mr)
{
	if (*mr)
		r->l.pinned -= (*mr)->length;
	*mr = verbs_mr_free(*mr);
}

const char *memory_why(int error, char *buf, size_t len)
{
	uint64_t limit = verbs_memlock_limit();

	if (error == -ENOMEM && limit != UINT64_MAX)
		snprintf(buf, len,
		         "memory can't be registered for RDMA: the limit of locked memory "
		         "(RLIMIT_MEMLOCK) is %llu KiB; raise it (LimitMEMLOCK= of the service, "
		         "ulimit -l) above max-memory, or use transport tcp",
		         (unsigned long long)limit / 1024);
	else
		snprintf(buf, len,
		         "memory can't be registered for RDMA; mcctl doctor shows device and "
		         "limits, transport tcp does without");
	return buf;
}

int memory_new(struct rdma *r)
{
	r->mem.slab = calloc(r->opt.pool->max, sizeof(*r->mem.slab));
	if (!r->mem.slab)
		return -ENOMEM;
	r->area = mmap(NULL, AREA, PROT_READ | PROT_WRITE,
	               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (r->area == MAP_FAILED) {
		r->area = NULL;
		return -errno;
	}
	/* A child of a fork must not get the pages that the device writes to. */
	(void)madvise(r->area, AREA, MADV_DONTFORK);
	return 0;
}

int memory_open(struct rdma *r, uint64_t slabs)
{
	if (verbs_memlock_limit() < AREA + slabs * r->opt.pool->unit)
		return -ENOMEM;
	return memory_register(r, r->area, AREA, IBV_ACCESS_LOCAL_WRITE, &r->area_mr);
}

void memory_free(struct rdma *r)
{
	for (uint64_t i = 0; r->mem.slab && i < r->opt.pool->max; i++)
		memory_deregister(r, &r->mem.slab[i].mr);
	free(r->mem.slab);
	r->mem.slab = NULL;
	memory_deregister(r, &r->area_mr);
	if (r->area)
		munmap(r->area, AREA);
	r->area = NULL;
}

static struct sent_slab *of(struct rdma *r, const uint8_t *data, uint64_t *index)
{
	*index = (uint64_t)(data - r->opt.pool->data) / r->opt.pool->unit;
	return *index < r->opt.pool->max ? &r->mem.slab[*index] : NULL;
}

static uint64_t shrunk(const struct rdma *r)
{
	return atomic_load_explicit(&r->opt.pool->shm->shrunk, memory_order_acquire);
}

int memory_lkey(struct rdma *r, const uint8_t *data, uint32_t *lkey)
{
	const struct mc_pool *p = r->opt.pool;
	uint64_t now = shrunk(r), i;
	struct sent_slab *s = of(r, data, &i);
	int e = 0;

	if (!s)
		return -EFAULT;
	if (s->mr && s->shrunk != now && !s->in_flight)
		memory_deregister(r, &s->mr);
	if (!s->mr) {
		e = memory_register(r, p->data + i * p->unit, p->unit, 0, &s->mr);
		s->shrunk = now;
	}
	if (e < 0)
		return e;
	s->in_flight++;
	*lkey = s->mr->lkey;
	return 0;
}

void memory_done(struct rdma *r, const uint8_t *data)
{
	uint64_t i;
	struct sent_slab *s = of(r, data, &i);

	if (s && s->in_flight)
		s->in_flight--;
}

void memory_trim(struct rdma *r)
{
	uint64_t now = shrunk(r);
	bool busy = false;

	if (now == r->mem.shrunk)
		return;
	for (uint64_t i = 0; i < r->opt.pool->max; i++) {
		struct sent_slab *s = &r->mem.slab[i];

		if (!s->mr || s->shrunk == now)
			continue;
		if (s->in_flight)
			busy = true; /* looked at again */
		else
			memory_deregister(r, &s->mr);
	}
	if (!busy)
		r->mem.shrunk = now;
}
