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
#include "supervisor.h"

#define PREFIX MC_BUS_ROOT "/guest"

static const char *const role_names[] = {"capture", "stage", "transport", "netgate", "restore"};

/* PREFIX/NAME/ROLE/N to a child that exists. */
static struct child *child_at(struct manager *m, const char *path)
{
	char copy[512], *role_name, *index, *name = NULL, *end;
	enum mc_role role;
	struct guest *g;
	unsigned long n;

	if (strlen(path) >= sizeof(copy))
		return NULL;
	strcpy(copy, path);
	index = strrchr(copy, '/');
	if (!index)
		return NULL;
	*index++ = '\0';
	role_name = strrchr(copy, '/');
	if (!role_name)
		return NULL;
	*role_name++ = '\0';
	n = strtoul(index, &end, 10);
	if (*end || !*index || sd_bus_path_decode(copy, PREFIX, &name) <= 0)
		return NULL;
	g = manager_find(m, name);
	free(name);
	if (!g || mc_role_parse(role_name, (unsigned)n, &role) < 0 || role == MC_ROLE_SUPERVISOR)
		return NULL;
	return g->child[role].pid || g->child[role].given_up ? &g->child[role] : NULL;
}

static int find_child(sd_bus *bus, const char *path, const char *iface, void *userdata, void **ret,
                      sd_bus_error *e)
{
	(void)bus, (void)iface, (void)e;
	*ret = child_at(userdata, path);
	return *ret != NULL;
}

static int list_children(sd_bus *bus, const char *prefix, void *userdata, char ***ret,
                         sd_bus_error *e)
{
	struct manager *m = userdata;
	char **list = calloc(m->nguests * MC_ROLE_MAX + 1, sizeof(*list)), path[256];
	size_t n = 0;

	(void)bus, (void)prefix, (void)e;
	if (!list)
		return -ENOMEM;
	for (struct guest *g = m->guests; g; g = g->next) {
		bus_guest_path(g, path, sizeof(path));
		for (int i = 2; i < MC_ROLE_MAX; i++)
			if (g->child[i].pid &&
			    asprintf(&list[n], "%s/%s/%u", path, mc_role_name((enum mc_role)i),
			             mc_role_index((enum mc_role)i)) > 0)
				n++;
	}
	*ret = list;
	return 0;
}

static int method_restart(sd_bus_message *msg, void *userdata, sd_bus_error *e)
{
	struct child *c = userdata;

	if (c->given_up) {
		c->given_up = false;
		memset(c->death, 0, sizeof(c->death));
		if (child_spawn(c) < 0)
			return bus_error(e, -EIO, "guest %s: mc-%s can't be started", c->g->name,
			                 mc_role_name(c->role));
	} else if (c->pidfd < 0 || syscall(SYS_pidfd_send_signal, c->pidfd, SIGTERM, NULL, 0) < 0) {
		return bus_error(e, -ESRCH, "guest %s: mc-%s isn't running", c->g->name,
		                 mc_role_name(c->role));
	}
	return sd_bus_reply_method_return(msg, NULL);
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
	        SD_BUS_METHOD("Restart", NULL, NULL, method_restart, 0),
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

static int find_of_role(sd_bus *bus, const char *path, const char *iface, void *userdata,
                        void **ret, sd_bus_error *e, const char *role)
{
	struct child *c;
	int r = find_child(bus, path, iface, userdata, ret, e);

	c = *ret;
	return r > 0 && strcmp(mc_role_name(c->role), role) == 0;
}

#define FINDER(name)                                                                               \
	static int find_##name(sd_bus *bus, const char *path, const char *iface, void *userdata,   \
	                       void **ret, sd_bus_error *e)                                        \
	{                                                                                          \
		return find_of_role(bus, path, iface, userdata, ret, e, #name);                    \
	}
FINDER(capture)
FINDER(stage)
FINDER(transport)
FINDER(netgate)
FINDER(restore)

int bus_stage_register(struct manager *m)
{
	static const sd_bus_object_find_t finders[] = {find_capture, find_stage, find_transport,
	                                               find_netgate, find_restore};
	int r = 0;

	for (size_t i = 0; r >= 0 && i < MC_ARRAY_SIZE(role_names); i++) {
		sd_bus_vtable *v;
		enum mc_role role;

		r = mc_role_parse(role_names[i], 0, &role);
		v = r < 0 ? NULL : make_vtable(role);
		if (!v)
			return -ENOMEM;
		r = sd_bus_add_fallback_vtable(m->bus, NULL, PREFIX, MC_IFACE_STAGE, v, finders[i],
		                               m);
	}
	return r < 0 ? r : sd_bus_add_node_enumerator(m->bus, NULL, PREFIX, list_children, m);
}
