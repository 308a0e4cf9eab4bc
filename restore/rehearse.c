/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Rehearsals as mc-restore sees them: it never waits for one, and a takeover ends it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/pass-fd.h"
#include "../ipc/util.h"
#include "restore.h"

#define HOLD_NS (2 * MC_NS_PER_S)  /* the longest time that nothing is applied */
#define LIFE_NS (20 * MC_NS_PER_S) /* of the helper */

bool rehearse_holds(const struct restore *r)
{
	return r->rehearsal.hold_until != 0;
}

/* The result, for whoever asked. */
static void publish(struct restore *r, bool ok, const char *text)
{
	struct mc_control *c = r->a->control;

	snprintf(c->rehearsal, sizeof(c->rehearsal), "%s", text);
	atomic_store(&c->rehearsal_ok, ok);
	atomic_store_explicit(&c->rehearsal_done, r->rehearsal.asked, memory_order_release);
	mc_worker_event(r->w, "rehearsal", r->rehearsal.epoch, "%s", text);
	mc_arena_ring(r->a, MC_ROLE_SUPERVISOR);
}

static void clean_up(struct restore *r)
{
	struct rehearsal *x = &r->rehearsal;

	x->io = sd_event_source_disable_unref(x->io);
	mc_closep(&x->fd);
	if (x->running)
		launcher_kill(r);
	x->running = false;
	x->hold_until = x->limit = 0;
}

void rehearse_abort(struct restore *r, const char *why)
{
	char text[MC_WHY_MAX];

	if (!r->rehearsal.running)
		return;
	clean_up(r);
	snprintf(text, sizeof(text), "given up: %s; the standby is as it was, try again", why);
	publish(r, false, text);
}

static void finish(struct restore *r, const struct rehearse_message *m)
{
	char text[MC_WHY_MAX];

	if (m->error)
		snprintf(text, sizeof(text),
		         "epoch %llu can't be loaded: %s%s%.255s; a takeover would fail as well: "
		         "compare the "
		         "standby with mcctl standby-args on the primary, and start it anew",
		         (unsigned long long)r->rehearsal.epoch, strerror(-m->error),
		         m->text[0] ? ": " : "", m->text);
	else
		snprintf(text, sizeof(text),
		         "epoch %llu loads: in %.1f ms, by a QEMU that was ready after %.0f ms",
		         (unsigned long long)r->rehearsal.epoch, (double)m->took_ns / 1e6,
		         (double)r->rehearsal.ready_ns / 1e6);
	clean_up(r);
	publish(r, !m->error, text);
	mc_arena_ring(r->a, MC_ROLE_TRANSPORT);
}

/* Between two epochs: what is applied is what is committed, and stays so until the load is over. */
static int go(struct restore *r)
{
	struct rehearse_message m = {.step = REHEARSE_GO};
	mc_handle h = commit_state_slab(r);
	struct mc_slab_meta *meta = mc_pool_meta(&r->a->slabs, h);
	int mc_autoclose fd = -1;
	ssize_t n;

	r->rehearsal.epoch = restore_committed(r);
	if (!meta || meta->used > mc_copyset_state_max(r->a->slabs.unit) ||
	    atomic_load(&r->a->control->applied) != r->rehearsal.epoch)
		return -ENODATA;
	fd = standby_state_file(r, mc_pool_data(&r->a->slabs, h), meta->used);
	if (fd < 0)
		return fd;
	n = mc_fd_send(r->rehearsal.fd, &m, sizeof(m), fd);
	if (n < 0)
		return (int)n;
	r->rehearsal.hold_until = mc_now_ns() + HOLD_NS;
	return 0;
}

static int on_helper(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct restore *r = userdata;
	struct rehearse_message m;
	ssize_t n = recv(fd, &m, sizeof(m), MSG_DONTWAIT);
	int e;

	(void)s;
	(void)revents;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n != sizeof(m)) {
		rehearse_abort(r, "the helper ended");
		return 0;
	}
	m.text[sizeof(m.text) - 1] = '\0';
	if (m.step == REHEARSE_READY && !rehearse_holds(r)) {
		r->rehearsal.ready_ns = m.took_ns;
		e = go(r);
		if (e < 0)
			rehearse_abort(r, strerror(-e));
	} else if (m.step == REHEARSE_DONE) {
		finish(r, &m);
	} else {
		rehearse_abort(r, "the helper broke the protocol");
	}
	return 0;
}

static int start(struct restore *r)
{
	struct rehearsal *x = &r->rehearsal;
	int pair[2], e;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	e = launcher_run(r, pair[1]);
	close(pair[1]);
	if (e < 0) {
		close(pair[0]);
		return e;
	}
	x->fd = pair[0];
	x->running = true;
	x->limit = mc_now_ns() + LIFE_NS;
	return sd_event_add_io(r->w->event, &x->io, x->fd, EPOLLIN, on_helper, r);
}

uint64_t rehearse_deadline(const struct restore *r)
{
	const struct rehearsal *x = &r->rehearsal;

	if (!x->running)
		return UINT64_MAX;
	return x->hold_until ? mc_min_u64(x->hold_until, x->limit) : x->limit;
}

int rehearse_step(struct restore *r)
{
	struct mc_control *c = r->a->control;
	uint64_t want = atomic_load_explicit(&c->want_rehearsal, memory_order_acquire);
	int e;

	if (r->rehearsal.running) {
		if (mc_now_ns() < rehearse_deadline(r))
			return 0;
		rehearse_abort(r, "it takes too long");
		return 1;
	}
	if (want == atomic_load(&c->rehearsal_done))
		return 0;
	r->rehearsal.asked = want;
	r->rehearsal.epoch = restore_committed(r);
	if (restore_state(r) != MC_STATE_PROTECTED) {
		publish(r, false,
		        "nothing is committed that could be loaded; wait for the first copy");
		return 1;
	}
	e = start(r);
	if (e < 0) {
		clean_up(r);
		publish(r, false, strerror(-e));
	}
	return 1;
}
