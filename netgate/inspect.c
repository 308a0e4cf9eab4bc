/* SPDX-License-Identifier: GPL-2.0-or-later */
/* `mc-netgate --inspect`: tries whether NICs can be held by the kernel's own gate. */
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

static int usage(void)
{
	fprintf(stderr, "usage: mc-netgate --inspect --guest NAME --nic IFNAME[,netns=NS]...\n");
	return 2;
}

int netgate_inspect(int argc, char **argv)
{
	static const struct option options[] = {
	        {"inspect", no_argument, NULL, 'i'},
	        {"guest", required_argument, NULL, 'g'},
	        {"nic", required_argument, NULL, 'n'},
	        {NULL, 0, NULL, 0},
	};
	const char *guest = "";
	struct mc_nic nic[MC_NICS_MAX];
	unsigned n = 0;
	json_t *refusals;
	int ch, status;

	while ((ch = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (ch == 'g')
			guest = optarg;
		else if (ch == 'n' && (n == MC_NICS_MAX || parse_nic(optarg, &nic[n++]) < 0))
			return usage();
		else if (ch == '?')
			return usage();
	}
	if (optind != argc || !n)
		return usage();
	refusals = json_array();
	for (unsigned i = 0; i < n; i++) {
		char why[512] = "";

		if (plug_probe(&nic[i], guest, why, sizeof(why)) < 0)
			json_array_append_new(refusals, json_string(why));
	}
	status = json_array_size(refusals) > 0;
	json_dumpf(refusals, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(refusals);
	return status;
}
