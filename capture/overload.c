/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Epochs fail one after the other: what the operator chose for that, on-overload. */
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

/* Failed epochs beyond abort-limit, at ever longer intervals, after which the guest is held. */
#define THROTTLE_MAX 16

/* abort_limit epochs in a row failed: what the operator chose for that. */
static void overloaded(struct capture *c, int error, uint64_t interval)
{
	uint32_t limit = atomic_load(&c->a->config->abort_limit);
	unsigned beyond = c->aborts_in_row - limit;

	if (c->aborts_told < limit) {
		mc_err("%u epochs in a row failed, the last one: %s; mcctl status shows link, "
		       "memory and slabs",
		       c->aborts_in_row, strerror(-error));
		mc_worker_event(c->w, "overload", 0, "%u epochs in a row failed: %s",
		                c->aborts_in_row, strerror(-error));
	}
	c->aborts_told = c->aborts_in_row;
	switch (atomic_load(&c->a->config->overload)) {
	case MC_OVERLOAD_HOLD:
		(void)held_hold(c, MC_REASON_OVERLOAD,
		                "too many epochs failed (on-overload hold): mcctl resume lets it "
		                "try, mcctl unprotect goes on unprotected");
		break;
	case MC_OVERLOAD_UNPROTECT:
		/* Only a backup that answers can be disarmed. */
		if (atomic_load(&c->a->control->link) != MC_LINK_UP ||
		    atomic_load(&c->a->control->lease_until) < mc_now_ns()) {
			(void)held_hold(c, MC_REASON_OVERLOAD,
			                "too many epochs failed, and the backup can't be reached: "
			                "look at the link and at the other host");
			break;
		}
		atomic_store(&c->a->control->guest_end, MC_REASON_OVERLOAD);
		c->phase = PHASE_ENDING;
		break;
	default:
		if (beyond >= THROTTLE_MAX) {
			(void)held_hold(
			        c, MC_REASON_OVERLOAD,
			        "too many epochs failed, longer intervals don't help: look at the "
			        "link and /dev/shm, mcctl unprotect goes on unprotected");
			break;
		}
		/* Ever longer intervals, up to 16 times, until one succeeds. */
		c->due = mc_now_ns() + (interval << (beyond < 4 ? beyond + 1 : 4));
	}
}

bool overload_policy(struct capture *c)
{
	carry_merge(c);
	if (resync_wanted(c) || c->aborts_in_row < atomic_load(&c->a->config->abort_limit) ||
	    c->aborts_in_row == c->aborts_told)
		return false;
	overloaded(c, c->abort_error, mc_config_interval_ns(c->a->config));
	return c->phase != PHASE_EPOCHS;
}
