/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "populated.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "../ipc/copyset.h"
#include "../ipc/util.h"

static bool tells_holes(int fd)
{
	struct statfs s;

	return fstatfs(fd, &s) == 0 && (uint64_t)s.f_type == TMPFS_MAGIC;
}

/* Where the next page of the file is, from @at on; the end of the block when there is none. */
static int next_data(const struct populated *p, uint64_t at, uint64_t *ret)
{
	off_t data = lseek(p->fd, (off_t)at, SEEK_DATA);

	if (data < 0 && errno != ENXIO)
		return -errno;
	*ret = data < 0 ? p->size : mc_min_u64((uint64_t)data, p->size);
	return 0;
}

static bool is_known(const struct populated *p, uint64_t at)
{
	return p->fd < 0 || p->area[at / POPULATED_AREA];
}

static uint64_t end_of_area(const struct populated *p, uint64_t at)
{
	return mc_min_u64((at / POPULATED_AREA + 1) * POPULATED_AREA, p->size);
}

int populated_init(struct populated *p, int fd, uint64_t size)
{
	struct populated_run r = {0};
	int more;

	*p = (struct populated){.fd = fd, .size = size};
	if (!tells_holes(fd)) {
		mc_closep(&p->fd);
		return 0;
	}
	p->area = calloc(size / POPULATED_AREA + 1, 1);
	if (!p->area) {
		populated_done(p);
		return -ENOMEM;
	}
	do
		more = populated_next(p, &r);
	while (more > 0);
	if (more < 0)
		populated_done(p);
	return more;
}

void populated_done(struct populated *p)
{
	mc_closep(&p->fd);
	free(p->area);
	p->area = NULL;
	p->size = 0;
}

int populated_next(struct populated *p, struct populated_run *r)
{
	uint64_t at = r->to, data = at;

	while (at < p->size && !is_known(p, at)) {
		int e = data <= at ? next_data(p, at, &data) : 0;

		if (e < 0)
			return e;
		if (data < end_of_area(p, at)) {
			p->area[at / POPULATED_AREA] = 1;
			*r = (struct populated_run){at, end_of_area(p, at), true};
			return 1;
		}
		at = end_of_area(p, at);
	}
	*r = (struct populated_run){at, at, false};
	while (r->to < p->size && is_known(p, r->to))
		r->to = end_of_area(p, r->to);
	return r->to > r->from;
}

/* The number of those that were set. */
static int64_t clear_bits(_Atomic uint64_t *bitmap, uint64_t first, uint64_t n)
{
	int64_t cleared = 0;

	while (n) {
		uint64_t bit = first % 64, take = mc_min_u64(64 - bit, n);
		uint64_t mask = (take == 64 ? ~0ULL : (1ULL << take) - 1) << bit;
		uint64_t was =
		        atomic_fetch_and_explicit(&bitmap[first / 64], ~mask, memory_order_relaxed);

		cleared += __builtin_popcountll(was & mask);
		first += take;
		n -= take;
	}
	return cleared;
}

int64_t populated_strike_holes(const struct populated *p, const struct populated_run *r,
                               uint64_t first, _Atomic uint64_t *bitmap, _Atomic uint64_t *also)
{
	uint64_t at = r->from;
	int64_t pages = 0;

	while (p->fd >= 0 && at < r->to) {
		off_t hole = lseek(p->fd, (off_t)at, SEEK_HOLE);
		uint64_t from, data = 0;
		int e;

		if (hole < 0)
			return -errno;
		from = mc_min_u64((uint64_t)hole, r->to);
		e = next_data(p, from, &data);
		if (e < 0)
			return e;
		at = mc_min_u64(data, r->to);
		pages +=
		        clear_bits(bitmap, first + from / MC_PAGE_SIZE, (at - from) / MC_PAGE_SIZE);
		if (also)
			(void)clear_bits(also, first + from / MC_PAGE_SIZE,
			                 (at - from) / MC_PAGE_SIZE);
	}
	return pages;
}
