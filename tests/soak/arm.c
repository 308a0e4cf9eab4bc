/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Arms a fault point (ipc/fault.h) of a process that runs.
 *
 *   arm ARENA PLACE SPEC
 *
 * ARENA: path of the guest's arena.  PLACE: number of the process' place.  Says "set" once it lies
 * ready, and ends once the process has taken it; exit status 1 when it doesn't within 5 s.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../ipc/arena.h"
#include "../../ipc/util.h"

int main(int argc, char **argv)
{
	struct timespec nap = {.tv_nsec = 100000};
	uint64_t end = mc_now_ns() + 5 * MC_NS_PER_S;
	struct mc_fault_slot *slot;
	struct mc_arena a;
	int fd, place;
	size_t offset;
	void *map;

	if (argc != 4 || strlen(argv[3]) >= sizeof(slot->text))
		return 2;
	place = atoi(argv[2]);
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fd < 0 || place <= 0 || place >= MC_ROLE_MAX || mc_arena_view(&a, fd, -1) < 0)
		return 1;
	offset = (size_t)((uint8_t *)&a.proc[place].fault - (uint8_t *)a.map);
	map = mmap(NULL, offset + sizeof(*slot), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return 1;
	slot = (struct mc_fault_slot *)((uint8_t *)map + offset);
	strcpy(slot->text, argv[3]);
	atomic_store_explicit(&slot->set, 1, memory_order_release);
	puts("set");
	fflush(stdout);
	while (atomic_load_explicit(&slot->set, memory_order_acquire)) {
		if (mc_now_ns() > end)
			return 1;
		nanosleep(&nap, NULL);
	}
	return 0;
}
