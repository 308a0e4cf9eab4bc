/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a protection ends: QEMU's end, and the operator's. */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

static void tell_gone(struct capture *c, enum mc_reason why)
{
	char text[160];

	if (c->qmp_silent)
		snprintf(text, sizeof(text),
		         "QEMU %d hasn't answered its monitor for %llu ms and is taken for dead; a "
		         "larger failure-timeout waits longer",
		         (int)c->vm.pid, (unsigned long long)(pause_patience(c) / MC_NS_PER_MS));
	else
		snprintf(text, sizeof(text), "QEMU %d is gone: %s", (int)c->vm.pid,
		         mc_reason_name(why));
	mc_info("%s", text);
	mc_worker_event(c->w, "qemu-gone", 0, "%s", text);
}

/* QMP was read to its end: what the last events said decides. */
void end_qemu_gone(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	enum mc_reason why = MC_REASON_GUEST_DIED;

	if (c->gone)
		return;
	c->gone = true;
	if (c->shutdown)
		why = c->shutdown_reason;
	if (why == MC_REASON_HOST_SIGNAL && c->a->config->on_host_shutdown == 1)
		why = MC_REASON_GUEST_SHUTDOWN;
	(void)mc_journal_abort_from(&c->a->journal, atomic_load(&c->a->journal.shm->last_begun),
	                            -ECONNRESET);
	c->qmp_dead = true;
	atomic_store(&ctl->paused, 0);
	atomic_store(&ctl->guest_end, why);
	atomic_store_explicit(&ctl->capture_ready, 1, memory_order_release);
	c->phase = PHASE_DONE;
	/* The takeover waits for these words; whoever reads a log can wait. */
	mc_arena_ring_all(c->a);
	tell_gone(c, why);
}

/*
 * One of QEMU's threads has ended.  If all of it ends, what it said is in the socket by now, and
 * read before the end is classified, as with EOF.
 */
static int on_thread(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct capture *c = userdata;

	(void)fd;
	(void)revents;
	(void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
	if (c->gone || !death_has_come(&c->death))
		return 0;
	(void)qmp_dispatch(c->q);
	end_qemu_gone(c);
	return 0;
}

int end_watch_death(struct capture *c)
{
	int r = 0;

	for (unsigned i = 0; r >= 0 && i < c->death.n; i++)
		r = sd_event_add_io(c->w->event, &c->death_source[i], c->death.thread[i], EPOLLIN,
		                    on_thread, c);
	return r;
}

void end_watch_done(struct capture *c)
{
	for (unsigned i = 0; i < DEATH_THREADS; i++)
		c->death_source[i] = sd_event_source_disable_unref(c->death_source[i]);
}

bool end_wanted(const struct capture *c)
{
	uint64_t want = atomic_load(&c->a->control->want_end);

	return (want && want != MC_REASON_FAILOVER) || atomic_load(&c->a->control->guest_end);
}

/* Nobody encodes or sends what is on its way: given up, as far as it is capture's to do. */
static void abort_unsent(struct capture *c)
{
	struct mc_journal *j = &c->a->journal;
	uint64_t n = 0;

	while ((n = mc_journal_next(j, n)) && mc_journal_state(j, n) != MC_EPOCH_CAPTURED &&
	       mc_journal_state(j, n) != MC_EPOCH_STAGED)
		;
	if (n && mc_journal_abort_from(j, n, -ECANCELED) > 0)
		mc_arena_ring_all(c->a);
}

static bool journal_settled(const struct capture *c)
{
	return mc_journal_in_flight(&c->a->journal) == 0;
}

/* A backup that doesn't answer may take over before it hears of the end. */
static bool hold_unanswered(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	uint64_t lease = atomic_load(&ctl->lease_until);

	if (!c->running || mc_state_of(atomic_load(&ctl->state)) != MC_STATE_PROTECTED)
		return false;
	if (mc_now_ns() < lease) {
		capture_arm_timer(c, lease);
		return false;
	}
	if (held_hold(c, MC_REASON_PEER_LOST,
	              "the backup hasn't confirmed the end within the lease: look at the other "
	              "host, then mcctl resolve") < 0 &&
	    c->qmp_dead)
		end_qemu_gone(c);
	return c->phase != PHASE_ENDING;
}

/*
 * want_end, a hot-plug, or an overload: no more epochs; once nothing is on its way transport may
 * send END.
 */
int end_step(struct capture *c)
{
	struct mc_control *ctl = c->a->control;

	if (hold_unanswered(c))
		return 1;
	if (!atomic_load(&ctl->capture_ready)) {
		if (atomic_load(&ctl->want_end) == MC_REASON_ERROR)
			abort_unsent(c);
		if (atomic_load(&ctl->armed_epoch) && !journal_settled(c))
			return 0;
		atomic_store_explicit(&ctl->capture_ready, 1, memory_order_release);
		mc_arena_ring(c->a, MC_ROLE_TRANSPORT);
		(void)mc_fault(MC_FAULT_CAPTURE_END);
		return 1;
	}
	if (!atomic_load(&ctl->want_end) && !atomic_load(&ctl->guest_end)) {
		/* The end was called off: the peer didn't answer. */
		atomic_store(&ctl->capture_ready, 0);
		c->phase = PHASE_EPOCHS;
		return 1;
	}
	return 0;
}
