/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What QEMU sends: the greeting, answers in the order of the commands, events. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "qmp-private.h"
#include "scan.h"

#define LINE_MAX_ (4U << 20) /* longest message taken from QEMU */

int qmp_broken(struct qmp *q, int error)
{
	if (!q->dead)
		q->dead = error;
	return q->dead;
}

static int deliver_event(struct qmp *q, const char *line, size_t len)
{
	const char *name;
	json_t *msg;

	if (!q->on_event)
		return 0;
	msg = json_loadb(line, len, 0, NULL);
	if (!msg)
		return -EBADMSG;
	name = json_string_value(json_object_get(msg, "event"));
	if (name)
		q->on_event(q->event_ctx, name, json_object_get(msg, "data"));
	json_decref(msg);
	return name ? 0 : -EBADMSG;
}

static int running_of(enum qmp_kind kind, const struct qmp_span *value)
{
	struct qmp_span v;

	if (kind != QMP_KIND_RETURN || qmp_scan_find(value, "running", &v) < 0)
		return -1;
	if (v.len == 4 && !memcmp(v.p, "true", 4))
		return 1;
	return v.len == 5 && !memcmp(v.p, "false", 5) ? 0 : -1;
}

/* An answer to the oldest command that has none. */
static int take_answer(struct qmp *q, enum qmp_kind kind, const struct qmp_span *value)
{
	struct qmp_span desc;
	int result = 0;

	if (q->stale) {
		q->stale--;
		return 0;
	}
	if (kind == QMP_KIND_ERROR) {
		result = -EREMOTEIO;
		if (qmp_scan_find(value, "desc", &desc) < 0)
			return -EBADMSG;
		qmp_scan_text(&desc, q->error, sizeof(q->error));
	}
	if (q->done < q->pending) {
		q->result[q->done].r = result;
		q->result[q->done++].running = running_of(kind, value);
		return 0;
	}
	if (!q->waiting || q->answered)
		return -EBADMSG;
	q->answered = true;
	q->answer = result;
	if (result || !q->returns)
		return 0;
	*q->returns = json_loadb(value->p, value->len, JSON_DECODE_ANY, NULL);
	return *q->returns ? 0 : -EBADMSG;
}

static int take_greeting(struct qmp *q, const struct qmp_span *value)
{
	struct qmp_span caps;

	q->has_oob = qmp_scan_find(value, "capabilities", &caps) == 0 &&
	             memmem(caps.p, caps.len, "\"oob\"", 5);
	return 0;
}

/* True: an answer that the client before us was to get. */
static bool is_strangers(const struct qmp *q, const char *line, size_t len)
{
	struct qmp_span msg = {line, len}, id;
	char text[sizeof(q->first)];

	if (!q->first[0])
		return false;
	if (qmp_scan_find(&msg, "id", &id) < 0)
		return true;
	qmp_scan_text(&id, text, sizeof(text));
	return strcmp(text, q->first) != 0;
}

static int take_line(struct qmp *q, const char *line, size_t len)
{
	enum qmp_kind kind = QMP_KIND_GREETING;
	struct qmp_span value = {NULL, 0};
	int r;

	r = qmp_scan(line, len, &kind, &value);
	if (r < 0)
		return r;
	if (!q->greeted) {
		q->greeted = kind == QMP_KIND_GREETING;
		return q->greeted ? take_greeting(q, &value) : -EBADMSG;
	}
	switch (kind) {
	case QMP_KIND_EVENT:
		return deliver_event(q, line, len);
	case QMP_KIND_RETURN:
	case QMP_KIND_ERROR:
		return is_strangers(q, line, len) ? 0 : take_answer(q, kind, &value);
	default:
		return -EBADMSG;
	}
}

/* Handles all whole lines of the buffer and moves the rest to its front. */
static int take_lines(struct qmp *q)
{
	size_t start = 0, len;
	char *nl;
	int r;

	while ((nl = memchr(q->buf + q->scanned, '\n', q->used - q->scanned))) {
		len = (size_t)(nl - (q->buf + start));
		r = take_line(q, q->buf + start, len);
		if (r < 0)
			return qmp_broken(q, r);
		start += len + 1;
		q->scanned = start;
	}
	q->used -= start;
	memmove(q->buf, q->buf + start, q->used);
	q->scanned = q->used;
	return 0;
}

/* Makes room for more input. -EBADMSG: no newline within the longest line. */
static int make_room(struct qmp *q)
{
	size_t size = q->size * 2;
	char *buf;

	if (q->used < q->size)
		return 0;
	if (size > LINE_MAX_)
		return qmp_broken(q, -EBADMSG);
	buf = realloc(q->buf, size);
	if (!buf)
		return -ENOMEM;
	q->buf = buf;
	q->size = size;
	return 0;
}

int qmp_read_some(struct qmp *q)
{
	ssize_t n;
	int r;

	if (q->dead)
		return q->dead;
	r = make_room(q);
	if (r < 0)
		return r;
	n = recv(q->fd, q->buf + q->used, q->size - q->used, MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : qmp_broken(q, -ECONNRESET);
	if (n == 0)
		return qmp_broken(q, -ECONNRESET);
	q->used += (size_t)n;
	r = take_lines(q);
	return r < 0 ? r : 1;
}
