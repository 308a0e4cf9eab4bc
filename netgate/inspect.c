/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `mc-netgate --inspect`: tries whether NICs can be held by the kernel's own gate.
 * `mc-netgate --clear`: removes the gates of a guest that has no netgate any more.
 * Both need no arena, and print an array of sentences about what can't be done.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "../ipc/util.h"
#include "netgate.h"
#include "plug.h"

/* IFNAME[,netns=NS] */
static int parse_nic(const char *text, struct mc_nic *n)
{
	const char *comma = strchr(text, ',');
	size_t len = comma ? (size_t)(comma - text) : strlen(text);

	*n = (struct mc_nic){.kind = MC_GATE_PLUG};
	if (!len || len >= sizeof(n->tap))
		return -EINVAL;
	memcpy(n->tap, text, len);
	if (!comma)
		return 0;
	if (strncmp(comma, ",netns=", 7) != 0 || strlen(comma + 7) >= sizeof(n->netns))
		return -EINVAL;
	strcpy(n->netns, comma + 7);
	return 0;
}

struct order {
	const char *guest;
	struct mc_nic nic[MC_NICS_MAX];
	unsigned n;
	bool clear, passes, fenced;
};

static int parse(int argc, char **argv, struct order *o)
{
	static const struct option options[] = {
	        {"inspect", no_argument, NULL, 'i'},
	        {"clear", no_argument, NULL, 'c'},
	        {"guest", required_argument, NULL, 'g'},
	        {"nic", required_argument, NULL, 'n'},
	        {"passes", no_argument, NULL, 'p'},
	        {"fenced", no_argument, NULL, 'f'},
	        {NULL, 0, NULL, 0},
	};
	int ch;

	while ((ch = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (ch == 'g')
			o->guest = optarg;
		else if (ch == 'c')
			o->clear = true;
		else if (ch == 'p')
			o->passes = true;
		else if (ch == 'f')
			o->fenced = true;
		else if (ch == 'n' &&
		         (o->n == MC_NICS_MAX || parse_nic(optarg, &o->nic[o->n++]) < 0))
			return -EINVAL;
		else if (ch == '?')
			return -EINVAL;
	}
	return optind == argc && o->n ? 0 : -EINVAL;
}

int netgate_inspect(int argc, char **argv)
{
	struct order o = {.guest = ""};
	json_t *refusals;
	int status;

	if (parse(argc, argv, &o) < 0) {
		fprintf(stderr,
		        "usage: mc-netgate --inspect --guest NAME --nic IFNAME[,netns=NS]...\n"
		        "       mc-netgate --clear --guest NAME [--passes] [--fenced] --nic ...\n");
		return 2;
	}
	refusals = json_array();
	for (unsigned i = 0; i < o.n; i++) {
		char why[512] = "";
		int r = o.clear ? plug_clear(&o.nic[i], o.guest, o.passes, o.fenced, why,
		                             sizeof(why))
		                : plug_probe(&o.nic[i], o.guest, why, sizeof(why));

		if (r < 0)
			json_array_append_new(refusals, json_string(why));
	}
	status = json_array_size(refusals) > 0;
	json_dumpf(refusals, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(refusals);
	return status;
}
