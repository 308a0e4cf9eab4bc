/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Attaching to a running QEMU, and leaving it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "../ipc/worker-bus.h"
#include "capture.h"

#define CONNECT_MS 2000
#define COMMAND_MS 2000

static void on_event(void *ctx, const char *name, json_t *data)
{
	struct capture *c = ctx;
	const char *why = json_string_value(json_object_get(data, "reason"));

	if (strcmp(name, "STOP") == 0) {
		c->running = false;
	} else if (strcmp(name, "RESUME") == 0) {
		c->running = true;
	} else if (strcmp(name, "SHUTDOWN") == 0) {
		c->shutdown = true;
		c->shutdown_reason = why && strcmp(why, "host-signal") == 0
		                             ? MC_REASON_HOST_SIGNAL
		                             : MC_REASON_GUEST_SHUTDOWN;
	} else if (strcmp(name, "GUEST_PANICKED") == 0) {
		mc_warn("the guest's kernel panicked; it stays protected as it is, restart it from "
		        "inside or end it");
		mc_worker_event(c->w, "guest-panic", 0, "the guest's kernel panicked");
	}
}

static int refuse(struct capture *c, int r, const char *why)
{
	mc_control_refuse(c->a->control, "%s", why);
	mc_err("%s", why);
	return r;
}

static void on_wait(void *ctx, uint64_t ns)
{
	struct capture *c = ctx;

	mc_worker_busy(c->w, ns);
}

static int connect_qmp(struct capture *c)
{
	const char *path = c->a->config->qmp;
	char why[320];
	int r = qmp_connect(&c->q, path, CONNECT_MS);

	if (r == 0) {
		qmp_on_event(c->q, on_event, c);
		qmp_on_wait(c->q, on_wait, c);
		return 0;
	}
	qmp_connect_why(r, path, why, sizeof(why));
	return refuse(c, r, why);
}

/* RAM blocks and description for the other processes. */
static int publish(struct capture *c)
{
	struct mc_control *ctl = c->a->control;

	if (vm_record(&c->vm, ctl, c->a->bitmap_words * 64) < 0)
		return refuse(c, -E2BIG,
		              "the guest's RAM grew since it was examined; protect it again");
	atomic_store_explicit(&ctl->attached, 1, memory_order_release);
	mc_arena_ring_all(c->a);
	return 0;
}

static int map_ram(struct capture *c)
{
	for (unsigned i = 0; i < c->vm.nblocks; i++) {
		void *p;

		c->ram_fd[i] = vm_open_block(&c->vm, i);
		if (c->ram_fd[i] < 0)
			return mc_log_errno(c->ram_fd[i],
			                    "can't open RAM block %s; is QEMU's file still there, "
			                    "and may root read it?",
			                    c->vm.block[i].name);
		/* One protector a guest, whatever supervisor it belongs to; gone with the process.
		 */
		if (flock(c->ram_fd[i], LOCK_EX | LOCK_NB) < 0)
			return refuse(c, -EBUSY,
			              "the guest is protected already, by another supervisor; "
			              "unprotect it there first");
		p = mmap(NULL, c->vm.block[i].size, PROT_READ, MAP_SHARED, c->ram_fd[i], 0);
		if (p == MAP_FAILED)
			return mc_log_errno(-errno,
			                    "can't map RAM block %s; was its file cut short?",
			                    c->vm.block[i].name);
		c->ram[i] = p;
	}
	return 0;
}

