/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What both ends share: HELLO, PING, the link's words in the arena. */
#include "streams.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "tls.h"

#define RTT_NS        MC_NS_PER_S /* the round trip is measured at least this often */
#define TELL_AGAIN_NS (60 * MC_NS_PER_S)

uint64_t transport_failure_ns(const struct transport *t)
{
	return atomic_load(&t->a->config->failure_timeout_ms) * MC_NS_PER_MS;
}

enum mc_state transport_state(const struct transport *t)
{
	return mc_state_of(atomic_load_explicit(&t->a->control->state, memory_order_acquire));
}

/* To be called before the link is up: nobody reads it then. */
void transport_note_security(struct transport *t, const struct link *l)
{
	struct mc_control *c = t->a->control;
	const char *text = link_security(l);

	if (strncmp(c->security, text, sizeof(c->security)) != 0)
		mc_info("the link's security: %s", text);
	memset(c->security, 0, sizeof(c->security));
	memcpy(c->security, text, strnlen(text, sizeof(c->security) - 1));
}

void transport_set_link(struct transport *t, bool up)
{
	struct mc_control *c = t->a->control;

	if (t->up == up && atomic_load(&c->link) == (up ? MC_LINK_UP : MC_LINK_DOWN))
		return;
	t->up = up;
	if (up) {
		atomic_store(&c->last_rx, mc_now_ns());
		atomic_store(&c->link_closed, 0);
	}
	atomic_store(&c->link_changed, mc_now_ns());
	atomic_store_explicit(&c->link, up ? MC_LINK_UP : MC_LINK_DOWN, memory_order_release);
	mc_arena_ring_all(t->a);
}

/* A link may report its end inside its own callback: it is freed at the next turn of the loop. */
const char *transport_remedy(int error)
{
	switch (error < 0 ? -error : error) {
	case ECONNREFUSED:
		return "is mc-supervisor running there, and this its port?";
	case EHOSTUNREACH:
	case ENETUNREACH:
	case ETIMEDOUT:
		return "is that host up, its address right, no firewall between?";
	case ENOENT:
	case EADDRNOTAVAIL:
		return "is that address right?";
	case EPROTO:
	case EBADMSG:
	case EPROTONOSUPPORT:
		return "are both hosts of the same release?";
	case ENOMEM:
	case ENOBUFS:
		return "free memory on this host";
	default:
		return "the other host's log says why it ended there";
	}
}

void transport_bury(struct transport *t, struct link *l)
{
	t->corpse = link_free(t->corpse);
	t->corpse = l;
	if (t->link == l)
		t->link = NULL;
	if (t->b.pending == l)
		t->b.pending = NULL;
}

/* us: a fifth of failure_timeout. */
static uint64_t ping_period(const struct transport *t)
{
	return atomic_load(&t->a->config->failure_timeout_ms) * 200ULL;
}

