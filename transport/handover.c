/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Planned switchover, primary: END(failover) after the last epoch was committed and released.  From
 * PROTECTED the state goes to HELD(failover) before END is sent; there is no way back then but
 * by the backup's answer: it took over, it lost its standby, or it is still waiting and the wish
 * was withdrawn.
 */
#include "transport.h"

static uint64_t state_word(const struct transport *t)
{
	return atomic_load_explicit(&t->a->control->state, memory_order_acquire);
}

static bool wanted(const struct transport *t)
{
	return atomic_load(&t->a->control->want_end) == MC_REASON_FAILOVER;
}

static bool given(uint64_t word)
{
	return mc_state_of(word) == MC_STATE_HELD && mc_state_reason(word) == MC_REASON_FAILOVER;
}

static void move(struct transport *t, enum mc_state from, enum mc_state to, enum mc_reason why)
{
	if (mc_state_move(t->a->control, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT, from, to, why) == 0)
		mc_arena_ring_all(t->a);
}

bool handover_may_send(struct transport *t)
{
	if (!given(state_word(t)))
		move(t, MC_STATE_PROTECTED, MC_STATE_HELD, MC_REASON_FAILOVER);
	if (!given(state_word(t)))
		return false;
	/* Who withdraws it clears the wish first, then looks at the state: one of us sees. */
	if (wanted(t))
		return true;
	move(t, MC_STATE_HELD, MC_STATE_PROTECTED, MC_REASON_PEER_BACK);
	return false;
}

bool handover_stands(const struct transport *t)
{
	return given(state_word(t)) && wanted(t);
}
