/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "access.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"

#define PENDING_MAX 32                  /* questions to polkit at a time */
#define ANSWER_US   60000000            /* somebody may have to type a password */
#define BURST       50                  /* calls of all strangers at once, */
#define REFILL_NS   (50 * MC_NS_PER_MS) /* and then one every 50 ms */

static const struct {
	const char *id, *what;
} actions[] = {
        [ACCESS_READ] = {"org.microcheckpoint1.read", "read the state of guests"},
        [ACCESS_PROTECT] = {"org.microcheckpoint1.protect", "change the protection of guests"},
        [ACCESS_FAILOVER] = {"org.microcheckpoint1.failover", "let guests fail over"},
        [ACCESS_RESOLVE] = {"org.microcheckpoint1.resolve", "decide where guests go on"},
};

/* A call that waits for polkit's answer. */
struct question {
	struct manager *m;
	sd_bus_message *msg;
	sd_bus_slot *slot;
	sd_bus_message_handler_t fn;
	enum access action;
	char guest[MC_NAME_MAX]; /* "": of the manager */
	enum mc_role role;
	uid_t uid; /* who asks */
};

static int sender_uid(sd_bus_message *msg, uid_t *uid)
{
	sd_bus_creds *c = NULL;
	int r = sd_bus_query_sender_creds(msg, SD_BUS_CREDS_EUID, &c);

	if (r >= 0)
		r = sd_bus_creds_get_euid(c, uid);
	sd_bus_creds_unref(c);
	return r;
}

/* Whom the bus names as the sender; asked for once, since asking waits for the bus. */
static struct caller *caller_of(struct manager *m, sd_bus_message *msg)
{
	const char *name = sd_bus_message_get_sender(msg);
	struct caller *c = name ? callers_find(m->callers, name) : NULL;
	uid_t uid;

	if (!c && name && strlen(name) < CALLER_NAME && sender_uid(msg, &uid) >= 0)
		c = callers_add(m->callers, name, uid, mc_now_ns());
	if (c)
		c->used = mc_now_ns();
	return c;
}

/* What strangers may make us do is bounded, each by himself and all together. */
static bool too_many(struct manager *m, struct caller *c)
{
	uint64_t now = mc_now_ns();

	return !rate_take(&c->rate, CALLER_BURST, CALLER_NS, now) ||
	       !rate_take(&m->strangers, BURST, REFILL_NS, now);
}

static int refuse_rate(const struct caller *c, sd_bus_error *e)
{
	return bus_error(e, -EBUSY,
	                 "user %u calls too often: %u calls at once and %u a second are answered; "
	                 "try again in a second",
	                 (unsigned)c->uid, CALLER_BURST, (unsigned)(MC_NS_PER_S / CALLER_NS));
}

static void *userdata_of(struct manager *m, struct guest *g, enum mc_role role)
{
	if (!g)
		return m;
	return role == MC_ROLE_NONE ? (void *)g : (void *)&g->child[role];
}

static int refuse(enum access a, uid_t uid, sd_bus_error *e)
{
	return bus_error(e, -EACCES, "user %u may not %s; ask as root%s", (unsigned)uid,
	                 actions[a].what, a == ACCESS_READ ? ", or let polkit allow it" : "");
}

/* The answer is "yes": the method runs as it would have. */
static void go_on(struct question *q)
{
	struct guest *g = q->guest[0] ? manager_find(q->m, q->guest) : NULL;
	sd_bus_error e = SD_BUS_ERROR_NULL;
	int r;

	if (q->guest[0] && !g)
		r = bus_error(&e, -ENOENT,
		              "guest %s is gone meanwhile (its protection ended); mcctl status "
		              "lists those that are there",
		              q->guest);
	else
		r = q->fn(q->msg, userdata_of(q->m, g, q->role), &e);
	if (r < 0)
		(void)sd_bus_reply_method_errno(q->msg, r, &e);
	sd_bus_error_free(&e);
}

