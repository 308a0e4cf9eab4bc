/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Stopping the guest and letting it go on. */
#include <errno.h>
#include <string.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"
#include "capture.h"

#define ANSWER_LIMIT (1000 * MC_NS_PER_MS)

static const char stop_cmd[] = "{\"execute\":\"query-status\"}\n{\"execute\":\"stop\"}\n";
static const char cont_cmd[] = "{\"execute\":\"cont\"}\n";

static int lost(struct capture *c, int r)
{
	if (r == -ECONNRESET || r == -EBADMSG || r == -ETIMEDOUT)
		c->qmp_dead = true;
	return r;
}

static int resume(struct capture *c)
{
	int r = qmp_send_raw(c->q, cont_cmd, sizeof(cont_cmd) - 1);

	if (r == 0)
		r = qmp_wait(c->q, mc_now_ns() + ANSWER_LIMIT);
	return lost(c, r);
}

int pause_begin(struct capture *c, uint64_t *began)
{
	struct mc_control *ctl = c->a->control;
	uint64_t deadline;
	bool was_running = false;
	int r;

	*began = mc_now_ns();
	deadline = *began + ANSWER_LIMIT;
	atomic_store(&ctl->pause_began, *began);
	atomic_store(&ctl->paused, 1);
	r = qmp_send_raw(c->q, stop_cmd, sizeof(stop_cmd) - 1);
	if (r == 0)
		r = qmp_wait_running(c->q, deadline, &was_running);
	if (r == 0)
		r = qmp_wait(c->q, deadline);
	if (r < 0) {
		atomic_store(&ctl->paused, 0);
		return lost(c, r);
	}
	if (mc_fault("capture.pause.stopped") < 0) {
		(void)pause_end(c, *began, NULL);
		return -EIO;
	}
	if (!was_running) {
		/* Somebody else stopped it meanwhile: it isn't ours to let go. */
		atomic_store(&ctl->paused, 0);
		c->running = false;
		return -EAGAIN;
	}
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
