/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Making an arena, and finding it again by name: the supervisor's part. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "arena-private.h"
#include "util.h"

static int init_parts(struct mc_arena *a, const struct mc_arena_layout *l)
{
	int r = mc_journal_init(a->journal.shm, (enum mc_side)a->params.side);

	for (int i = 0; r == 0 && a->ring_stage[0] && i < MC_STAGES_MAX; i++) {
		r = mc_ring_init(a->ring_stage[i], l->ring_slots);
		if (r == 0)
			r = mc_ring_init(a->ring_transport[i], l->ring_slots);
	}
	if (r == 0 && a->ring_restore)
		r = mc_ring_init(a->ring_restore, l->ring_slots);
	if (r == 0 && l->shadow_sets)
		r = mc_shadow_init(a->shadow.shm, l->shadow_sets);
	if (r == 0)
		r = mc_pool_init(a->descs.shm, l->desc_unit, l->nslabs);
	if (r == 0)
		r = mc_pool_init(a->slabs.shm, a->params.slab_size, l->nslabs);
	if (r < 0)
		return r;
	mc_config_defaults(a->config);
	a->header->magic = MC_ARENA_MAGIC;
	a->header->abi = MC_ABI_VERSION;
	a->header->header_size = sizeof(struct mc_arena_header);
	snprintf(a->header->build, sizeof(a->header->build), "%s", mc_build_id());
	a->header->params = a->params;
	a->header->total = l->total;
	atomic_store_explicit(&a->header->ready, 1, memory_order_release);
	return 0;
}

static int create_file(const char *name)
{
	int fd = name ? shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
	              : memfd_create("mc-arena", MFD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* A guest's name has no colon: this is no other guest's arena. */
static void config_name(const char *name, char *buf, size_t len)
{
	snprintf(buf, len, "%s:config", name);
}

static int create_config(struct mc_arena *a, const char *name)
{
	char path[NAME_MAX];

	if (name) {
		config_name(name, path, sizeof(path));
		/* Of an arena that is gone: this one was made just now. */
		(void)shm_unlink(path);
	}
	a->config_fd = create_file(name ? path : NULL);
	if (a->config_fd < 0)
		return a->config_fd;
	if (ftruncate(a->config_fd, MC_CONFIG_BYTES) < 0 ||
	    fallocate(a->config_fd, 0, 0, MC_CONFIG_BYTES) < 0)
		return -errno;
	return mc_arena_map_config(a, a->config_fd, PROT_READ | PROT_WRITE);
}

static int fill_arena(struct mc_arena *a, const struct mc_arena_layout *l)
{
	int r;

	if (ftruncate(a->fd, (off_t)l->total) < 0)
		return -errno;
	if (fallocate(a->fd, 0, 0, (off_t)l->fixed) < 0)
		return -errno;
	for (int i = 0; i < MC_ROLE_MAX; i++) {
		a->bell_fd[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (a->bell_fd[i] < 0)
			return -errno;
	}
	r = mc_arena_map(a, l, PROT_READ | PROT_WRITE);
	return r < 0 ? r : init_parts(a, l);
}

int mc_arena_create(struct mc_arena *a, const char *name, const struct mc_arena_params *p)
{
	struct mc_arena_layout l;
	char why[128];
	int r = mc_arena_params_check(p, why, sizeof(why));

	if (r < 0)
		return r;
	mc_arena_empty(a);
	a->params = *p;
	a->role = MC_ROLE_SUPERVISOR;
	a->fd = create_file(name);
	if (a->fd < 0)
		return a->fd;
	mc_arena_layout(p, &l);
	r = create_config(a, name);
	if (r == 0)
		r = fill_arena(a, &l);
	if (r < 0) {
		if (name)
			mc_arena_unlink(name);
		mc_arena_done(a);
	}
	return r;
}

void mc_arena_unlink(const char *name)
{
	char path[NAME_MAX];

	config_name(name, path, sizeof(path));
	(void)shm_unlink(path);
	(void)shm_unlink(name);
}

int mc_arena_reopen_config(const char *name, int arena_fd)
{
	int mc_autoclose arena = shm_open(name, O_RDWR | O_CLOEXEC, 0);
	struct stat given, named;
	char path[NAME_MAX];
	int fd;

	if (arena < 0 || fstat(arena, &named) < 0 || fstat(arena_fd, &given) < 0)
		return -errno;
	if (given.st_dev != named.st_dev || given.st_ino != named.st_ino)
		return -ESTALE;
	config_name(name, path, sizeof(path));
	fd = shm_open(path, O_RDWR | O_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}