void capture_set_up_rdma(struct capture *c)
{
	const struct mc_config *cfg = c->a->config;
	const char *why = NULL;
	int r = 0;

	if (!cfg->rdma_copy || c->rdma)
		return;
	/* What was accepted by name may give RAM back (a balloon): a pinned page would be the old
	 * one. */
	if (cfg->accept[0])
		why = "devices were accepted that may give RAM back";
	else
		r = rdma_copy_new(&c->rdma, &c->a->slabs, c->a->params.max_memory);
	for (unsigned i = 0; !why && r == 0 && i < c->vm.nblocks; i++)
		r = rdma_copy_add_block(c->rdma, i, c->ram_fd[i], c->vm.block[i].size);
	if (!why && r == 0)
		return;
	c->rdma = rdma_copy_free(c->rdma);
	if (!why)
		why = strerror(-r);
	mc_warn("rdma-copy isn't possible: %s; memcpy is used", why);
	mc_worker_event(c->w, "rdma-copy", 0, "pages are copied by memcpy: %s", why);
}

/* A file of ours that QEMU writes its device state to, by an fd set. */
static int set_up_state(struct capture *c)
{
	json_t *v = NULL;
	json_int_t set;
	char path[64];
	int n, r;

	c->state_fd = memfd_create("mc-device-state", MFD_CLOEXEC);
	if (c->state_fd < 0)
		return mc_log_errno(-errno, "can't make a file for QEMU's device state");
	/* QEMU looks for the access mode that it opens with. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", c->state_fd);
	c->state_out = open(path, O_WRONLY | O_CLOEXEC);
	if (c->state_out < 0)
		return mc_log_errno(-errno, "can't open %s, for QEMU's device state", path);
	r = qmp_command_fd(c->q, "add-fd", NULL, c->state_out, COMMAND_MS, &v);
	if (r < 0)
		return mc_log_errno(
		        r, "QEMU doesn't take a file for its device state (QMP add-fd: %s)",
		        qmp_error(c->q));
	set = json_integer_value(json_object_get(v, "fdset-id"));
	json_decref(v);
	n = snprintf(c->prep.stop_cmd, sizeof(c->prep.stop_cmd),
	             PAUSE_STOP
	             "{\"execute\":\"xen-save-devices-state\",\"arguments\":{\"filename\":"
	             "\"/dev/fdset/%lld\",\"live\":false}}\n",
	             (long long)set);
	c->prep.stop_len = (size_t)n;
	c->prep.again = calloc(c->a->bitmap_words, 8);
	return c->prep.again ? 0 : -ENOMEM;
}

/* Capture and guard died together: the guest still stands in their pause. */
static int finish_pause(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	int r;

	if (atomic_load(&ctl->paused) != 1)
		return 0;
	mc_warn("a pause was left open by a process that died: the guest goes on");
	r = qmp_command(c->q, "cont", NULL, COMMAND_MS, NULL);
	if (r == 0)
		atomic_store(&ctl->paused, 0);
	return r < 0 ? mc_log_errno(r, "QEMU doesn't let the guest go on (QMP cont: %s)",
	                            qmp_error(c->q))
	             : 0;
}

static int runstate(struct capture *c)
{
	json_t *v = NULL;
	int r = qmp_command(c->q, "query-status", NULL, COMMAND_MS, &v);

	if (r < 0)
		return mc_log_errno(
		        r, "QEMU doesn't say whether the guest runs (QMP query-status: %s)",
		        qmp_error(c->q));
	c->running = json_is_true(json_object_get(v, "running"));
	json_decref(v);
	return 0;
}

/* A successor. Devices may have changed meanwhile; the sections of the next device state tell. */
static int take_over_guest(struct capture *c)
{
	int r = vm_recall(c->q, c->a->control, &c->vm);

	if (r == -ESTALE)
		return refuse(c, r,
		              "another QEMU answers on the guest's QMP socket than the one that "
		              "was protected; protect it again");
	return r == -EBADMSG ? refuse(c, r,
	                              "the list of RAM blocks in the shared memory is damaged; "
	                              "protect the guest again")
	                     : r;
}

static int check_guest(struct capture *c)
{
	const struct mc_config *cfg = c->a->config;
	char gated[MC_NICS_MAX * MC_NAME_MAX] = "", why[512];
	int r;

	if (atomic_load(&c->a->control->attached))
		return take_over_guest(c);
	r = vm_inspect(c->q, &c->vm, why, sizeof(why));
	if (r < 0)
		return refuse(c, r, why);
	for (uint32_t i = 0; i < cfg->nnics; i++) {
		strncat(gated, i ? "," : "", sizeof(gated) - strlen(gated) - 1);
		strncat(gated, mc_nic_name(&cfg->nic[i]), sizeof(gated) - strlen(gated) - 1);
	}
	r = vm_check(c->q, &c->vm, cfg->accept, cfg->gate == MC_GATE_NONE ? NULL : gated, why,
	             sizeof(why), NULL);
	return r < 0 ? refuse(c, r, why) : 0;
}

/* A thread of QEMU ended while its answer was waited for. */
static bool qemu_ends(void *ctx)
{
	struct capture *c = ctx;

	if (death_has_come(&c->death))
		return true;
	death_forget_ended(&c->death);
	return false;
}

/* Without it QEMU's death shows when QMP ends, tens of milliseconds later for a large guest. */
static void watch_death(struct capture *c)
{
	int r = death_open(&c->death, c->vm.pid);

	if (r < 0)
		mc_debug("no early word of QEMU's death: %s", strerror(-r));
	else
		qmp_watch_peer(c->q, c->death.any, qemu_ends, c);
}

int capture_guard(struct capture *c)
{
	struct mc_confine confine = {.uid = c->w->uid, .gid = c->w->gid};

	return guard_start(&c->guard, qmp_fd(c->q), c->a->control, &confine);
}

int capture_attach(struct capture *c)
{
	char why[512];
	int r;

	guard_outlive(c->a->control);
	r = connect_qmp(c);
	(void)mc_fault(MC_FAULT_CAPTURE_QMP);
	if (r == 0)
		r = finish_pause(c);
	if (r == 0)
		r = check_guest(c);
	if (r == 0)
		r = map_ram(c);
	(void)mc_fault(MC_FAULT_CAPTURE_MAPPED);
	if (r == 0)
		r = publish(c);
	(void)mc_fault(MC_FAULT_CAPTURE_PUBLISHED);
	if (r == 0)
		r = runstate(c);
	if (r == 0)
		r = set_up_state(c);
	if (r < 0)
		return r;
	(void)mc_fault(MC_FAULT_CAPTURE_FDSET);
	r = tracker_attach(&c->tracker, (enum mc_tracker)c->a->config->tracker, &c->vm, c->a, why,
	                   sizeof(why));
	if (r < 0)
		return refuse(c, r, why);
	atomic_store(&c->a->control->tracker, tracker_kind(&c->tracker));
	mc_info("writes of QEMU %d are tracked by %s", (int)c->vm.pid,
	        mc_tracker_name(tracker_kind(&c->tracker)));
	watch_death(c);
	r = capture_guard(c);
	(void)mc_fault(MC_FAULT_CAPTURE_GUARDED);
	return r < 0 ? mc_log_errno(r, "can't fork the guard") : 0;
}

void capture_detach(struct capture *c, bool release_guest)
{
	if (release_guest && !c->qmp_dead) {
		int r = tracker_detach(&c->tracker);

		if (r < 0)
			mc_log_errno(r, "the userfaultfd stays open in QEMU %d, which does no harm",
			             (int)c->vm.pid);
	}
	guard_stop(&c->guard);
	death_close(&c->death);
	tracker_done(&c->tracker);
	c->rdma = rdma_copy_free(c->rdma);
	for (unsigned i = 0; i < c->vm.nblocks; i++) {
		if (c->ram[i])
			munmap(c->ram[i], c->vm.block[i].size);
		c->ram[i] = NULL;
		mc_closep(&c->ram_fd[i]);
	}
	mc_closep(&c->state_fd);
	mc_closep(&c->state_out);
	c->q = qmp_free(c->q);
	vm_info_done(&c->vm);
	free(c->prep.again);
	c->prep.again = NULL;
	free(c->sections);
	c->sections = NULL;
}
