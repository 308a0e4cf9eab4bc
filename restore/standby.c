/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The waiting QEMU: finding it, its RAM. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/urgent.h"
#include "../ipc/util.h"
#include "restore.h"

#define CONNECT_MS  2000
#define COMMAND_MS  2000
#define EMPTY_BYTES (1ULL << 30)
#define LOCK_NS     (2 * MC_NS_PER_S)

static void on_event(void *ctx, const char *name, json_t *data)
{
	const char *status = json_string_value(json_object_get(data, "status"));
	struct restore *r = ctx;

	if (strcmp(name, "RESUME") == 0)
		r->resumed = true;
	else if (strcmp(name, "MIGRATION") == 0 && status && strcmp(status, "completed") == 0)
		r->loaded = true;
}

static int refuse(struct restore *r, int e, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));
static int refuse(struct restore *r, int e, const char *fmt, ...)
{
	char why[MC_WHY_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	mc_control_refuse(r->a->control, "%s", why);
	return e;
}

static void on_wait(void *ctx, uint64_t ns)
{
	struct restore *r = ctx;

	mc_worker_busy(r->w, ns);
}

static int connect_qmp(struct restore *r)
{
	const char *path = r->a->config->qmp;
	int e = qmp_connect(&r->q, path, CONNECT_MS);
	char why[320];

	if (e == 0) {
		qmp_on_event(r->q, on_event, r);
		qmp_on_wait(r->q, on_wait, r);
		return 0;
	}
	qmp_connect_why(e, path, why, sizeof(why));
	return refuse(r, e, "%s", why);
}

/* MIGRATION events tell the end of the load; a QEMU without them still says RESUME. */
static int ask_for_events(struct restore *r)
{
	int e = qmp_command(
	        r->q, "migrate-set-capabilities",
	        json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "events", "state", 1),
	        COMMAND_MS, NULL);

	return e == -EREMOTEIO ? 0 : e;
}

static int check_runstate(struct restore *r)
{
	bool took = atomic_load(&r->a->control->commit) & MC_COMMIT_TAKEN;
	const char *status;
	json_t *v = NULL;
	int e = qmp_command(r->q, "query-status", NULL, COMMAND_MS, &v);

	if (e < 0)
		return refuse(r, e,
		              "the standby's QEMU doesn't answer (QMP query-status: %s); is it "
		              "overloaded? Start it again",
		              strerror(-e));
	status = json_string_value(json_object_get(v, "status"));
	r->resumed = json_is_true(json_object_get(v, "running"));
	if (!took && (!status || strcmp(status, "inmigrate") != 0))
		e = refuse(r, -EPERM,
		           "this QEMU doesn't wait for incoming state; start the standby with "
		           "-incoming defer");
	json_decref(v);
	return e;
}

/*
 * Nobody else may fill it.  A child that a killed predecessor had just forked shares the lock until
 * it runs and closes what it inherited.
 */
static int lock_ram(int fd)
{
	uint64_t end = mc_now_ns() + LOCK_NS;

	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (mc_now_ns() > end)
			return -EBUSY;
		(void)nanosleep(&(struct timespec){.tv_nsec = (long)MC_NS_PER_MS}, NULL);
	}
	return 0;
}

static int map_ram(struct restore *r)
{
	for (unsigned i = 0; i < r->vm.nblocks; i++) {
		void *p;

		if (!r->vm.block[i].shared)
			return refuse(
			        r, -EPERM,
			        "the standby's RAM is private; start it with share=on, as the "
			        "guest");
		r->ram_fd[i] = vm_open_block(&r->vm, i);
		if (r->ram_fd[i] < 0)
			return refuse(r, r->ram_fd[i],
			              "can't open RAM block %s: %s; is the standby's file there, "
			              "and may root read it?",
			              r->vm.block[i].name, strerror(-r->ram_fd[i]));
		if (lock_ram(r->ram_fd[i]) < 0)
			return refuse(r, -EBUSY,
			              "this QEMU is used already, by another supervisor; end that "
			              "first");
		p = mmap(NULL, r->vm.block[i].size, PROT_READ | PROT_WRITE, MAP_SHARED,
		         r->ram_fd[i], 0);
		if (p == MAP_FAILED)
			return refuse(r, -errno,
			              "can't map RAM block %s: %s; is its file as large as the "
			              "guest's RAM?",
			              r->vm.block[i].name, strerror(errno));
		r->ram[i] = p;
		r->block_size[i] = r->vm.block[i].size;
	}
	return 0;
}

