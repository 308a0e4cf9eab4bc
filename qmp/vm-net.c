/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where QEMU's -netdev dgram back ends listen. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

#define TIMEOUT_MS 3000

/*
 * Lines of `info network`: " \ ID: index=0,type=dgram,udp=LOCAL:REMOTE" (QEMU 7.2 writes "udp="
 * for unix sockets too).  REMOTE begins with '/', so the last ":/" divides the two.
 */
int vm_dgram_paths(struct qmp *q, json_t **ret)
{
	char mc_autofree *text = NULL;
	json_t *map = json_object();
	int r = qmp_hmp(q, "info network", TIMEOUT_MS, &text);

	for (const char *line = text; r == 0 && line && *line;) {
		const char *p = line + strspn(line, " \\");
		char id[64], rest[512], *sep = NULL;

		if (sscanf(p, "%63[^:]: index=%*d,type=dgram,udp=%511[^\r\n]", id, rest) == 2)
			for (char *s = rest; (s = strstr(s, ":/")); s++)
				sep = s;
		if (sep && rest[0] == '/') {
			*sep = '\0';
			json_object_set_new(map, id, json_string(rest));
		}
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	if (r < 0) {
		json_decref(map);
		return r;
	}
	*ret = map;
	return 0;
}
