/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Object /org/microcheckpoint1, interface Manager. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "access.h"
#include "supervisor.h"
#include "text.h"

#define UNPROTECT_US 5000000

/* The one place where errno becomes a D-Bus error name. */
int bus_error(sd_bus_error *e, int error, const char *fmt, ...)
{
	const char *name = MC_ERROR("Failed");
	char text[8192];
	va_list ap;

	switch (error) {
	case -ENOENT:
	case -ESRCH:
		name = MC_ERROR("NotFound");
		break;
	case -EEXIST:
		name = MC_ERROR("Exists");
		break;
	case -EPERM:
	case -EACCES:
		name = MC_ERROR("Refused");
		break;
	case -EINVAL:
		name = MC_ERROR("Invalid");
		break;
	case -EPROTONOSUPPORT:
		name = MC_ERROR("OtherAbi");
		break;
	case -EBUSY:
	case -EAGAIN:
		name = MC_ERROR("Busy");
		break;
	case -ENOSPC:
	case -ENOMEM:
		name = MC_ERROR("NoSpace");
		break;
	}
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return sd_bus_error_set(e, name, text_clean(text, true));
}

/* Answers the caller of Protect, Standby or StandbyArgs. */
static void answer(struct manager *m, struct request *rq, int r, const char *text)
{
	sd_bus_error e = SD_BUS_ERROR_NULL;

	(void)m;
	if (r < 0) {
		(void)bus_error(&e, r, "%s", text);
		mc_warn("guest %s: refused: %s", rq->cfg.guest, text);
		(void)sd_bus_reply_method_error(rq->message, &e);
		sd_bus_error_free(&e);
	} else {
		(void)sd_bus_reply_method_return(rq->message, "s", text);
	}
	sd_bus_message_unref(rq->message);
}

static int read_request(struct manager *m, sd_bus_message *msg, bool primary, struct request *rq,
                        sd_bus_error *e)
{
	const char *name;
	char why[640];
	int r;

	r = sd_bus_message_read(msg, "s", &name);
	if (r < 0)
		return r;
	if (mc_guest_name_check(name) < 0)
		return bus_error(
		        e, -EINVAL,
		        "a guest's name must be letters, digits, '.', '_', '-', at most 63, and "
		        "begin with a letter or digit");
	snprintf(rq->cfg.guest, sizeof(rq->cfg.guest), "%s", name);
	r = bus_read_options(msg, rq, false, e);
	if (r < 0)
		return r;
	request_secure(rq, MC_TLS_DIR);
	r = start_check(m, rq, primary, why, sizeof(why));
	return r < 0 ? bus_error(e, r, "%s", why) : 0;
}

static int start(struct manager *m, sd_bus_message *msg, bool primary, sd_bus_error *e)
{
	struct request *rq = malloc(sizeof(*rq));
	char why[640];
	int r;

	if (!rq)
		return -ENOMEM;
	request_init(rq);
	rq->done = answer;
	r = read_request(m, msg, primary, rq, e);
	if (r >= 0) {
		rq->message = sd_bus_message_ref(msg);
		r = start_examine(m, rq, primary, why, sizeof(why));
		if (r < 0) {
			sd_bus_message_unref(rq->message);
			r = bus_error(e, r, "%s", why);
		}
	}
	if (r < 0)
		free(rq);
	return r < 0 ? r : 1;
}

static int method_protect(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	return start(userdata, msg, true, e);
}

static int method_standby(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	return start(userdata, msg, false, e);
}

static int method_standby_args(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct request *rq = malloc(sizeof(*rq));
	char why[640];
	int r;

	if (!rq)
		return -ENOMEM;
	request_init(rq);
	rq->args_only = true;
	rq->done = answer;
	strcpy(rq->cfg.guest, "-");
	r = bus_read_options(msg, rq, false, e);
	if (r >= 0 && !rq->cfg.qmp[0])
		r = bus_error(e, -EINVAL, "qmp is missing: give the path of QEMU's monitor socket");
	if (r >= 0) {
		rq->message = sd_bus_message_ref(msg);
		r = start_examine(userdata, rq, true, why, sizeof(why));
		if (r < 0) {
			sd_bus_message_unref(rq->message);
			r = bus_error(e, r, "%s", why);
		}
	}
	if (r < 0)
		free(rq);
	return r < 0 ? r : 1;
}