/*
 * A successor must find the very QEMU that its predecessor filled: another one under the same
 * socket has an empty RAM.
 */
static int examine(struct restore *r)
{
	char why[512];
	int e;

	if (!atomic_load(&r->a->control->standby_ready)) {
		e = vm_inspect(r->q, &r->vm, why, sizeof(why));
		return e < 0 ? refuse(r, e, "%s", why) : 0;
	}
	e = vm_recall(r->q, r->a->control, &r->vm);
	if (e == -ESTALE)
		return refuse(r, e,
		              "the standby was restarted meanwhile; its RAM is empty and it can't "
		              "take over; run mcctl standby again");
	return e < 0 ? refuse(r, e,
	                      "the list of RAM blocks in the shared memory is damaged; run mcctl "
	                      "standby again")
	             : 0;
}

/* In pieces: the memory of a large guest takes seconds to give back, and we are watched. */
static int empty_block(struct restore *r, unsigned i)
{
	uint64_t size = r->vm.block[i].size;

	for (uint64_t at = 0; at < size; at += EMPTY_BYTES) {
		mc_worker_alive(r->w);
		if (fallocate(r->ram_fd[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
		              (off_t)mc_min_u64(size - at, EMPTY_BYTES)) < 0)
			return -errno;
	}
	return 0;
}

int standby_empty(struct restore *r)
{
	for (unsigned i = 0; i < r->vm.nblocks; i++) {
		int e = empty_block(r, i);

		if (e < 0)
			return refuse(r, e,
			              "can't empty RAM block %s: %s; put it on tmpfs (/dev/shm), "
			              "hugetlbfs or in a memfd",
			              r->vm.block[i].name, strerror(-e));
	}
	return 0;
}

int standby_attach(struct restore *r)
{
	struct mc_control *c = r->a->control;
	int e = connect_qmp(r);

	if (e == 0)
		e = ask_for_events(r);
	if (e == 0)
		e = check_runstate(r);
	if (e == 0)
		e = examine(r);
	if (e == 0)
		e = map_ram(r);
	if (e == 0 && !atomic_load(&c->standby_ready)) {
		e = vm_firmware_fill(r->q, r->vm.pid);
		if (e < 0)
			return refuse(r, e,
			              "can't give the standby its firmware: %s; is it read-only, "
			              "or in use?",
			              strerror(-e));
	}
	if (e < 0)
		return e;
	(void)mc_fault(MC_FAULT_RESTORE_MAPPED);
	(void)mc_urgent_process(r->vm.pid);
	if (atomic_load(&c->standby_ready))
		return 0;
	(void)vm_record(&r->vm, c, UINT64_MAX); /* a backup has no bitmap */
	(void)mc_fault(MC_FAULT_RESTORE_PUBLISHED);
	e = hashes_keep(r);
	(void)mc_fault(MC_FAULT_RESTORE_EMPTIED);
	if (e == 0)
		atomic_store_explicit(&c->standby_ready, 1, memory_order_release);
	mc_arena_ring_all(r->a);
	return e;
}

void standby_detach(struct restore *r)
{
	for (unsigned i = 0; i < r->vm.nblocks; i++) {
		if (r->ram[i])
			munmap(r->ram[i], r->vm.block[i].size);
		r->ram[i] = NULL;
		mc_closep(&r->ram_fd[i]);
	}
	if (r->state_file > 0)
		mc_closep(&r->state_file);
	r->q = qmp_free(r->q);
	vm_info_done(&r->vm);
}
