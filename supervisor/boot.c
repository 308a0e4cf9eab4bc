/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Guests that the configuration files protect: begun when the supervisor starts, tried again
 * until they stand (QEMU or the peer may come up later), then left to their operators.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"
#include "text.h"

#define RETRY_US 2000000

static struct guest_conf *find(struct manager *m, const char *name)
{
	for (struct guest_conf *c = m->confs; c; c = c->next)
		if (strcmp(c->rq.cfg.guest, name) == 0)
			return c;
	return NULL;
}

/*
 * True when the entry is where the file wants it, or where somebody decided it should be: an
 * operator who ended a protection isn't overruled.
 */
static bool stands(const struct guest_conf *c, const struct guest *g)
{
	const struct mc_control *ctl = g->arena.control;
	bool primary = g->side == MC_SIDE_PRIMARY;

	if (primary != c->primary)
		return true;
	if (!primary)
		return true;
	switch (guest_state(g)) {
	case MC_STATE_SYNCING:
		return false; /* not yet: its first copy may still break off */
	case MC_STATE_STOPPED:
		/* Before anything was armed: a peer that wasn't ready. Otherwise it's over. */
		return atomic_load(&ctl->armed_epoch) != 0;
	default:
		return true;
	}
}

static void remember(struct guest_conf *c, const char *text)
{
	if (strcmp(c->why, text) == 0)
		return;
	snprintf(c->why, sizeof(c->why), "%s", text);
	mc_warn("guest %s: its configuration can't be followed yet: %s; it is tried again",
	        c->rq.cfg.guest, text);
}

static void tried(struct manager *m, struct request *rq, int r, const char *text)
{
	struct guest_conf *c = find(m, rq->cfg.guest);

	if (!c)
		return; /* its file went away meanwhile */
	c->busy = false;
	if (r < 0)
		remember(c, text);
	else
		c->settled = !c->primary;
}

static void try(struct manager *m, struct guest_conf *c)
{
	struct request *rq = malloc(sizeof(*rq));
	char why[640];
	int r;

	if (!rq)
		return;
	*rq = c->rq;
	rq->done = tried;
	r = start_check(m, rq, c->primary, why, sizeof(why));
	if (r == 0)
		r = start_examine(m, rq, c->primary, why, sizeof(why));
	if (r < 0) {
		if (r != -EBUSY)
			remember(c, why);
		free(rq);
		return;
	}
	c->busy = true;
}

static void step(struct manager *m, struct guest_conf *c)
{
	struct guest *g = manager_find(m, c->rq.cfg.guest);

	if (c->settled || c->busy)
		return;
	if (g && stands(c, g)) {
		c->settled = true;
		return;
	}
	if (g && guest_state(g) == MC_STATE_STOPPED && g->arena.control->refusal[0]) {
		char text[MC_WHY_MAX];

		snprintf(text, sizeof(text), "%.*s", MC_WHY_MAX - 1, g->arena.control->refusal);
		remember(c, text_clean(text, true));
	}
	if (!g || guest_replaceable(g))
		try(m, c);
}

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;
	bool open = false;

	(void)usec;
	for (struct guest_conf *c = m->confs; c; c = c->next) {
		step(m, c);
		open |= !c->settled;
	}
	if (!open)
		return 0;
	(void)sd_event_source_set_time_relative(s, RETRY_US);
	(void)sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
	return 0;
}

/* --- what the files say ------------------------------------------------------------------- */

struct text {
	char *buf;
	size_t len, used;
};

static void add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (t->used >= t->len)
		return;
	va_start(ap, fmt);
	n = vsnprintf(t->buf + t->used, t->len - t->used, fmt, ap);
	va_end(ap);
	t->used += n > 0 ? (size_t)n : 0;
}

static void collect(void *ctx, const char *text)
{
	mc_err("%s", text);
	add(ctx, "%s\n", text);
}

int boot_start(struct manager *m)
{
	struct text t = {.buf = m->conf_mistakes, .len = sizeof(m->conf_mistakes)};
	int n;

	m->conf_mistakes[0] = '\0';
	m->confs = conf_free(m->confs); /* a reload may have come before us */
	n = conf_read_dir(m->conf_dir, &m->confs, collect, &t);
	if (n < 0) {
		add(&t, "can't read %s: %s\n", m->conf_dir, strerror(-n));
		mc_log_errno(n,
		             "can't read %s; no guest is protected by configuration (mend it, then "
		             "mcctl reload)",
		             m->conf_dir);
	} else if (n) {
		mc_err("%d files of %s have mistakes and are left out; mend them, then mcctl "
		       "reload",
		       n, m->conf_dir);
	}
	n = sd_event_add_time_relative(m->event, &m->boot_timer, CLOCK_MONOTONIC, 0, 0, on_timer,
	                               m);
	return n < 0 ? n : 0;
}