static int on_unprotect_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct guest *g = userdata;

	(void)s;
	(void)usec;
	atomic_store(&g->arena.control->want_end, 0);
	mc_arena_ring_all(&g->arena);
	watch_finish_unprotect(
	        g, -ETIMEDOUT,
	        "the backup hasn't confirmed the end within 5 s; nothing changed: it may take "
	        "over. "
	        "If it is surely dead: mcctl resolve NAME promote, once mcctl status shows HELD");
	return 0;
}

void bus_caller(sd_bus_message *m, char *buf, size_t len)
{
	sd_bus_creds *c = NULL;
	uid_t uid;

	snprintf(buf, len, "operator");
	if (sd_bus_query_sender_creds(m, SD_BUS_CREDS_EUID, &c) >= 0 &&
	    sd_bus_creds_get_euid(c, &uid) >= 0)
		snprintf(buf, len, "uid %u", (unsigned)uid);
	sd_bus_creds_unref(c);
}

static int unprotect_primary(struct guest *g, sd_bus_message *msg, sd_bus_error *e)
{
	struct mc_control *c = g->arena.control;
	enum mc_state s = guest_state(g);
	char who[32];

	/* Held for another reason than its backup: the guest goes on, and the protection ends. */
	if (atomic_load(&c->link) == MC_LINK_UP && guest_relieve(g) == 0)
		s = guest_state(g);
	if (s == MC_STATE_HELD || (s == MC_STATE_PROTECTED && atomic_load(&c->link) != MC_LINK_UP))
		return bus_error(
		        e, -EPERM,
		        "guest %s: the backup can't be reached and may take over; end the "
		        "protection with: mcctl resolve %s promote (if the backup is surely "
		        "dead) or demote%s",
		        g->name, g->name,
		        s == MC_STATE_HELD ? "" : ", once mcctl status shows HELD");
	if (g->unprotect)
		return bus_error(e, -EBUSY,
		                 "guest %s: is being unprotected already; wait for its end, mcctl "
		                 "status shows it",
		                 g->name);
	g->unprotect = sd_bus_message_ref(msg);
	(void)sd_event_add_time_relative(g->m->event, &g->unprotect_limit, CLOCK_MONOTONIC,
	                                 UNPROTECT_US, 0, on_unprotect_limit, g);
	bus_caller(msg, who, sizeof(who));
	event_write_by(g, "unprotect", who, 0, "an operator ends the protection");
	atomic_store_explicit(&c->want_end, MC_REASON_UNPROTECT, memory_order_release);
	mc_arena_ring_all(&g->arena);
	return 1;
}

static int method_unprotect(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct guest *g;
	const char *name;
	enum mc_state s;
	char who[32];
	int r = sd_bus_message_read(msg, "s", &name);

	if (r < 0)
		return r;
	g = manager_find(userdata, name);
	if (!g)
		return bus_error(e, -ENOENT, "there is no guest %s here (mcctl status lists them)",
		                 name);
	boot_leave(userdata, name);
	/* How it ended may have been written a moment ago: its history and the bus hear of it
	 * first. */
	watch_look(g);
	s = guest_state(g);
	if (guest_replaceable(g) || s == MC_STATE_WAITING) {
		bus_caller(msg, who, sizeof(who));
		event_write_by(g, "removed", who, 0, "an operator removes the entry, which was %s",
		               mc_state_name(s));
		guest_remove(g);
		return sd_bus_reply_method_return(msg, NULL);
	}
	if (g->side == MC_SIDE_BACKUP)
		return bus_error(e, -EPERM,
		                 "guest %s: this is the standby of a running protection (%s); "
		                 "unprotect it on the primary",
		                 name, mc_state_name(s));
	return unprotect_primary(g, msg, e);
}

