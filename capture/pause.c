/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stopping the guest and letting it go on.  QEMU gets all commands before it can take them:
 * the device state's right behind `stop`, `cont` right behind that one's.  The first command
 * is there but for its end before the pause begins, `cont` while QEMU writes its state.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

#define ANSWER_MIN (1000 * MC_NS_PER_MS)

static const char status_cmd[] = PAUSE_STATUS;
static const char cont_cmd[] = "{\"execute\":\"cont\"}\n";

static int lost(struct capture *c, int r)
{
	if (r == -ECONNRESET || r == -EBADMSG || r == -ETIMEDOUT)
		c->qmp_dead = true;
	if (r == -ETIMEDOUT)
		c->qmp_silent = true;
	return r;
}

uint64_t pause_patience(const struct capture *c)
{
	return mc_max_u64(ANSWER_MIN,
	                  atomic_load(&c->a->config->failure_timeout_ms) * MC_NS_PER_MS);
}

/*
 * Until when QEMU's answer is waited for.  Whoever made the backup patient with a host that stands
 * still at times doesn't want its QEMU to be taken for dead any sooner.
 */
static uint64_t wait_begin(struct capture *c)
{
	uint64_t ns = pause_patience(c);

	if (ns > ANSWER_MIN)
		mc_worker_busy(c->w, ns - ANSWER_MIN);
	return mc_now_ns() + ns;
}

static int wait_over(struct capture *c, int r)
{
	mc_worker_busy(c->w, 0);
	return r;
}

void pause_await_saved(struct capture *c)
{
	if (!c->saving)
		return;
	c->saving = false;
	c->saved = lost(c, wait_over(c, qmp_wait(c->q, wait_begin(c))));
	c->saved_at = mc_now_ns();
	if (c->saved == -EREMOTEIO)
		mc_err("QEMU can't write its device state: %s; the epoch is given up and tried "
		       "again",
		       qmp_error(c->q));
}

static int resume(struct capture *c)
{
	int r;

	mc_worker_alive(c->w);
	r = qmp_send_raw(c->q, cont_cmd, sizeof(cont_cmd) - 1);
	(void)mc_fault(MC_FAULT_CAPTURE_CONT_SENT);
	pause_await_saved(c);
	mc_worker_alive(c->w);
	if (r == 0)
		r = wait_over(c, qmp_wait(c->q, wait_begin(c)));
	(void)mc_fault(MC_FAULT_CAPTURE_RESUMED);
	return lost(c, r);
}

void pause_prepare(struct capture *c)
{
	(void)lost(c, qmp_begin(c->q, status_cmd, sizeof(status_cmd) - 1));
}

static int send_stop(struct capture *c, bool save)
{
	int r;

	if (save && lseek(c->state_out, 0, SEEK_SET) < 0)
		return -errno;
	r = qmp_send_raw(c->q, c->prep.stop_cmd, save ? c->prep.stop_len : sizeof(PAUSE_STOP) - 1);
	c->saving = save && r == 0;
	return r;
}

/* Answers to query-status and stop. */
static int await_stopped(struct capture *c, bool *was_running)
{
	uint64_t deadline = wait_begin(c);
	int r = qmp_wait_running(c->q, deadline, was_running), s;

	if (r == -ECONNRESET || r == -EBADMSG || r == -ETIMEDOUT)
		return wait_over(c, r);
	s = qmp_wait(c->q, deadline);
	return wait_over(c, r < 0 ? r : s);
}

/* Paused by policy: the guest stands still already, and stays so after an epoch. */
static bool is_held(const struct capture *c)
{
	return atomic_load(&c->a->control->paused) == 2;
}

int pause_begin(struct capture *c, bool save, uint64_t *began)
{
	struct mc_control *ctl = c->a->control;
	bool was_running = false, held = is_held(c);
	int r;

	mc_worker_alive(c->w);
	*began = mc_now_ns();
	if (!held) {
		atomic_store(&ctl->pause_began, *began);
		atomic_store(&ctl->paused, 1);
	}
	r = send_stop(c, save);
	(void)mc_fault(MC_FAULT_CAPTURE_STOP_SENT);
	if (r == 0)
		r = await_stopped(c, &was_running);
	if (r < 0 || (!was_running && !held)) {
		if (lost(c, r) == 0 || !c->qmp_dead)
			pause_await_saved(c);
		if (!held)
			atomic_store(&ctl->paused, 0);
		if (r < 0)
			return r;
		/* Somebody else stopped it meanwhile: it isn't ours to let go. */
		c->running = false;
		return -EAGAIN;
	}
	if (mc_fault(MC_FAULT_CAPTURE_STOPPED) < 0) {
		(void)pause_leave(c, *began, NULL);
		return -EIO;
	}
	if (save && !held)
		(void)qmp_begin(c->q, cont_cmd, sizeof(cont_cmd) - 1);
	return 0;
}

int pause_end(struct capture *c, uint64_t began, uint64_t *took)
{
	struct mc_control *ctl = c->a->control;
	int r = resume(c);
	uint64_t ns = mc_now_ns() - began;

	atomic_store(&ctl->paused, 0);
	c->running = r == 0;
	if (took)
		*took = ns;
	mc_metric_add(mc_worker_metrics(c->w), MC_M_GUEST_CLOCK_LAG, ns);
	return r;
}

int pause_keep(struct capture *c, uint64_t began, uint64_t *took)
{
	pause_await_saved(c);
	c->running = false;
	if (took)
		*took = mc_now_ns() - began;
	return c->qmp_dead ? -ECONNRESET : 0;
}

int pause_leave(struct capture *c, uint64_t began, uint64_t *took)
{
	return is_held(c) ? pause_keep(c, began, took) : pause_end(c, began, took);
}
