/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Policy `throttle`, when link, backup or encoders can't keep up: at first the interval grows by
 * itself, since the next epoch waits for one of those on their way.  A guest that runs on meanwhile
 * writes more and more, until an epoch is too large for anybody; so it is paused, at the latest
 * after 16 intervals, until the next epoch can be taken.  Should capture die, its guard ends that.
 */
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "capture.h"

#define INTERVALS 16
#define AT_LEAST  (250 * MC_NS_PER_MS) /* the restart of a process is no overload */
#define TELL      (60 * MC_NS_PER_S)

/* No epoch could be begun now. */
static bool behind(const struct capture *c)
{
	return mc_journal_in_flight(&c->a->journal) >= atomic_load(&c->a->config->max_in_flight) ||
	       !epoch_has_room(c);
}

static bool applies(const struct capture *c)
{
	const struct mc_control *ctl = c->a->control;

	return mc_state_of(atomic_load(&ctl->state)) == MC_STATE_PROTECTED &&
	       atomic_load(&c->a->config->overload) == MC_OVERLOAD_THROTTLE &&
	       mc_now_ns() < atomic_load(&ctl->lease_until) && !atomic_load(&ctl->want_end) &&
	       !atomic_load(&ctl->guest_end) && !atomic_load(&ctl->want_hold) && behind(c);
}

int throttle_end(struct capture *c)
{
	if (!c->throttle.on || applies(c))
		return 0;
	c->throttle.on = false;
	c->due = mc_now_ns();
	return pause_end(c, c->throttle.began, NULL);
}

int throttle_begin(struct capture *c)
{
	uint64_t now = mc_now_ns(), wait = INTERVALS * mc_config_interval_ns(c->a->config);
	int r;

	if (!c->throttle.since)
		c->throttle.since = now;
	if (c->throttle.on || !c->running || now - c->throttle.since < mc_max_u64(wait, AT_LEAST) ||
	    !applies(c))
		return 0;
	r = pause_begin(c, false, &c->throttle.began);
	if (r < 0)
		return r;
	c->throttle.on = true;
	c->running = false;
	if (!c->throttle.told || now - c->throttle.told > TELL)
		mc_worker_event(
		        c->w, "throttled", atomic_load(&c->a->journal.shm->last_begun),
		        "link, backup or encoders can't keep up: the guest is paused until they "
		        "have; a longer interval, more workers or a faster link ends that");
	c->throttle.told = now;
	return 0;
}