/* Answers with an array of @type; @fill appends its members. */
static int reply_list(sd_bus_message *msg, struct manager *m, const char *type,
                      int (*fill)(sd_bus_message *reply, struct manager *m))
{
	sd_bus_message *reply = NULL;
	int r = sd_bus_message_new_method_return(msg, &reply);

	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', type);
	if (r >= 0)
		r = fill(reply, m);
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	if (r >= 0)
		r = sd_bus_send(NULL, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

static int fill_guests(sd_bus_message *reply, struct manager *m)
{
	int r = 0;

	for (struct guest *g = m->guests; r >= 0 && g; g = g->next) {
		char path[256];

		bus_guest_path(g, path, sizeof(path));
		r = sd_bus_message_append(reply, "(so)", g->name, path);
	}
	return r;
}

static int method_list(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	(void)e;
	return reply_list(msg, userdata, "(so)", fill_guests);
}

static void append_pending(void *ctx, const char *name, const char *why)
{
	char text[640];

	snprintf(text, sizeof(text), "%s", why);
	(void)sd_bus_message_append(ctx, "(ss)", name, text_clean(text, true));
}

static int fill_pending(sd_bus_message *reply, struct manager *m)
{
	boot_pending(m, append_pending, reply);
	return 0;
}

static int method_list_pending(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	(void)e;
	return reply_list(msg, userdata, "(ss)", fill_pending);
}

static int method_get(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct guest *g;
	const char *name;
	char path[256];
	int r = sd_bus_message_read(msg, "s", &name);

	if (r < 0)
		return r;
	g = manager_find(userdata, name);
	if (!g)
		return bus_error(e, -ENOENT, "there is no guest %s here (mcctl status lists them)",
		                 name);
	bus_guest_path(g, path, sizeof(path));
	return sd_bus_reply_method_return(msg, "o", path);
}

static int method_events(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	char mc_autofree *text = NULL;
	const char *name;
	int r = sd_bus_message_read(msg, "s", &name);

	if (r < 0)
		return r;
	r = mc_guest_name_check(name) < 0 ? -ENOENT : event_read(userdata, name, &text);
	if (r == -ENOMEM)
		return bus_error(e, r,
		                 "guest %s: out of memory for its history; free some on this host, "
		                 "then try again",
		                 name);
	if (r < 0)
		return bus_error(e, -ENOENT,
		                 "there is no history of a guest %s here; is the name right, and "
		                 "the host? (mcctl status lists guests)",
		                 name);
	return sd_bus_reply_method_return(msg, "s", text);
}

static int method_reload(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	char text[8192];
	int r = boot_reload(userdata, text, sizeof(text));

	return r < 0 ? bus_error(e, r, "%s", text) : sd_bus_reply_method_return(msg, "s", text);
}

static int method_metrics(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	char mc_autofree *text = metrics_text(userdata);

	(void)e;
	return text ? sd_bus_reply_method_return(msg, "s", text) : -ENOMEM;
}

static int property_version(sd_bus *bus, const char *path, const char *iface, const char *prop,
                            sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	(void)bus, (void)path, (void)iface, (void)prop, (void)userdata, (void)e;
	return sd_bus_message_append(reply, "s", mc_build_id());
}

GUARD_MANAGER(protect, ACCESS_PROTECT)
GUARD_MANAGER(standby, ACCESS_PROTECT)
GUARD_MANAGER(standby_args, ACCESS_PROTECT)
GUARD_MANAGER(unprotect, ACCESS_PROTECT)
GUARD_MANAGER(list, ACCESS_READ)
GUARD_MANAGER(list_pending, ACCESS_READ)
GUARD_MANAGER(get, ACCESS_READ)
GUARD_MANAGER(events, ACCESS_READ)
GUARD_MANAGER(metrics, ACCESS_READ)
GUARD_MANAGER(reload, ACCESS_PROTECT)

static const sd_bus_vtable manager_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD_WITH_ARGS("Protect", SD_BUS_ARGS("s", name, "a{sv}", options),
                                SD_BUS_RESULT("s", standby_args), guarded_protect,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Standby", SD_BUS_ARGS("s", name, "a{sv}", options),
                                SD_BUS_RESULT("s", unused), guarded_standby,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("StandbyArgs", SD_BUS_ARGS("a{sv}", options),
                                SD_BUS_RESULT("s", command), guarded_standby_args,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Unprotect", SD_BUS_ARGS("s", name), SD_BUS_NO_RESULT,
                                guarded_unprotect, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("ListGuests", SD_BUS_NO_ARGS, SD_BUS_RESULT("a(so)", guests),
                                guarded_list, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("ListPending", SD_BUS_NO_ARGS, SD_BUS_RESULT("a(ss)", pending),
                                guarded_list_pending, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("GetGuest", SD_BUS_ARGS("s", name), SD_BUS_RESULT("o", guest),
                                guarded_get, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Events", SD_BUS_ARGS("s", name), SD_BUS_RESULT("s", json_lines),
                                guarded_events, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Metrics", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", prometheus),
                                guarded_metrics, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Reload", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", summary),
                                guarded_reload, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_PROPERTY("Version", "s", property_version, 0, SD_BUS_VTABLE_PROPERTY_CONST),
        SD_BUS_SIGNAL_WITH_ARGS("GuestAdded", SD_BUS_ARGS("s", name, "o", guest), 0),
        SD_BUS_SIGNAL_WITH_ARGS("GuestRemoved", SD_BUS_ARGS("s", name, "o", guest), 0),
        SD_BUS_VTABLE_END,
};

void bus_guest_added(struct guest *g, bool added)
{
	char path[256];

	bus_guest_path(g, path, sizeof(path));
	if (g->m->bus)
		(void)sd_bus_emit_signal(g->m->bus, MC_BUS_ROOT, MC_IFACE_MGR,
		                         added ? "GuestAdded" : "GuestRemoved", "so", g->name,
		                         path);
}

static int connect_bus(struct manager *m)
{
	int r;

	if (strcmp(m->bus_address, "system") == 0)
		return sd_bus_open_system(&m->bus);
	if (strcmp(m->bus_address, "session") == 0)
		return sd_bus_open_user(&m->bus);
	r = sd_bus_new(&m->bus);
	if (r >= 0)
		r = sd_bus_set_address(m->bus, m->bus_address);
	if (r >= 0)
		r = sd_bus_set_bus_client(m->bus, 1);
	return r < 0 ? r : sd_bus_start(m->bus);
}

int bus_start(struct manager *m)
{
	int r = connect_bus(m);

	if (r < 0)
		return mc_log_errno(r, "can't connect to the %s bus (is dbus running?)",
		                    m->bus_address);
	r = sd_bus_add_object_vtable(m->bus, NULL, MC_BUS_ROOT, MC_IFACE_MGR, manager_vtable, m);
	if (r >= 0)
		r = access_start(m);
	if (r >= 0)
		r = sd_bus_attach_event(m->bus, m->event, SD_EVENT_PRIORITY_NORMAL);
	return r < 0 ? mc_log_errno(r, "can't set up the D-Bus objects") : 0;
}

int bus_announce(struct manager *m)
{
	int r = sd_bus_request_name(m->bus, MC_BUS_NAME, 0);

	if (r == -EEXIST) {
		mc_err("%s is owned by another process on the %s bus; end that one first (busctl "
		       "status %s), or give this one its own --bus",
		       MC_BUS_NAME, m->bus_address, MC_BUS_NAME);
		return r;
	}
	return r < 0 ? mc_log_errno(r,
	                            "can't take the name %s on the %s bus; is its policy file "
	                            "installed?",
	                            MC_BUS_NAME, m->bus_address)
	             : 0;
}
