/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What mc-restore does when, and its place in the event loop. */
#include "restore.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "../ipc/log.h"
#include "../ipc/util.h"

#define ATTACH_NS (5 * MC_NS_PER_S) /* up to QMP's answers, which are waited for one by one */

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	(void)userdata;
	return 0; /* work() runs before the next wait */
}

static int on_qmp(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct restore *r = userdata;

	(void)fd;
	(void)revents;
	if (qmp_dispatch(r->q) < 0) {
		(void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
		end_standby(r, MC_REASON_STANDBY_LOST,
		            "the standby's QEMU ended; start it again, it is taken up by itself");
	} else if (r->resumed && !(atomic_load(&r->a->control->commit) & MC_COMMIT_TAKEN)) {
		end_standby(r, MC_REASON_FOREIGN,
		            "somebody else started the standby; start a new one and run mcctl "
		            "standby");
	}
	return 0;
}

static void arm_timer(struct restore *r)
{
	uint64_t at = mc_min_u64(takeover_deadline(r), rehearse_deadline(r));

	if (at == UINT64_MAX) {
		(void)sd_event_source_set_enabled(r->timer, SD_EVENT_OFF);
		return;
	}
	(void)sd_event_source_set_time(r->timer, at / MC_NS_PER_US + 1);
	(void)sd_event_source_set_enabled(r->timer, SD_EVENT_ONESHOT);
}

/* A damaged ring ends reception, not the standby: what is committed may still take over. */
static int commits(struct restore *r)
{
	int e = r->ring_bad ? 0 : commit_step(r);

	if (e != -EBADMSG)
		return e;
	mc_log_errno(e, "the ring from transport is damaged; nothing more is committed; end the "
	                "standby and start a new one");
	r->ring_bad = true;
	return 1;
}

static int restore_work(struct mc_worker *w, void *ctx)
{
	struct restore *r = ctx;
	enum mc_state s = restore_state(r);
	int e = 0;

	(void)w;
	if (r->standby_gone)
		return end_step(r);
	decoders_set(r->decoders, atomic_load(&r->a->config->decoders));
	if (s == MC_STATE_SYNCING)
		e = sync_step(r);
	if (e == 0 && !rehearse_holds(r) && (s == MC_STATE_SYNCING || s == MC_STATE_PROTECTED))
		e = commits(r);
	if (e == 0)
		e = hashes_step(r);
	if (e == 0)
		e = end_step(r);
	if (e == 0)
		e = takeover_step(r);
	if (e == 0)
		e = rehearse_step(r);
	if (e == 0)
		arm_timer(r);
	return e;
}

static int attach(struct restore *r)
{
	enum mc_state s = restore_state(r);
	int e;

	/* Over: a QEMU that answers on the same socket by now is none of ours. */
	if (s == MC_STATE_STOPPED || s == MC_STATE_ENDED) {
		r->standby_gone = true;
		return 0;
	}
	mc_worker_busy(r->w, ATTACH_NS);
	e = standby_attach(r);
	mc_worker_busy(r->w, 0);
	if (e == 0)
		r->wants_config = load_wants_config(r);
	if (e == 0)
		e = launcher_start(r);
	if (mc_worker_confine(r->w, 0, 0) < 0)
		return -EPERM;
	if (e == 0)
		e = decoders_new(&r->decoders, r);
	if (e == 0)
		e = sd_event_add_io(r->w->event, &r->qmp_source, qmp_fd(r->q), EPOLLIN, on_qmp, r);
	if (e < 0) {
		char why[MC_WHY_MAX];

		/* The state says so; the process waits to be told to quit. */
		snprintf(why, sizeof(why), "%.*s", MC_WHY_MAX - 1, r->a->control->refusal);
		end_standby(r, MC_REASON_REFUSED, why);
		return 0;
	}
	if (s == MC_STATE_WAITING || s == MC_STATE_SYNCING || s == MC_STATE_PROTECTED)
		load_prepare(r);
	return commit_recover(r);
}

static int restore_start(struct mc_worker *w, void *ctx)
{
	struct restore *r = ctx;
	int e;

	r->w = w;
	r->a = &w->arena;
	r->launcher = -1;
	r->rehearsal.fd = r->state_file = -1;
	for (int i = 0; i < VM_BLOCKS_MAX; i++)
		r->ram_fd[i] = -1;
	if (!r->a->ring_restore)
		return mc_log_errno(-EINVAL, "the arena is not a backup's");
	e = mc_ring_attach_consumer(&r->in, r->a->ring_restore, r->a->ring_slots);
	if (e < 0)
		return mc_log_errno(e, "the ring from transport is damaged; start a new standby");
	e = sd_event_add_time(w->event, &r->timer, CLOCK_MONOTONIC, UINT64_MAX, 1, on_timer, r);
	return e < 0 ? e : attach(r);
}

static void restore_quit(struct mc_worker *w, void *ctx)
{
	struct restore *r = ctx;

	(void)w;
	r->standby_gone = true;
	r->qmp_source = sd_event_source_disable_unref(r->qmp_source);
}

void restore_done(struct restore *r)
{
	r->timer = sd_event_source_disable_unref(r->timer);
	r->qmp_source = sd_event_source_disable_unref(r->qmp_source);
	r->arbiter = mc_arbiter_free(r->arbiter);
	rehearse_abort(r, "mc-restore ends");
	if (r->launcher > 0) /* a zeroed struct has none */
		mc_closep(&r->launcher);
	standby_detach(r);
	r->decoders = decoders_free(r->decoders);
	free(r->filled);
	r->filled = NULL;
}

const struct mc_worker_ops restore_ops = {
        .role = MC_ROLE_RESTORE,
        .process = "mc-restore",
        .asks_arbiter = true,
        .start = restore_start,
        .work = restore_work,
        .quit = restore_quit,
};