static int on_answer(sd_bus_message *reply, void *userdata, sd_bus_error *unused)
{
	struct question *q = userdata;
	sd_bus_error e = SD_BUS_ERROR_NULL;
	int yes = 0, challenge = 0;

	(void)unused;
	if (sd_bus_message_is_method_error(reply, NULL))
		mc_warn("polkit gives no answer: %s; only root may use the service until it runs "
		        "(systemctl status polkit)",
		        sd_bus_message_get_error(reply)->message);
	else if (sd_bus_message_enter_container(reply, 'r', "bba{ss}") >= 0)
		(void)sd_bus_message_read(reply, "bb", &yes, &challenge);
	if (yes) {
		go_on(q);
	} else {
		(void)bus_error(&e, -EACCES,
		                "user %u may not %s: polkit's action %s isn't allowed%s; ask as "
		                "root, or let a rule in /etc/polkit-1/rules.d allow it",
		                (unsigned)q->uid, actions[q->action].what, actions[q->action].id,
		                challenge ? " without authentication" : "");
		(void)sd_bus_reply_method_error(q->msg, &e);
		sd_bus_error_free(&e);
	}
	q->m->questions--;
	sd_bus_message_unref(q->msg);
	sd_bus_slot_unref(q->slot);
	free(q);
	return 0;
}

static int ask(struct question *q)
{
	sd_bus_message *call = NULL;
	int interactive = sd_bus_message_get_allow_interactive_authorization(q->msg) > 0;
	int r = sd_bus_message_new_method_call(q->m->bus, &call, "org.freedesktop.PolicyKit1",
	                                       "/org/freedesktop/PolicyKit1/Authority",
	                                       "org.freedesktop.PolicyKit1.Authority",
	                                       "CheckAuthorization");

	if (r >= 0)
		r = sd_bus_message_append(call, "(sa{sv})sa{ss}us", "system-bus-name", 1, "name",
		                          "s", sd_bus_message_get_sender(q->msg),
		                          actions[q->action].id, 0, (uint32_t)interactive, "");
	if (r >= 0)
		r = sd_bus_call_async(q->m->bus, &q->slot, call, on_answer, q, ANSWER_US);
	sd_bus_message_unref(call);
	return r;
}

int access_call(struct manager *m, struct guest *g, enum mc_role role, enum access a,
                sd_bus_message *msg, sd_bus_message_handler_t fn, sd_bus_error *e)
{
	struct caller *c = caller_of(m, msg);
	struct question *q;
	uid_t uid;
	int r;

	if (!c)
		return bus_error(
		        e, -EACCES,
		        "the bus doesn't say who calls (has the caller gone?); call again");
	uid = c->uid;
	if (uid == 0 || uid == geteuid() || (a == ACCESS_READ && uid == m->uid))
		return fn(msg, userdata_of(m, g, role), e);
	if (too_many(m, c))
		return refuse_rate(c, e);
	if (strcmp(m->bus_address, "system") != 0)
		return refuse(a, uid, e);
	if (m->questions >= PENDING_MAX)
		return bus_error(
		        e, -EBUSY,
		        "%d calls wait for polkit's answer already; try again when some have "
		        "been answered",
		        PENDING_MAX);
	q = calloc(1, sizeof(*q));
	if (!q)
		return -ENOMEM;
	*q = (struct question){.m = m, .fn = fn, .action = a, .role = role, .uid = uid};
	if (g)
		snprintf(q->guest, sizeof(q->guest), "%s", g->name);
	q->msg = sd_bus_message_ref(msg);
	r = ask(q);
	if (r < 0) {
		sd_bus_message_unref(q->msg);
		free(q);
		return bus_error(e, -EACCES,
		                 "polkit can't be asked: %s; ask as root or start polkit",
		                 strerror(-r));
	}
	m->questions++;
	return 1;
}

/*
 * What is answered past any handler of ours: properties, and what every service has (introspection,
 * Ping).  On the system's bus its policy decides who may (packaging/org.microcheckpoint1.conf), on
 * another one nobody else reads properties; on none as often as he likes.
 */
static int on_message(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct manager *m = userdata;
	const char *iface = sd_bus_message_get_interface(msg);
	struct caller *c;

	if (!sd_bus_message_is_method_call(msg, NULL, NULL) ||
	    (iface && strncmp(iface, MC_BUS_NAME ".", strlen(MC_BUS_NAME) + 1) == 0))
		return 0;
	c = caller_of(m, msg);
	if (c && (c->uid == 0 || c->uid == geteuid() || c->uid == m->uid))
		return 0;
	if (c && too_many(m, c))
		return refuse_rate(c, e);
	if (!c || (strcmp(m->bus_address, "system") != 0 &&
	           (!iface || strcmp(iface, "org.freedesktop.DBus.Properties") == 0 ||
	            strcmp(iface, "org.freedesktop.DBus.ObjectManager") == 0)))
		return refuse(ACCESS_READ, c ? c->uid : (uid_t)-1, e);
	return 0;
}

int access_start(struct manager *m)
{
	return sd_bus_add_filter(m->bus, NULL, on_message, m);
}
