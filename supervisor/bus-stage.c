/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Objects /org/microcheckpoint1/guest/NAME/STAGE/N, interface Stage: one process each. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "access.h"
#include "supervisor.h"

static int method_restart(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct child *c = userdata;
	char why[256];
	int r = abi_check(c->g->m, c->role, why, sizeof(why));

	/* Before anything is touched: the running process goes on. */
	if (r < 0)
		return bus_error(e, r, "guest %s: %s", c->g->name, why);
	if (c->given_up) {
		c->given_up = false;
		if (c->role == MC_ROLE_NETGATE)
			c->g->gate_cleared = false;
		memset(c->death, 0, sizeof(c->death));
		if (child_spawn(c) < 0)
			return bus_error(e, -EIO,
			                 "guest %s: mc-%s can't be started; journalctl -u "
			                 "mc-supervisor says why",
			                 c->g->name, mc_role_name(c->role));
	} else if (c->pidfd < 0 || syscall(SYS_pidfd_send_signal, c->pidfd, SIGTERM, NULL, 0) < 0) {
		return bus_error(e, -ESRCH,
		                 "guest %s: mc-%s isn't running; mcctl events %s says what became "
		                 "of it",
		                 c->g->name, mc_role_name(c->role), c->g->name);
	} else {
		c->asked = true;
	}
	return sd_bus_reply_method_return(msg, NULL);
}

static int guarded_restart(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct child *c = userdata;

	return access_call(c->g->m, c->g, c->role, ACCESS_PROTECT, msg, method_restart, e);
}

static int property_basic(sd_bus *bus, const char *path, const char *iface, const char *prop,
                          sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	struct child *c = userdata;

	(void)bus, (void)path, (void)iface, (void)e;
	if (strcmp(prop, "Name") == 0)
		return sd_bus_message_append(reply, "s", mc_role_name(c->role));
	if (strcmp(prop, "State") == 0)
		return sd_bus_message_append(reply, "s",
		                             c->given_up ? "given-up"
		                             : !c->bus   ? "starting"
		                             : c->wanted ? "running"
		                                         : "stopping");
	if (strcmp(prop, "Index") == 0)
		return sd_bus_message_append(reply, "u", mc_role_index(c->role));
	if (strcmp(prop, "Pid") == 0)
		return sd_bus_message_append(reply, "u", (uint32_t)c->pid);
	return sd_bus_message_append(reply, "t", c->restarts);
}

/* "pause_p99" and the like, by the histogram's name. */
static bool histogram_value(const struct child *c, const char *prop, uint64_t *ret)
{
	for (int h = 0; h < MC_HISTOGRAMS; h++) {
		const char *name = mc_histogram_name((enum mc_histogram_id)h);
		const struct mc_histogram *hist = &c->g->arena.metrics[c->role].hist[h];
		size_t n = strlen(name);

		if (strncmp(prop, name, n) != 0 || prop[n] != '_')
			continue;
		*ret = mc_histogram_quantile(hist, strcmp(prop + n, "_p50") == 0   ? 0.5
		                                   : strcmp(prop + n, "_p99") == 0 ? 0.99
		                                                                   : 1);
		return true;
	}
	return false;
}

static int property_metric(sd_bus *bus, const char *path, const char *iface, const char *prop,
                           sd_bus_message *reply, void *userdata, sd_bus_error *e)
{
	struct child *c = userdata;
	uint64_t v = 0;

	(void)bus, (void)path, (void)iface, (void)e;
	for (int i = 0; i < MC_METRIC_COUNT; i++)
		if (strcmp(mc_metric_info((enum mc_metric)i)->name, prop) == 0)
			v = mc_metric_get(&c->g->arena.metrics[c->role], (enum mc_metric)i);
	(void)histogram_value(c, prop, &v);
	return sd_bus_message_append(reply, "t", v);
}

/* One vtable a role: its metrics and histograms. Built once, lives as long as the process. */
static sd_bus_vtable *make_vtable(enum mc_role role)
{
	static const sd_bus_vtable head[] = {
	        SD_BUS_VTABLE_START(0),
	        SD_BUS_METHOD("Restart", NULL, NULL, guarded_restart, SD_BUS_VTABLE_UNPRIVILEGED),
	        SD_BUS_PROPERTY("Name", "s", property_basic, 0, SD_BUS_VTABLE_PROPERTY_CONST),
	        SD_BUS_PROPERTY("Index", "u", property_basic, 0, SD_BUS_VTABLE_PROPERTY_CONST),
	        SD_BUS_PROPERTY("Pid", "u", property_basic, 0, 0),
	        SD_BUS_PROPERTY("State", "s", property_basic, 0, 0),
	        SD_BUS_PROPERTY("RestartCount", "t", property_basic, 0, 0),
	};
	static const sd_bus_vtable end[] = {SD_BUS_VTABLE_END};
	static const char *const suffix[] = {"p50", "p99", "max"};
	size_t n = MC_ARRAY_SIZE(head);
	sd_bus_vtable *v = calloc(n + MC_METRIC_COUNT + MC_HISTOGRAMS * 3 + 1, sizeof(*v));

	if (!v)
		return NULL;
	memcpy(v, head, sizeof(head));
	for (int i = 0; i < MC_METRIC_COUNT; i++) {
		const struct mc_metric_info *info = mc_metric_info((enum mc_metric)i);
		sd_bus_vtable p = SD_BUS_PROPERTY(info->name, "t", property_metric, 0, 0);

		if (info->role == role)
			v[n++] = p;
	}
	for (int h = 0; h < MC_HISTOGRAMS; h++) {
		for (int s = 0; s < 3 && mc_histogram_role((enum mc_histogram_id)h) == role; s++) {
			char *name;

			if (asprintf(&name, "%s_%s", mc_histogram_name((enum mc_histogram_id)h),
			             suffix[s]) < 0)
				return NULL;
			v[n++] = (sd_bus_vtable)SD_BUS_PROPERTY(name, "t", property_metric, 0, 0);
		}
	}
	v[n] = end[0];
	return v;
}

/* The object of a process: there from its first start until it isn't wanted any more. */
int bus_stage_add(struct child *c)
{
	struct manager *m = c->g->m;
	enum mc_role role = mc_role_is_stage(c->role) ? MC_ROLE_STAGE0 : c->role;
	char guest[256], path[320];

	if (c->object || !m->bus)
		return 0;
	if (!m->stage_vtable[role])
		m->stage_vtable[role] = make_vtable(role);
	if (!m->stage_vtable[role])
		return -ENOMEM;
	bus_guest_path(c->g, guest, sizeof(guest));
	snprintf(path, sizeof(path), "%s/%s/%u", guest, mc_role_name(c->role),
	         mc_role_index(c->role));
	return sd_bus_add_object_vtable(m->bus, &c->object, path, MC_IFACE_STAGE,
	                                m->stage_vtable[role], c);
}

void bus_stage_remove(struct child *c)
{
	c->object = sd_bus_slot_unref(c->object);
}
