/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A link by RDMA: its life, and what the state machines call. */
#include "rdma.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/util.h"

#define LINGER_US   200000
#define CONNECT_MIN 1000 /* ms */
#define CLOSED_WHY  384

static struct rdma *to_rdma(struct link *l)
{
	return (struct rdma *)l;
}

void rdma_closed(struct rdma *r, int error, const char *fmt, ...)
{
	char why[CLOSED_WHY];
	va_list ap;

	if (r->state == RDMA_DEAD)
		return;
	r->state = RDMA_DEAD;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	r->l.events->closed(r->l.ctx, &r->l, error, why);
}

void rdma_up(struct rdma *r)
{
	r->state = RDMA_UP;
	r->ask = link_free(r->ask);
	(void)sd_event_source_set_enabled(r->limit, SD_EVENT_OFF);
	if (r->opt.poll)
		(void)sd_event_source_set_enabled(r->spin, SD_EVENT_ON);
	send_pump(r);
}

/* --- the end --------------------------------------------------------------------------- */

static void destroy(struct rdma *r)
{
	sd_event_source_disable_unref(r->limit);
	sd_event_source_disable_unref(r->spin);
	cm_free(r);
	free(r);
}

/* The owner is gone: what it had said last is still on its way. */
static bool lingers(const struct rdma *r)
{
	return r->id && r->id->qp && !r->broken && r->sends && !r->chunks;
}

bool rdma_linger_over(struct rdma *r)
{
	if (!r->orphan || (r->sends && !r->broken))
		return false;
	destroy(r);
	return true;
}

static int on_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct rdma *r = userdata;

	(void)s;
	(void)usec;
	if (r->orphan) {
		destroy(r);
		return 0;
	}
	r->l.try_other = r->state != RDMA_ASKING;
	r->broken = true;
	rdma_closed(r, -ETIMEDOUT,
	            r->state == RDMA_ASKING ? "can't connect" : "no RDMA connection");
	return 0;
}

static int on_spin(sd_event_source *s, void *userdata)
{
	struct rdma *r = userdata;

	if (!r->opt.poll)
		(void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
	events_drain(r);
	(void)rdma_linger_over(r);
	return 0;
}

static struct link *rdma_free(struct link *l)
{
	struct rdma *r = to_rdma(l);
	bool wait = lingers(r);

	r->state = RDMA_DEAD;
	r->orphan = true;
	/* Nothing may read or write slabs any more when their owners get them back. */
	if (!wait)
		cm_end_io(r);
	receive_free(r);
	send_free(r);
	if (!wait) {
		destroy(r);
		return NULL;
	}
	(void)sd_event_source_set_enabled(r->spin, SD_EVENT_OFF);
	(void)sd_event_source_set_time_relative(r->limit, LINGER_US);
	(void)sd_event_source_set_enabled(r->limit, SD_EVENT_ONESHOT);
	return NULL;
}

/* --- link_ops -------------------------------------------------------------------------- */

static bool rdma_has_room(const struct link *l)
{
	const struct rdma *r = (const struct rdma *)l;

	/* Some places are kept for control messages. */
	return r->state != RDMA_DEAD && r->used < SENDS - 16;
}

static bool rdma_idle(const struct link *l)
{
	const struct rdma *r = (const struct rdma *)l;

	return !r->used;
}

static void rdma_resume(struct link *l)
{
	struct rdma *r = to_rdma(l);

	if (r->state != RDMA_UP)
		return;
	memory_trim(r);
	receive_tend(r);
}

static const char *rdma_security(const struct link *l)
{
	(void)l;
	return "none: RDMA";
}

static const struct link_ops rdma_ops = {
        .send = rdma_send,
        .send_slab = rdma_send_slab,
        .has_room = rdma_has_room,
        .idle = rdma_idle,
        .resume = rdma_resume,
        .security = rdma_security,
        .free = rdma_free,
};

struct rdma *rdma_new(sd_event *event, const struct rdma_options *opt,
                      const struct link_events *events, void *ctx)
{
	struct rdma *r = calloc(1, sizeof(*r));
	uint64_t limit = mc_max_u64(opt->failure_timeout_ms, CONNECT_MIN) * 1000;

	if (!r)
		return NULL;
	r->l = (struct link){.ops = &rdma_ops, .events = events, .ctx = ctx};
	r->event = event;
	r->opt = *opt;
	if (memory_new(r) < 0 ||
	    sd_event_add_time_relative(event, &r->limit, CLOCK_MONOTONIC, limit, 1000, on_limit,
	                               r) < 0 ||
	    sd_event_add_defer(event, &r->spin, on_spin, r) < 0 ||
	    /* Always pending while it polls: timers, signals and the connection's end go first. */
	    sd_event_source_set_priority(r->spin, SD_EVENT_PRIORITY_IDLE) < 0 ||
	    sd_event_source_set_enabled(r->spin, SD_EVENT_OFF) < 0) {
		destroy(r);
		return NULL;
	}
	return r;
}

int rdma_link_connect(struct link **ret, sd_event *event, const char *peer, const char *guest,
                      const struct tls_creds *creds, const struct rdma_options *opt,
                      const struct link_events *events, void *ctx)
{
	int fd = tcp_connect(peer), e;
	struct rdma *r;

	if (fd < 0)
		return fd;
	r = rdma_new(event, opt, events, ctx);
	e = r ? cm_ask(r, fd, creds, guest) : -ENOMEM;
	if (e < 0) {
		close(fd);
		if (r)
			destroy(r);
		return e;
	}
	*ret = &r->l;
	return 0;
}
