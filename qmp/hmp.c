/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <string.h>

#include "qmp.h"

int qmp_hmp(struct qmp *q, const char *line, unsigned timeout_ms, char **ret)
{
	const char *text;
	json_t *v = NULL;
	int r;

	r = qmp_command(q, "human-monitor-command", json_pack("{s:s}", "command-line", line),
	                timeout_ms, &v);
	if (r < 0)
		return r;
	text = json_string_value(v);
	if (!text)
		r = -EBADMSG;
	else if (!(*ret = strdup(text)))
		r = -ENOMEM;
	json_decref(v);
	return r;
}
