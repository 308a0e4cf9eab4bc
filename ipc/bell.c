/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "bell.h"

#include <sys/types.h>
#include <unistd.h>

void mc_bell_ring_always(int fd)
{
	const uint64_t one = 1;
	ssize_t n;

	if (fd < 0)
		return;
	/* EAGAIN: the counter is full, so the peer will wake up anyway. */
	n = write(fd, &one, sizeof(one));
	(void)n;
}

void mc_bell_ring(struct mc_bell *bell, int fd)
{
	atomic_thread_fence(memory_order_seq_cst); /* (E) */
	if (atomic_load_explicit(&bell->sleeping, memory_order_relaxed))
		mc_bell_ring_always(fd);
}

void mc_bell_sleep(struct mc_bell *bell)
{
	atomic_store_explicit(&bell->sleeping, 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst); /* (F) */
}

void mc_bell_awake(struct mc_bell *bell, int fd)
{
	uint64_t count;
	ssize_t n;

	atomic_store_explicit(&bell->sleeping, 0, memory_order_relaxed);
	if (fd < 0)
		return;
	n = read(fd, &count, sizeof(count));
	(void)n;
}