void boot_pending(const struct manager *m, void (*fn)(void *ctx, const char *name, const char *why),
                  void *ctx)
{
	char lines[sizeof(m->conf_mistakes)], *rest = NULL;

	for (const struct guest_conf *c = m->confs; c; c = c->next)
		if (!c->settled && !manager_find(m, c->rq.cfg.guest))
			fn(ctx, c->rq.cfg.guest, c->why[0] ? c->why : "its QEMU is being examined");
	memcpy(lines, m->conf_mistakes, sizeof(lines));
	for (char *l = strtok_r(lines, "\n", &rest); l; l = strtok_r(NULL, "\n", &rest))
		fn(ctx, "", l);
}

void boot_leave(struct manager *m, const char *name)
{
	struct guest_conf *c = find(m, name);

	if (c)
		c->settled = true;
}

void boot_stop(struct manager *m)
{
	m->boot_timer = sd_event_source_disable_unref(m->boot_timer);
	m->confs = conf_free(m->confs);
}

/* --- reload ------------------------------------------------------------------------------- */

/* True when they differ in something that can't change while the guest is protected. */
static bool fixed_differs(const struct guest_conf *a, const struct guest_conf *b)
{
	struct request x = a->rq;

	request_apply_running(&b->rq, &x.cfg);
	atomic_store(&x.cfg.generation, atomic_load(&b->rq.cfg.generation));
	return a->primary != b->primary || memcmp(&x.cfg, &b->rq.cfg, sizeof(x.cfg)) != 0 ||
	       memcmp(&x.params, &b->rq.params, sizeof(x.params)) != 0;
}

/* A guest that the old files had as well. */
static void reload_known(struct manager *m, const struct guest_conf *old, struct guest_conf *c,
                         struct text *t)
{
	struct guest *g = manager_find(m, c->rq.cfg.guest);
	bool fixed = fixed_differs(old, c);

	c->settled = old->settled && !fixed;
	c->busy = old->busy;
	if (g && (g->side == MC_SIDE_PRIMARY) == c->primary && !guest_replaceable(g)) {
		request_apply_running(&c->rq, g->arena.config);
		mc_arena_ring_all(&g->arena);
		c->settled = stands(c, g);
		if (fixed)
			add(t,
			    "guest %s: some keys can't change while it is protected; they count at "
			    "its next protection\n",
			    g->name);
	}
}

int boot_reload(struct manager *m, char *buf, size_t len)
{
	struct text t = {.buf = buf, .len = len};
	struct guest_conf *list, *old = m->confs;
	unsigned total = 0, fresh = 0;
	int n;

	buf[0] = '\0';
	n = conf_read_dir(m->conf_dir, &list, collect, &t);
	if (n != 0) {
		if (n < 0)
			add(&t, "can't read %s: %s; does it exist, as a directory?\n", m->conf_dir,
			    strerror(-n));
		snprintf(m->conf_mistakes, sizeof(m->conf_mistakes), "%.*s",
		         (int)sizeof(m->conf_mistakes) - 1, buf);
		add(&t, "nothing was changed; mend these, then mcctl reload");
		conf_free(list);
		return -EINVAL;
	}
	m->conf_mistakes[0] = '\0';
	m->confs = list;
	for (struct guest_conf *c = list; c; c = c->next, total++) {
		const struct guest_conf *was = old;

		while (was && strcmp(was->rq.cfg.guest, c->rq.cfg.guest) != 0)
			was = was->next;
		if (was)
			reload_known(m, was, c, &t);
		else
			fresh++;
	}
	for (const struct guest_conf *c = old; c; c = c->next)
		if (!find(m, c->rq.cfg.guest) && manager_find(m, c->rq.cfg.guest))
			add(&t,
			    "guest %s: its file is gone; it stays as it is (mcctl unprotect %s "
			    "ends "
			    "it)\n",
			    c->rq.cfg.guest, c->rq.cfg.guest);
	conf_free(old);
	add(&t, "%u guests are configured, %u of them new", total, fresh);
	mc_info("reloaded %s: %u guests are configured, %u of them new", m->conf_dir, total, fresh);
	(void)sd_event_source_set_time_relative(m->boot_timer, 0);
	(void)sd_event_source_set_enabled(m->boot_timer, SD_EVENT_ONESHOT);
	return 0;
}
