/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The waiting QEMU: its RAM, and the one load of device state. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "restore.h"

#define CONNECT_MS 2000
#define COMMAND_MS 2000
#define RESUME_NS  (5 * MC_NS_PER_S)

static void on_event(void *ctx, const char *name, json_t *data)
{
	struct restore *r = ctx;

	(void)data;
	if (strcmp(name, "RESUME") == 0)
		r->resumed = true;
}

static int refuse(struct restore *r, int e, const char *why)
{
	mc_control_refuse(r->a->control, "%s", why);
	mc_err("%s", why);
	return e;
}

static int connect_qmp(struct restore *r)
{
	const char *path = r->a->config->qmp;
	char why[256];
	int e = qmp_connect(&r->q, path, CONNECT_MS);

	if (e == 0) {
		qmp_on_event(r->q, on_event, r);
		return 0;
	}
	if (e == -EBUSY)
		snprintf(why, sizeof(why),
		         "monitor %s is in use; add a second -qmp socket to QEMU and name that one",
		         path);
	else if (e == -EBADMSG)
		snprintf(why, sizeof(why), "%s is not a QMP monitor", path);
	else
		snprintf(why, sizeof(why), "can't connect to QMP socket %s: %s", path,
		         strerror(-e));
	return refuse(r, e, why);
}

static int check_runstate(struct restore *r)
{
	bool took = atomic_load(&r->a->control->commit) & MC_COMMIT_TAKEN;
	const char *status;
	json_t *v = NULL;
	int e = qmp_command(r->q, "query-status", NULL, COMMAND_MS, &v);

	if (e < 0)
		return mc_log_errno(e, "QMP query-status");
	status = json_string_value(json_object_get(v, "status"));
	r->resumed = json_is_true(json_object_get(v, "running"));
	if (!took && (!status || strcmp(status, "inmigrate") != 0))
		e = refuse(r, -EPERM,
		           "this QEMU doesn't wait for incoming state; start the standby with "
		           "-incoming defer");
	json_decref(v);
	return e;
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
			return mc_log_errno(r->ram_fd[i], "can't open RAM block %s",
			                    r->vm.block[i].name);
		p = mmap(NULL, r->vm.block[i].size, PROT_READ | PROT_WRITE, MAP_SHARED,
		         r->ram_fd[i], 0);
		if (p == MAP_FAILED)
			return mc_log_errno(-errno, "can't map RAM block %s", r->vm.block[i].name);
		r->ram[i] = p;
		r->block_size[i] = r->vm.block[i].size;
	}
	return 0;
}

/*
 * A successor must find the very QEMU that its predecessor filled: another one under the same
 * socket has an empty RAM.
 */
static bool same_standby(const struct restore *r)
{
	const struct mc_control *c = r->a->control;

	if (atomic_load(&c->blocks) != r->vm.nblocks)
		return false;
	for (unsigned i = 0; i < r->vm.nblocks; i++)
		if (c->block[i].ino != r->vm.block[i].ino ||
		    c->block[i].dev != r->vm.block[i].dev ||
		    c->block[i].hva != r->vm.block[i].hva ||
		    c->block[i].size != r->vm.block[i].size)
			return false;
	return true;
}

static void publish(struct restore *r)
{
	struct mc_control *c = r->a->control;
	uint64_t first = 0;

	for (unsigned i = 0; i < r->vm.nblocks; i++) {
		const struct vm_block *b = &r->vm.block[i];
		struct mc_block *m = &c->block[i];

		snprintf(m->name, sizeof(m->name), "%s", b->name);
		m->size = b->size;
		m->first_page = first;
		m->hva = b->hva;
		m->dev = b->dev;
		m->ino = b->ino;
		first += MC_ALIGN_UP(b->size / MC_PAGE_SIZE, 64);
	}
	snprintf(c->description, sizeof(c->description), "%s", r->vm.description);
	atomic_store_explicit(&c->blocks, r->vm.nblocks, memory_order_release);
}

