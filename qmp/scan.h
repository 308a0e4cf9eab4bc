/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Scanner for one line of QMP: tells answers from events without building a tree and without
 * allocating, so that it may run while the guest is paused.  Private to libmcqmp.
 */
#ifndef MC_QMP_SCAN_H
#define MC_QMP_SCAN_H

#include <stddef.h>

#define QMP_DEPTH_MAX 512 /* nesting of objects and arrays that is accepted */

enum qmp_kind {
	QMP_KIND_RETURN,
	QMP_KIND_ERROR,
	QMP_KIND_EVENT,
	QMP_KIND_GREETING,
};

/* A JSON value within a line. */
struct qmp_span {
	const char *p;
	size_t len;
};

/*
 * Classifies @line by its *top-level* keys; *value is the value of the deciding key.
 * The line must be one JSON object: brackets match, strings end, nothing follows.
 * 0; -EBADMSG: not so, nested too deeply, or none or several of the deciding keys.
 */
int qmp_scan(const char *line, size_t len, enum qmp_kind *kind, struct qmp_span *value);

/*
 * Finds @key in the object @obj (not in objects within).  0, -ENOENT, -EBADMSG.
 */
int qmp_scan_find(const struct qmp_span *obj, const char *key, struct qmp_span *value);

/*
 * Text of the JSON string @s into @buf: escapes resolved (\u above 7 bit: '?'), control
 * characters replaced by blanks, cut to @size.  "" when @s is no string.
 */
void qmp_scan_text(const struct qmp_span *s, char *buf, size_t size);

#endif
