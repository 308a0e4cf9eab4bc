/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a protection ends on the backup: by the primary's word, or with the standby. */
#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "restore.h"

static void end_with(struct restore *r, enum mc_state to, enum mc_reason why)
{
	static const enum mc_state from[] = {MC_STATE_WAITING, MC_STATE_SYNCING, MC_STATE_PROTECTED,
	                                     MC_STATE_TAKING_OVER, MC_STATE_ACTIVE};

	for (size_t i = 0; i < MC_ARRAY_SIZE(from); i++)
		if (mc_state_move(r->a->control, MC_SIDE_BACKUP, MC_ROLE_RESTORE, from[i], to,
		                  why) == 0)
			break;
	mc_arena_ring_all(r->a);
}

void end_standby(struct restore *r, enum mc_reason why, const char *text)
{
	enum mc_state s = restore_state(r);

	if (r->standby_gone)
		return;
	r->standby_gone = true;
	/* Disarmed before anybody hears of it: the primary may then run on without us. */
	(void)mc_commit_disarm(r->a->control);
	atomic_store(&r->a->control->standby_ready, 0);
	if (s == MC_STATE_STOPPED || s == MC_STATE_ENDED)
		return; /* a failed takeover ends the QEMU as well: its reason stands */
	if (s != MC_STATE_ACTIVE) {
		mc_err("%s", text);
		mc_control_refuse(r->a->control, "%s", text);
	}
	end_with(r, s == MC_STATE_ACTIVE ? MC_STATE_ENDED : MC_STATE_STOPPED, why);
	mc_worker_event(r->w, "standby-lost", 0, "%s", text);
}

/* The primary said END: it won't be taken over from any more, and may open its gate. */
int end_step(struct restore *r)
{
	struct mc_control *c = r->a->control;
	uint64_t why = atomic_load_explicit(&c->peer_end, memory_order_acquire);

	if (!why || why == MC_REASON_GUEST_DIED || why == MC_REASON_HOST_SIGNAL ||
	    why == MC_REASON_FAILOVER || atomic_load(&c->disarm_done))
		return 0;
	if (mc_commit_disarm(c) < 0)
		return 0; /* taken over already */
	(void)mc_fault(MC_FAULT_RESTORE_DISARMED);
	end_with(r, MC_STATE_ENDED, why < MC_REASONS ? (enum mc_reason)why : MC_REASON_UNPROTECT);
	(void)mc_fault(MC_FAULT_RESTORE_ENDED);
	commit_drop_all(r);
	atomic_store_explicit(&c->disarm_done, 1, memory_order_release);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
	return 1;
}