int standby_empty(struct restore *r)
{
	for (unsigned i = 0; i < r->vm.nblocks; i++)
		if (fallocate(r->ram_fd[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
		              (off_t)r->vm.block[i].size) < 0)
			return mc_log_errno(-errno, "can't empty RAM block %s",
			                    r->vm.block[i].name);
	return 0;
}

int standby_attach(struct restore *r)
{
	struct mc_control *c = r->a->control;
	char why[512];
	int e = connect_qmp(r);

	if (e == 0)
		e = check_runstate(r);
	if (e == 0) {
		e = vm_inspect(r->q, &r->vm, why, sizeof(why));
		if (e < 0)
			return refuse(r, e, why);
	}
	if (e == 0)
		e = map_ram(r);
	if (e < 0)
		return e;
	if (atomic_load(&c->standby_ready))
		return same_standby(r) ? 0
		                       : refuse(r, -ESTALE,
		                                "the standby was restarted meanwhile; its RAM is "
		                                "empty and it can't take over");
	publish(r);
	e = standby_empty(r);
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
	r->q = qmp_free(r->q);
	vm_info_done(&r->vm);
}

/* True unless the standby was started with -global migration.send-configuration=off. */
bool standby_wants_config(const struct restore *r)
{
	static const char option[] = "migration.send-configuration=off";
	char path[64], mc_autofree *buf = malloc(1 << 20);
	int mc_autoclose fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)r->vm.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd >= 0 && buf ? read(fd, buf, 1 << 20) : -1;
	return n > 0 && !memmem(buf, (size_t)n, option, sizeof(option) - 1);
}

/*
 * The configuration section that a plain -incoming expects behind the stream's magic and
 * version (QEMU migration/savevm.c: section type 7, length, machine type without "-machine").
 */
static int write_config(const struct restore *r, int fd)
{
	const char *p = strstr(r->vm.description, "machine "), *end;
	uint8_t head[5] = {7};
	uint32_t len;

	if (!p)
		return -EINVAL;
	p += strlen("machine ");
	end = strstr(p, "-machine");
	if (!end)
		return -EINVAL;
	len = htonl((uint32_t)(end - p));
	memcpy(head + 1, &len, sizeof(len));
	if (write(fd, head, sizeof(head)) != (ssize_t)sizeof(head) ||
	    write(fd, p, (size_t)(end - p)) != end - p)
		return -EIO;
	return 0;
}

/* The device state as a file that QEMU reads from its beginning. */
static int state_file(const struct restore *r, const uint8_t *state, size_t len)
{
	int fd = memfd_create("mc-device-state", MFD_CLOEXEC);
	int e = 0;

	if (fd < 0)
		return -errno;
	if (len < 8 || write(fd, state, 8) != 8)
		e = -EIO;
	if (e == 0 && standby_wants_config(r))
		e = write_config(r, fd);
	if (e == 0 && write(fd, state + 8, len - 8) != (ssize_t)(len - 8))
		e = -EIO;
	if (e == 0 && lseek(fd, 0, SEEK_SET) < 0)
		e = -errno;
	if (e < 0) {
		close(fd);
		return e;
	}
	return fd;
}

static int await_resume(struct restore *r)
{
	uint64_t end = mc_now_ns() + RESUME_NS;
	static const char query[] = "{\"execute\":\"query-status\"}\n";

	while (!r->resumed && mc_now_ns() < end) {
		bool running = false;
		int e = qmp_send_raw(r->q, query, sizeof(query) - 1);

		if (e == 0)
			e = qmp_wait_running(r->q, end, &running);
		if (e < 0)
			return e;
		if (running)
			r->resumed = true;
		else
			usleep(500); /* QEMU has no answer that waits for the end of a load */
	}
	return r->resumed ? 0 : -ETIMEDOUT;
}

int standby_go(struct restore *r, const void *state, size_t len)
{
	int mc_autoclose fd = state_file(r, state, len);
	int e;

	if (fd < 0)
		return mc_log_errno(fd, "device state file");
	if (r->resumed)
		return 0; /* a predecessor had come that far */
	e = qmp_command_fd(r->q, "getfd", json_pack("{s:s}", "fdname", "mc-state"), fd, COMMAND_MS,
	                   NULL);
	if (e == 0)
		e = qmp_command(r->q, "migrate-incoming", json_pack("{s:s}", "uri", "fd:mc-state"),
		                COMMAND_MS, NULL);
	if (e < 0)
		return mc_log_errno(e, "the standby doesn't take the device state %s",
		                    qmp_error(r->q));
	return await_resume(r);
}
