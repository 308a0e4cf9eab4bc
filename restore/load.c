/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The one load of device state into the waiting QEMU, until it runs. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "restore.h"

#define COMMAND_MS 2000
#define COMMAND_NS (COMMAND_MS * MC_NS_PER_MS)
#define LOAD_NS    (5 * MC_NS_PER_S)
#define STEP_NS                                                                                    \
	(100 * MC_NS_PER_MS) /* of a wait: who hangs is found though QEMU may take its time */
#define HEAD        8        /* magic and version of a migration stream */
#define CONFIG      7        /* QEMU_VM_CONFIGURATION */
#define CMDLINE_MAX (1U << 20)

static const char incoming_cmd[] =
        "{\"execute\":\"migrate-incoming\",\"arguments\":{\"uri\":\"fd:mc-state\"}}\n";

/* True unless the standby was started with -global migration.send-configuration=off. */
bool load_wants_config(const struct restore *r)
{
	static const char option[] = "migration.send-configuration=off";
	char path[64], mc_autofree *buf = malloc(CMDLINE_MAX);
	int mc_autoclose fd = -1;
	size_t n = 0;
	ssize_t k;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)r->vm.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	/* A read gives a page at most. */
	while (fd >= 0 && buf && n < CMDLINE_MAX && (k = read(fd, buf + n, CMDLINE_MAX - n)) > 0)
		n += (size_t)k;
	return n && !memmem(buf, n, option, sizeof(option) - 1);
}

static int put(int fd, const void *p, size_t len)
{
	return write(fd, p, len) == (ssize_t)len ? 0 : -EIO;
}

/*
 * The configuration section that a plain -incoming expects behind the stream's magic and
 * version: section type, length, machine type.
 */
static int put_config(const struct restore *r, int fd)
{
	static const char line[] = "Machine ";
	const char *p = r->vm.description;
	uint8_t head[5] = {CONFIG};
	uint32_t len;
	int e;

	while (p && strncmp(p, line, strlen(line)) != 0) {
		p = strchr(p, '\n');
		p = p ? p + 1 : NULL;
	}
	if (!p)
		return -EINVAL;
	p += strlen(line);
	len = htonl((uint32_t)strcspn(p, "\n"));
	memcpy(head + 1, &len, sizeof(len));
	e = put(fd, head, sizeof(head));
	return e < 0 ? e : put(fd, p, strcspn(p, "\n"));
}

/* Writes the stream into @fd and goes back to its beginning. */
static int fill(const struct restore *r, int fd, const uint8_t *state, size_t len)
{
	int e;

	if (len < HEAD)
		return -EBADMSG;
	if (lseek(fd, 0, SEEK_SET) < 0)
		return -errno;
	e = put(fd, state, HEAD);
	if (e == 0 && r->wants_config)
		e = put_config(r, fd);
	if (e == 0)
		e = put(fd, state + HEAD, len - HEAD);
	return e == 0 && lseek(fd, 0, SEEK_SET) < 0 ? -errno : e;
}

int standby_state_file(const struct restore *r, const uint8_t *state, size_t len)
{
	int mc_autoclose fd = memfd_create("mc-device-state", MFD_CLOEXEC);
	int e = fd < 0 ? -errno : fill(r, fd, state, len);

	return e < 0 ? e : mc_take_fd(&fd);
}

static int give_file(struct restore *r, int fd)
{
	return qmp_command_fd(r->q, "getfd", json_pack("{s:s}", "fdname", "mc-state"), fd,
	                      COMMAND_MS, NULL);
}

/* QEMU's copy of the descriptor shares the file's offset: it reads from where we leave it. */
void load_prepare(struct restore *r)
{
	int mc_autoclose fd = memfd_create("mc-device-state", MFD_CLOEXEC);

	if (fd < 0 || r->state_file >= 0 || give_file(r, fd) < 0 ||
	    qmp_begin(r->q, incoming_cmd, sizeof(incoming_cmd) - 1) < 0)
		return; /* then it is done at the takeover */
	r->state_file = mc_take_fd(&fd);
}

/* 0, or the run state says that no load is going on: -EREMOTEIO. */
static int look(struct restore *r)
{
	json_t *v = NULL;
	int e = qmp_command(r->q, "query-status", NULL, COMMAND_MS, &v);
	const char *status = json_string_value(json_object_get(v, "status"));

	if (e == 0 && json_is_true(json_object_get(v, "running")))
		r->resumed = true;
	else if (e == 0 && status && strcmp(status, "paused") == 0)
		r->loaded = true;
	else if (e == 0 && (!status || strcmp(status, "inmigrate") != 0))
		e = -EREMOTEIO;
	json_decref(v);
	return e;
}

static int wait_event(struct restore *r, uint64_t end)
{
	struct pollfd p = {.fd = qmp_fd(r->q), .events = POLLIN};
	uint64_t now = mc_now_ns();

	if (now >= end)
		return -ETIMEDOUT;
	mc_worker_alive(r->w);
	if (poll(&p, 1, (int)(mc_min_u64(end - now, STEP_NS) / MC_NS_PER_MS) + 1) < 0 &&
	    errno != EINTR)
		return -errno;
	return qmp_dispatch(r->q);
}

/* Waits for RESUME; a standby that was started with -S must be told. */
static int await_running(struct restore *r)
{
	uint64_t end = mc_now_ns() + LOAD_NS;
	bool told = false;
	int e = 0;

	while (e == 0 && !r->resumed) {
		if (r->loaded && !told) {
			told = true;
			e = qmp_command(r->q, "cont", NULL, COMMAND_MS, NULL);
		} else {
			e = wait_event(r, end);
		}
	}
	return r->resumed ? 0 : e;
}

static int await_answer(struct restore *r)
{
	uint64_t end = mc_now_ns() + COMMAND_NS;
	int e;

	do {
		mc_worker_alive(r->w);
		e = qmp_wait(r->q, mc_min_u64(mc_now_ns() + STEP_NS, end));
	} while (e == -ETIMEDOUT && mc_now_ns() < end);
	return e;
}

/* Now that QEMU has something to do: everybody else hears of the takeover. */
static void tell(struct restore *r)
{
	mc_arena_ring_all(r->a);
	mc_warn("takes over: %s",
	        mc_reason_name(mc_state_reason(atomic_load(&r->a->control->state))));
}

int standby_go(struct restore *r, const void *state, size_t len)
{
	int mc_autoclose fd = -1;
	int e;

	if (r->resumed)
		return 0; /* a predecessor had come that far */
	if (r->state_file >= 0) {
		fd = mc_take_fd(&r->state_file);
		e = fill(r, fd, state, len);
	} else {
		fd = standby_state_file(r, state, len);
		e = fd < 0 ? fd : give_file(r, fd);
	}
	if (e < 0)
		return mc_log_errno(e, "can't keep the device state in a file for the standby");
	(void)mc_fault(MC_FAULT_RESTORE_GIVEN);
	e = qmp_send_raw(r->q, incoming_cmd, sizeof(incoming_cmd) - 1);
	tell(r);
	if (e == 0)
		e = await_answer(r);
	(void)mc_fault(MC_FAULT_RESTORE_LOADING);
	if (e == -EREMOTEIO) {
		mc_warn("the standby doesn't take the device state: %s; its stderr says more, "
		        "compare it with mcctl standby-args on the primary",
		        qmp_error(r->q));
		/* Because a predecessor gave it already, perhaps. */
		e = look(r);
	}
	return e < 0 ? mc_log_errno(
	                       e,
	                       "the standby doesn't load the device state; its stderr may say why")
	             : await_running(r);
}
