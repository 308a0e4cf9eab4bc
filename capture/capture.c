/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The phases of mc-capture, and its place in the event loop. */
#include "capture.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "../ipc/worker-bus.h"

#define ATTACH_NS (5 * MC_NS_PER_S)  /* up to QMP's answers, which are waited for one by one */
#define RDMA_NS   (30 * MC_NS_PER_S) /* pinning a large guest's RAM takes its time */
#define DETACH_NS (5 * MC_NS_PER_S)

static enum mc_state state_of(const struct capture *c)
{
	return mc_state_of(atomic_load_explicit(&c->a->control->state, memory_order_acquire));
}

void capture_arm_timer(struct capture *c, uint64_t at_ns)
{
	(void)sd_event_source_set_time(c->timer, at_ns / MC_NS_PER_US);
	(void)sd_event_source_set_enabled(c->timer, SD_EVENT_ONESHOT);
}

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	(void)userdata;
	return 0; /* work() runs before the next wait */
}

static int on_qmp(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct capture *c = userdata;

	(void)fd;
	(void)revents;
	if (qmp_dispatch(c->q) < 0) {
		(void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
		end_qemu_gone(c);
	}
	return 0;
}

static int watch_guard(struct capture *c);

static int on_guard(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct capture *c = userdata;

	(void)s;
	(void)fd;
	(void)revents;
	c->guard_source = sd_event_source_unref(c->guard_source);
	guard_reap(&c->guard);
	mc_warn("the guard died; a new one is started");
	if (capture_guard(c) < 0 || watch_guard(c) < 0) {
		mc_err("can't start a new guard: if mc-capture dies in a pause the guest stays "
		       "paused until its successor is there; free memory on this host");
		mc_worker_exit(c->w, 1);
	}
	return 0;
}

static int watch_guard(struct capture *c)
{
	return sd_event_add_io(c->w->event, &c->guard_source, c->guard.sock, EPOLLIN, on_guard, c);
}

/* A refusal before anything is armed: the guest stays as it is, the state says why. */
static int refused(struct capture *c)
{
	(void)mc_state_move(c->a->control, MC_SIDE_PRIMARY, MC_ROLE_CAPTURE, MC_STATE_SYNCING,
	                    MC_STATE_STOPPED, MC_REASON_REFUSED);
	c->phase = PHASE_DONE;
	mc_arena_ring_all(c->a);
	return 0;
}

/*
 * A successor that can't attach: what it took over isn't refused.  It tries again, in a process of
 * its own, unless QEMU went while nobody looked: by what reason nobody knows then, so that
 * the backup goes on with it.
 */
static int not_attached_again(struct capture *c, int error)
{
	const struct mc_control *ctl = c->a->control;
	pid_t pid = (pid_t)atomic_load(&ctl->qemu_pid);

	if (mc_pid_start_time(pid) == atomic_load(&ctl->qemu_start))
		return error;
	mc_err("QEMU %d ended while no mc-capture ran: why it did can't be known, the backup "
	       "decides",
	       (int)pid);
	end_qemu_gone(c);
	return 0;
}

static bool not_pushed(void *ctx, mc_handle h)
{
	struct capture *c = ctx;

	for (int i = 0; i < MC_STAGES_MAX; i++)
		if (mc_ring_contains(c->a->ring_stage[i], c->a->ring_slots, h))
			return false;
	return true;
}

static bool desc_of_nothing(void *ctx, mc_handle h)
{
	struct capture *c = ctx;

	for (uint64_t i = 0; i < c->a->slabs.max; i++)
		if (mc_slab_word_state(atomic_load(&c->a->slabs.word[i])) == MC_SLAB_OWNED &&
		    c->a->slabs.meta[i].desc == h)
			return false;
	return true;
}

/* Finds its place after a predecessor's death: no page may be lost. */
static int recover(struct capture *c)
{
	struct mc_journal *j = &c->a->journal;
	uint64_t last = atomic_load(&j->shm->last_begun);
	int64_t n;

	(void)mc_pool_reclaim(&c->a->slabs, not_pushed, c);
	(void)mc_pool_reclaim(&c->a->descs, desc_of_nothing, c);
	/* What the predecessor's last scan found belongs to the epoch it was taking, or is carried.
	 */
	n = tracker_recover(&c->tracker, c->a->bitmap[CARRY]);
	/* Of a first scan, which finds holes as well: the copy begins with what is populated. */
	if (!last && !atomic_load(&c->a->control->sync_total))
		bitmap_clear(c->a->bitmap[CARRY], c->a->bitmap_words);
	if (mc_journal_state(j, last) == MC_EPOCH_CAPTURING)
		(void)mc_journal_abort_from(j, last, -EOWNERDEAD);
	carry_recover(c);
	if (last)
		mc_info("goes on after epoch %llu; %lld pages of an unfinished scan are carried",
		        (unsigned long long)last, (long long)n);
	return 0;
}

static int attach(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	int r, e;

	mc_worker_busy(c->w, ATTACH_NS);
	r = capture_attach(c);
	/*
	 * Attached or not, what others can write to is touched only after this.  To let QEMU go it
	 * traces it once more, by files of /proc that belong to QEMU's user.
	 */
	e = mc_worker_confine(c->w, 1ULL << CAP_SYS_PTRACE | 1ULL << CAP_DAC_READ_SEARCH, 0);
	mc_worker_busy(c->w, RDMA_NS);
	if (r == 0 && e == 0) {
		capture_set_up_rdma(c);
		if (tracker_start(&c->tracker) < 0)
			mc_warn("no thread for the scans of this guest: one does them alone, which "
			        "is slower and no worse");
	}
	mc_worker_busy(c->w, 0);
	if (e < 0)
		return e;
	if (r < 0)
		return atomic_load(&ctl->attached) ? not_attached_again(c, r) : refused(c);
	r = watch_guard(c);
	if (r >= 0)
		r = sd_event_add_io(c->w->event, &c->qmp_source, qmp_fd(c->q), EPOLLIN, on_qmp, c);
	if (r >= 0)
		r = end_watch_death(c);
	if (r < 0)
		return r;
	recover(c);
	c->phase = atomic_load(&ctl->armed_epoch) ? PHASE_EPOCHS : PHASE_WAIT;
	/* A predecessor that died in its first copy: its set is in the carry bitmap. */
	if (atomic_load(&ctl->sync_total)) {
		c->rounds = 1;
		c->cursor = 0;
		c->round_open = true;
		c->round_pages = bitmap_count(c->a->bitmap[CARRY], c->a->bitmap_words);
		c->last_round = UINT64_MAX / 4;
		hashes_begin(c, atomic_load(&ctl->sync_compared));
	}
	return 1;
}

static int wait_for_others(struct capture *c)
{
	struct mc_control *ctl = c->a->control;

	if (state_of(c) != MC_STATE_SYNCING) {
		c->phase = PHASE_DONE;
		return 0;
	}
	if (sync_again(c))
		return sync_begin_again(c);
	if (atomic_load(&ctl->link) != MC_LINK_UP ||
	    (c->a->config->gate != MC_GATE_NONE && !atomic_load(&ctl->gate_ready)))
		return 0;
	c->phase = PHASE_SYNC;
	return 1;
}

static int sync_phase(struct capture *c)
{
	int r;

	if (state_of(c) != MC_STATE_SYNCING) {
		c->phase = PHASE_DONE;
		return 0;
	}
	if (sync_again(c))
		return sync_begin_again(c);
	r = sync_step(c);
	if (r == 2) {
		c->dirty_estimate = c->round_pages;
		c->due = mc_now_ns();
		c->phase = PHASE_EPOCHS;
		mc_info("first copy: %u rounds, %llu slabs", c->rounds,
		        (unsigned long long)atomic_load(&c->a->control->sync_slabs));
		return 1;
	}
	if (r < 0 && c->qmp_dead) {
		end_qemu_gone(c);
		return 0;
	}
	if (r < 0) {
		mc_control_refuse(
		        c->a->control,
		        "the first copy failed: %s; protect it again, journalctl has more",
		        r == -EUCLEAN ? TRACKING_LOST : strerror(-r));
		return refused(c);
	}
	return r;
}

static void update_strikes(struct capture *c)
{
	uint32_t us = atomic_load(&c->a->config->interval_us);

	if (us == c->strikes_interval)
		return;
	c->strikes_interval = us;
	mc_pool_set_strikes(&c->a->slabs, atomic_load(&c->a->config->shrink_delay_s),
	                    mc_max_u64(us / 1000, 1));
	mc_pool_set_strikes(&c->a->descs, atomic_load(&c->a->config->shrink_delay_s),
	                    mc_max_u64(us / 1000, 1));
}

static void after_epoch(struct capture *c, uint64_t began, int r)
{
	uint64_t interval = mc_config_interval_ns(c->a->config), now = mc_now_ns();
	uint64_t wait;

	c->due = pace_next(c->due, began, interval);
	wait = c->due > now ? c->due - now : 0;
	mc_metric_set(mc_worker_metrics(c->w), MC_M_WAIT_TIME, wait);
	if (r != -EAGAIN)
		c->throttle.since = began;
	if (r == 0) {
		(void)mc_pool_epoch_done(&c->a->slabs);
		(void)mc_pool_epoch_done(&c->a->descs);
		return;
	}
	if (r == -EAGAIN) {
		/* Somebody else holds the guest, or no room: again at the next bell or interval. */
		c->due = now + interval;
		return;
	}
	mc_debug("epoch aborted: %s", strerror(-r));
}

/* 1 when an epoch is to be taken now; 0 arms the timer or waits for a bell. */
static int epoch_is_due(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	bool asked = atomic_load(&ctl->want_checkpoint) != c->checkpoint_seen;
	uint64_t now = mc_now_ns();

	if (atomic_load(&ctl->want_hold) || !c->running)
		return 0;
	if (mc_journal_in_flight(&c->a->journal) >= atomic_load(&c->a->config->max_in_flight))
		return 0; /* the next ACK rings */
	return asked || now >= c->due;
}

/* False: the backup can't have the whole of any epoch, so it can't take over. */
static bool may_be_armed(const struct capture *c, enum mc_state s)
{
	const struct mc_control *ctl = c->a->control;

	return s == MC_STATE_PROTECTED ||
	       (atomic_load_explicit(&ctl->link, memory_order_acquire) != MC_LINK_UP &&
	        atomic_load(&ctl->first_sent));
}

static int epochs_phase(struct capture *c)
{
	struct mc_control *ctl = c->a->control;
	enum mc_state s = state_of(c);
	uint64_t began;
	int r = throttle_end(c);

	if (r < 0 && c->qmp_dead) {
		end_qemu_gone(c);
		return 0;
	}
	if (s == MC_STATE_STOPPED && atomic_load(&ctl->peer_taken)) {
		held_stop_for_good(c);
		return 0;
	}
	if (s != MC_STATE_SYNCING && s != MC_STATE_PROTECTED) {
		c->phase = s == MC_STATE_HELD ? PHASE_HELD : PHASE_DONE;
		return 0;
	}
	if (s == MC_STATE_PROTECTED && switchover_wanted(c) &&
	    atomic_load(&ctl->link) == MC_LINK_UP &&
	    (c->running || atomic_load(&ctl->capture_ready))) {
		c->phase = PHASE_SWITCHOVER;
		return 1;
	}
	if (end_wanted(c)) {
		c->phase = PHASE_ENDING;
		return 1;
	}
	/* The link broke before anything was committed. */
	if (s == MC_STATE_SYNCING && sync_again(c))
		return sync_begin_again(c);
	if (overload_policy(c))
		return 1;
	update_strikes(c);
	if (c->running && atomic_load(&ctl->lease_until) < mc_now_ns() && may_be_armed(c, s)) {
		r = held_hold(c, MC_REASON_PEER_LOST,
		              "the backup hasn't answered within the lease: look at the other "
		              "host, then mcctl resolve if it doesn't come back");
		if (r < 0 && c->qmp_dead)
			end_qemu_gone(c);
		return 0;
	}
	if (throttle_begin(c) < 0 && c->qmp_dead) {
		end_qemu_gone(c);
		return 0;
	}
	if (c->resync.on && resync_step(c))
		return 1;
	if (c->resync.on || !epoch_is_due(c)) {
		uint64_t now = mc_now_ns();

		/* Without a timer nobody would look at the lease while no epoch can be taken. */
		capture_arm_timer(c, c->due > now ? c->due
		                                  : now + mc_config_interval_ns(c->a->config));
		return 0;
	}
	c->checkpoint_seen = atomic_load(&ctl->want_checkpoint);
	began = mc_now_ns();
	r = epoch_take(c);
	if (c->qmp_dead) {
		end_qemu_gone(c);
		return 0;
	}
	after_epoch(c, began, r);
	return 1;
}

static int capture_work(struct mc_worker *w, void *ctx)
{
	struct capture *c = ctx;

	(void)w;
	switch (c->phase) {
	case PHASE_START:
		return attach(c);
	case PHASE_WAIT:
		return atomic_load(&c->a->control->want_end) ? (c->phase = PHASE_ENDING, 1)
		                                             : wait_for_others(c);
	case PHASE_SYNC:
		return atomic_load(&c->a->control->want_end) ? (c->phase = PHASE_ENDING, 1)
		                                             : sync_phase(c);
	case PHASE_EPOCHS:
		return epochs_phase(c);
	case PHASE_HELD:
		return held_step(c);
	case PHASE_SWITCHOVER:
		return switchover_step(c);
	case PHASE_ENDING:
		return end_step(c);
	case PHASE_DONE:
		break;
	}
	return 0;
}

static int capture_start(struct mc_worker *w, void *ctx)
{
	struct capture *c = ctx;
	int r;

	c->w = w;
	c->a = &w->arena;
	c->state_fd = c->state_out = -1;
	tracker_init(&c->tracker);
	for (int i = 0; i < VM_BLOCKS_MAX; i++)
		c->ram_fd[i] = -1;
	for (int i = 0; i < MC_STAGES_MAX; i++) {
		r = mc_ring_attach_producer(&c->ring[i], c->a->ring_stage[i], c->a->ring_slots);
		if (r < 0)
			return mc_log_errno(
			        r, "the ring to stage worker %d is damaged; protect the guest anew",
			        i);
	}
	c->checkpoint_seen = atomic_load(&c->a->control->want_checkpoint);
	/* 1 us accuracy: the default would merge our wake-ups with others'. */
	return sd_event_add_time(w->event, &c->timer, CLOCK_MONOTONIC, UINT64_MAX, 1, on_timer, c);
}

static void capture_quit(struct mc_worker *w, void *ctx)
{
	struct capture *c = ctx;
	enum mc_state s = state_of(c);
	uint64_t paused = atomic_load(&c->a->control->paused);

	(void)w;
	mc_worker_busy(c->w, DETACH_NS);
	/* In a throttled guest's pause, or in the moment in which one that was held may go on. */
	if (c->q && !c->qmp_dead &&
	    (paused == 1 || (paused && (s == MC_STATE_ENDED || s == MC_STATE_DEGRADED))))
		(void)pause_end(c, mc_now_ns(), NULL);
	c->guard_source = sd_event_source_unref(c->guard_source);
	c->qmp_source = sd_event_source_unref(c->qmp_source);
	end_watch_done(c);
	c->arbiter = mc_arbiter_free(c->arbiter);
	/* Only the end of a protection lets QEMU go; a successor would use what is there. */
	capture_detach(c, s == MC_STATE_ENDED || s == MC_STATE_STOPPED || s == MC_STATE_DEGRADED);
	c->phase = PHASE_DONE;
}

const struct mc_worker_ops capture_ops = {
        .role = MC_ROLE_CAPTURE,
        .process = "mc-capture",
        .asks_arbiter = true,
        .allow = MC_ALLOW_FILES | MC_ALLOW_NET | MC_ALLOW_DEVICE | MC_ALLOW_TRACE | MC_ALLOW_CHILD,
        .confines_itself = true,
        .start = capture_start,
        .work = capture_work,
        .quit = capture_quit,
};