static int on_ping(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct transport *t = userdata;
	struct mc_wire_ping ping = {.stamp = mc_now_ns()};
	uint64_t period = ping_period(t);
	bool again = true;

	(void)usec;
	if (!t->up || !t->link) {
		(void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
		return 0;
	}
	if (t->side == MC_SIDE_BACKUP) {
		receive_look_at_starvation(t);
		again = t->b.starved;
	}
	if (!t->link)
		return 0;
	/* TCP alone would go on trying for minutes. The backup's silence is restore's to judge. */
	if (t->side == MC_SIDE_PRIMARY &&
	    ping.stamp - atomic_load(&t->a->control->last_rx) > period * 5 * MC_NS_PER_US) {
		t->link->events->closed(t, t->link, -ETIMEDOUT, "the backup is silent");
		return 0;
	}
	/* Its answer is what the primary knows of the backup: one question serves both. */
	if (t->side == MC_SIDE_PRIMARY) {
		t->p.pinged = ping.stamp;
		(void)link_send(t->link, MC_MSG_PING, 0, &ping, sizeof(ping));
	}
	(void)sd_event_source_set_time_relative(s, period);
	(void)sd_event_source_set_enabled(s, again ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
	return 0;
}

/* Primary: PINGs; backup: a look at what it waits for. The first PING goes out at once: it is what
 * the first lease counts from. */
void transport_start_clock(struct transport *t)
{
	(void)sd_event_source_set_time_relative(t->ping, 0);
	(void)sd_event_source_set_enabled(t->ping, SD_EVENT_ONESHOT);
}

void transport_answered(struct transport *t)
{
	if (mc_now_ns() - t->p.pinged < RTT_NS)
		(void)sd_event_source_set_time_relative(t->ping, ping_period(t) * 3 / 2);
}

void transport_fill_hello(struct transport *t, struct mc_hello *h)
{
	const struct mc_config *cfg = t->a->config;
	const struct mc_control *c = t->a->control;
	uint64_t half = t->a->slabs.max / 2;

	memset(&h->h, 0, sizeof(h->h));
	snprintf(h->h.guest, sizeof(h->h.guest), "%s", cfg->guest);
	snprintf(h->h.build, sizeof(h->h.build), "%s", mc_build_id());
	memcpy(h->h.instance, cfg->instance.id, sizeof(h->h.instance));
	h->h.peer_instance[0] = atomic_load(&c->peer_instance[0]);
	h->h.peer_instance[1] = atomic_load(&c->peer_instance[1]);
	h->h.slab_size = t->a->slabs.unit;
	h->h.max_epoch = (half > 2 ? half - 2 : 1) * t->a->slabs.unit;
	h->h.features = MC_FEATURE_DELTA | MC_FEATURE_HASHES;
	h->h.strikes = (uint32_t)atomic_load(&t->a->slabs.shm->strikes_max);
	h->h.interval_us = atomic_load(&cfg->interval_us);
	h->h.failure_timeout_ms = atomic_load(&cfg->failure_timeout_ms);
	h->h.side = t->side;
	h->h.blocks = (uint32_t)mc_min_u64(atomic_load(&c->blocks), MC_BLOCKS_MAX);
	for (uint32_t i = 0; i < h->h.blocks; i++) {
		memset(&h->block[i], 0, sizeof(h->block[i]));
		memcpy(h->block[i].name, c->block[i].name, sizeof(h->block[i].name) - 1);
		h->block[i].size = c->block[i].size;
	}
	h->h.description = (uint32_t)strnlen(c->description, sizeof(c->description) - 1);
	memcpy(h->description, c->description, h->h.description);
}

int transport_send_hello(struct transport *t, struct link *l, struct mc_hello *h)
{
	uint8_t mc_autofree *buf = malloc(MC_WIRE_HELLO_MAX);

	(void)t;
	if (!buf)
		return -ENOMEM;
	return link_send(l, MC_MSG_HELLO, 0, buf, mc_wire_hello_pack(h, buf));
}

int transport_send_reason(struct link *l, enum mc_msg type, uint64_t epoch, uint32_t reason,
                          const char *text)
{
	uint8_t buf[sizeof(struct mc_wire_reason) + MC_WHY_MAX];

	return link_send(l, type, epoch, buf, mc_wire_reason_pack(reason, text, buf));
}

static int compare_blocks(const struct mc_control *c, const struct mc_hello *th, char *why,
                          size_t len)
{
	uint32_t n = (uint32_t)atomic_load(&c->blocks);

	for (uint32_t i = 0; i < n && i < th->h.blocks; i++) {
		if (strncmp(c->block[i].name, th->block[i].name, MC_NAME_MAX) == 0 &&
		    c->block[i].size == th->block[i].size)
			continue;
		snprintf(
		        why, len,
		        "RAM differs: block %.63s of %llu bytes on the backup, %.63s of %llu bytes "
		        "on the primary; start the standby as the guest was started",
		        c->block[i].name, (unsigned long long)c->block[i].size, th->block[i].name,
		        (unsigned long long)th->block[i].size);
		return 1;
	}
	if (n == th->h.blocks)
		return 0;
	snprintf(why, len,
	         "RAM differs: %u memory backends on the backup, %u on the primary; start the "
	         "standby as the guest was started",
	         n, th->h.blocks);
	return 1;
}

/* The first line that only one of the two texts has at its place. */
static int compare_text(const char *ours, const char *theirs, char *why, size_t len)
{
	while (*ours || *theirs) {
		int a = (int)strcspn(ours, "\n"), b = (int)strcspn(theirs, "\n");

		if (a != b || memcmp(ours, theirs, (size_t)a) != 0) {
			snprintf(
			        why, len,
			        "the machines differ: '%.*s' on the backup, '%.*s' on the primary; "
			        "start the standby as the guest was started (mcctl standby-args)",
			        a, a ? ours : "nothing", b, b ? theirs : "nothing");
			return 1;
		}
		ours += a + (ours[a] == '\n');
		theirs += b + (theirs[b] == '\n');
	}
	return 0;
}

int transport_compare(const struct transport *t, const struct mc_hello *theirs, char *why,
                      size_t len)
{
	const struct mc_config *cfg = t->a->config;

	if (theirs->h.slab_size != t->a->slabs.unit) {
		snprintf(
		        why, len,
		        "slab-size differs: %llu on the backup, %llu on the primary; give both the "
		        "same --slab-size",
		        (unsigned long long)t->a->slabs.unit,
		        (unsigned long long)theirs->h.slab_size);
		return 1;
	}
	if (theirs->h.failure_timeout_ms != atomic_load(&cfg->failure_timeout_ms)) {
		snprintf(why, len,
		         "failure-timeout differs: %u ms on the backup, %u ms on the primary; the "
		         "lease needs the same on both: give both the same --failure-timeout",
		         atomic_load(&cfg->failure_timeout_ms), theirs->h.failure_timeout_ms);
		return 1;
	}
	if (compare_blocks(t->a->control, theirs, why, len))
		return 1;
	return compare_text(t->a->control->description, theirs->description, why, len);
}

/* What the link counts itself. */
static void note_metrics(struct transport *t)
{
	struct mc_metrics_block *m = mc_worker_metrics(t->w);
	struct link *l = t->link;

	mc_metric_set(m, MC_M_PINNED, l ? l->pinned : 0);
	mc_metric_set(m, MC_M_STREAMS, l && t->up ? 1 + streams_count(t) : 0);
	if (!l)
		return;
	mc_metric_add(m, MC_M_SLAB_BYTES_COPIED, l->copied);
	mc_metric_add(m, MC_M_CREDIT_WAITS, l->credit_waits);
	l->copied = l->credit_waits = 0;
}

void transport_tell_refusal(struct transport *t, const char *text)
{
	uint64_t now = mc_now_ns();

	if (strncmp(t->told, text, sizeof(t->told) - 1) == 0 && now - t->told_at < TELL_AGAIN_NS)
		return;
	snprintf(t->told, sizeof(t->told), "%s", text);
	t->told_at = now;
	mc_err("%s", text);
	mc_worker_event(t->w, "refused", 0, "%s", text);
}

/* Without its credentials a transport makes no link, never a plain one. */
static void load_creds(struct transport *t)
{
	char why[MC_WHY_MAX], text[MC_WHY_MAX];

	if (!t->a->config->tls)
		return;
	if (tls_creds_new(&t->tls, t->w->creds_fd, t->a->config, why, sizeof(why)) == 0)
		return;
	t->tls_bad = true;
	snprintf(text, sizeof(text), "no link: %.380s; mend it, then mcctl restart %s transport",
	         why, t->w->guest);
	mc_control_refuse(t->a->control, "%s", text);
	transport_tell_refusal(t, text);
	if (t->side == MC_SIDE_PRIMARY && transport_state(t) == MC_STATE_SYNCING &&
	    !primary_armed(t))
		primary_stop_syncing(t, MC_REASON_REFUSED, text);
}

/*
 * A slab may take a slow link longer than failure_timeout: who sends it is alive as long as any of
 * it comes in.  That only makes a takeover later, never earlier.
 */
static void note_life(struct transport *t)
{
	_Atomic uint64_t *last = &t->a->control->last_rx;
	uint64_t heard = mc_max_u64(t->link->heard, streams_heard(t));

	if (heard > atomic_load(last))
		atomic_store_explicit(last, heard, memory_order_release);
}

static int transport_work(struct mc_worker *w, void *ctx)
{
	struct transport *t = ctx;
	int r;

	(void)w;
	t->corpse = link_free(t->corpse);
	streams_reap(t);
	note_metrics(t);
	if (t->side == MC_SIDE_BACKUP && t->link && t->up)
		note_life(t);
	r = t->side == MC_SIDE_PRIMARY ? primary_work(t) : backup_work(t);
	if (r <= 0)
		link_flush(t->link);
	return r;
}

static int transport_start(struct mc_worker *w, void *ctx)
{
	struct transport *t = ctx;
	int r;

	t->w = w;
	t->a = &w->arena;
	t->side = (enum mc_side)t->a->params.side;
	r = sd_event_add_time_relative(w->event, &t->ping, CLOCK_MONOTONIC, 0, 1000, on_ping, t);
	if (r < 0)
		return r;
	(void)sd_event_source_set_enabled(t->ping, SD_EVENT_OFF);
	load_creds(t);
	mc_closep(&w->creds_fd);
	/* The predecessor's connection died with it. */
	if (atomic_load(&t->a->control->link) == MC_LINK_UP) {
		t->up = true;
		if (t->side == MC_SIDE_BACKUP)
			atomic_store(&t->a->control->link_closed, mc_now_ns());
		transport_set_link(t, false);
	}
	return t->side == MC_SIDE_PRIMARY ? primary_start(t) : backup_start(t);
}

static int transport_connection(struct mc_worker *w, void *ctx, int fd)
{
	struct transport *t = ctx;

	(void)w;
	return t->side == MC_SIDE_BACKUP ? backup_connection(t, fd) : -EPERM;
}

static void transport_quit(struct mc_worker *w, void *ctx)
{
	struct transport *t = ctx;

	(void)w;
	t->corpse = link_free(t->corpse);
	streams_end(t);
	streams_reap(t);
	t->link = link_free(t->link);
	t->b.pending = link_free(t->b.pending);
	t->listener = rdma_listen_free(t->listener);
	t->up = false;
	t->tls = tls_creds_free(t->tls);
	t->ping = sd_event_source_disable_unref(t->ping);
	t->p.retry = sd_event_source_disable_unref(t->p.retry);
	t->p.bandwidth = sd_event_source_disable_unref(t->p.bandwidth);
	free(t->p.epoch);
	free(t->p.window);
	t->p.epoch = NULL;
	t->p.window = NULL;
}

const struct mc_worker_ops transport_ops = {
        .role = MC_ROLE_TRANSPORT,
        .process = "mc-transport",
        .allow = MC_ALLOW_NET | MC_ALLOW_FILES | MC_ALLOW_DEVICE,
        .start = transport_start,
        .work = transport_work,
        .quit = transport_quit,
        .connection = transport_connection,
};
