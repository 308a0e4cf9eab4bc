/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What of the guest reaches disks and networks. */
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

int vm_check_disks(struct qmp *q, struct vm_refusals *rf)
{
	json_t *disks = NULL, *d;
	size_t n;
	int r = qmp_command(q, "query-block", NULL, VM_TIMEOUT_MS, &disks);

	if (r < 0)
		return r;
	json_array_foreach (disks, n, d) {
		json_t *in = json_object_get(d, "inserted");
		const char *name = json_string_value(json_object_get(d, "device"));
		const char *qdev = json_string_value(json_object_get(d, "qdev"));
		const char *file = json_string_value(json_object_get(in, "file"));

		if (!name || !name[0])
			name = qdev ? qdev : "?";
		/* without a qdev no device of the guest can write to it */
		if (!qdev || !in || json_is_true(json_object_get(in, "ro")) ||
		    vm_accepted(rf, name) || vm_accepted(rf, "disk"))
			continue;
		r = vm_refuse(rf,
		              "disk %s (%s) is writable and isn't replicated; attach it read-only, "
		              "or protect with --accept disk if the standby has it by other means",
		              name, file ? file : "no file");
		if (r < 0)
			break;
	}
	json_decref(disks);
	return r;
}

/* A network back end as `info network` shows it. */
struct netdev {
	char id[64];
	char type[64];
	char ifname[16]; /* of a tap; "" otherwise */
};

/* "ID: index=N,type=T,...", after " \ " when it is the peer of a NIC; else false. */
static bool parse_netdev(pid_t pid, const char *line, struct netdev *n)
{
	size_t len = strcspn(line, "\r\n");
	mc_autofree char *text = strndup(line + strspn(line, " \\"), len);

	*n = (struct netdev){0};
	if (!text)
		return false;
	text[strcspn(text, "\r\n")] = '\0';
	if (!strncmp(text, "hub ", 4)) {
		snprintf(n->id, sizeof(n->id), "%.63s", text);
		strcpy(n->type, "hubport");
		return true;
	}
	if (sscanf(text, "%63[^:]: index=%*d,type=%63[^,]", n->id, n->type) != 2)
		return false;
	if (!strcmp(n->type, "tap"))
		(void)vm_tap_name(pid, text, n->ifname);
	return true;
}

static bool in_gate(const char *gated, const struct netdev *n)
{
	return vm_in_list(gated, n->id, strlen(n->id)) ||
	       (n->ifname[0] && vm_in_list(gated, n->ifname, strlen(n->ifname)));
}

static bool any_of(const char *type, const char *const *list)
{
	for (; *list; list++)
		if (!strcmp(type, *list))
			return true;
	return false;
}

static int check_netdev(const struct netdev *n, const char *gated, struct vm_refusals *rf)
{
	/* what a gate can stand in front of, and what else carries frames and keeps no state */
	static const char *const holdable[] = {"dgram", "tap", NULL};
	static const char *const plain[] = {"dgram", "tap",    "stream", "socket",  "l2tpv3",
	                                    "vde",   "bridge", "af-xdp", "hubport", NULL};

	if (!strcmp(n->type, "nic") || vm_accepted(rf, n->type))
		return 0;
	if (!gated && any_of(n->type, plain))
		return 0;
	if (gated && any_of(n->type, holdable)) {
		if (in_gate(gated, n))
			return 0;
		return vm_refuse(
		        rf,
		        "what network back end %s (%s) sends isn't held by a gate; add %s%s%s, "
		        "or ask for --gate none",
		        n->id, n->type, n->ifname[0] ? "--nic " : "--relay ",
		        n->ifname[0] ? n->ifname : n->id, n->ifname[0] ? "" : "=unix:PATH,tap=IF");
	}
	return vm_refuse(rf,
	                 "network back end %s is of type %s, which no gate can hold and which the "
	                 "standby can't continue; use -netdev dgram with --relay, or protect with "
	                 "--accept %s",
	                 n->id, n->type, n->type);
}

/* A gate in front of a back end that isn't there would hold nothing. */
static int check_gates(pid_t pid, const char *text, const char *gated, struct vm_refusals *rf)
{
	for (const char *p = gated; p && *p;) {
		size_t skip = strspn(p, " ,"), w = strcspn(p + skip, " ,");
		bool found = false;

		for (const char *line = text; line && w; line = strchr(line, '\n')) {
			struct netdev n;

			line += *line == '\n';
			if (!parse_netdev(pid, line, &n) || !strcmp(n.type, "nic"))
				continue;
			found = found || (strlen(n.id) == w && !memcmp(n.id, p + skip, w)) ||
			        (strlen(n.ifname) == w && !memcmp(n.ifname, p + skip, w));
		}
		if (w && !found &&
		    vm_refuse(rf,
		              "a gate is asked for %.*s, but QEMU has no network back end of that "
		              "name; "
		              "see its -netdev id=, or ifname= of a tap",
		              (int)w, p + skip) < 0)
			return -ENOMEM;
		p += skip + w;
	}
	return 0;
}

int vm_check_network(struct qmp *q, pid_t pid, const char *gated, struct vm_refusals *rf)
{
	mc_autofree char *text = NULL;
	int r = qmp_hmp(q, "info network", VM_TIMEOUT_MS, &text);

	if (r < 0)
		return r;
	for (const char *line = text; line && r == 0; line = strchr(line, '\n')) {
		struct netdev n;

		line += *line == '\n';
		if (parse_netdev(pid, line, &n))
			r = check_netdev(&n, gated, rf);
	}
	return r < 0 ? r : check_gates(pid, text, gated, rf);
}
