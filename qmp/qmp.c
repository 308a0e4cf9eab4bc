/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "../ipc/util.h"
#include "io.h"
#include "qmp.h"
#include "scan.h"

#define LINE_MAX_   (4U << 20)  /* longest message taken from QEMU */
#define LINE_FIRST  (64U << 10) /* buffer to begin with: answers in a pause are short */
#define PENDING_MAX 8U          /* raw commands whose results may be open */
#define SEND_NS     MC_NS_PER_S /* a monitor that takes no command for so long is stuck */
#define READS_MAX   64          /* by qmp_dispatch(): a flood of events must not keep us */

/*
 * QEMU answers in order.  Of the commands sent, the oldest `stale` ones have nobody who
 * waits for them any more (timed out); then come `pending` raw ones, for which result[] has
 * the first `done` results; then the one of qmp_command(), if `waiting`.
 */
struct result {
	int r;
	int running; /* answer to query-status: 0 or 1; -1: another answer */
};

struct qmp {
	int fd;
	int dead; /* negative errno: of no more use */
	pid_t pid;
	bool greeted, has_oob;
	const char *begun; /* command of which QEMU has all but its end */
	size_t begun_len;  /* what was sent of it */
	qmp_event_fn on_event;
	void *event_ctx;

	char *buf;
	size_t used, size;
	size_t scanned; /* bytes of buf known to hold no newline */

	unsigned stale, pending, done;
	struct result result[PENDING_MAX];
	bool waiting, answered;
	int answer;       /* of the waiting command */
	json_t **returns; /* where its value goes; NULL: not wanted */
	char error[512];
	/*
	 * id of our first command.  QEMU may still have to answer what a client before us asked
	 * (it died waiting), and tells us: everything before this id isn't ours.
	 */
	char first[48];
};

int qmp_fd(const struct qmp *q)
{
	return q->fd;
}

pid_t qmp_peer_pid(const struct qmp *q)
{
	return q->pid;
}

const char *qmp_error(const struct qmp *q)
{
	return q->error;
}

void qmp_on_event(struct qmp *q, qmp_event_fn fn, void *ctx)
{
	q->on_event = fn;
	q->event_ctx = ctx;
}

struct qmp *qmp_free(struct qmp *q)
{
	if (!q)
		return NULL;
	mc_closep(&q->fd);
	free(q->buf);
	free(q);
	return NULL;
}

static void qmp_freep(struct qmp **q)
{
	qmp_free(*q);
}

static int qmp_broken(struct qmp *q, int error)
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

/* Reads once. 1: something came; 0: nothing there; negative errno. */
static int read_some(struct qmp *q)
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

int qmp_dispatch(struct qmp *q)
{
	int r = 1;

	for (unsigned i = 0; i < READS_MAX && r > 0; i++)
		r = read_some(q);
	return r < 0 ? r : 0;
}

/* The peer took nothing more: what it sent before is still to be read and delivered. */
static int send_failed(struct qmp *q, int error)
{
	int r;

	if (error != -EPIPE && error != -ECONNRESET)
		return qmp_broken(q, error);
	do
		r = read_some(q);
	while (r > 0);
	return qmp_broken(q, r < 0 ? r : -ECONNRESET);
}

static int send_all(struct qmp *q, const char *text, size_t len, int fd)
{
	bool partly = false;
	int r;

	if (q->dead)
		return q->dead;
	r = qmp_io_send(q->fd, text, len, fd, mc_now_ns() + SEND_NS, &partly);
	if (r == -ETIMEDOUT && partly) /* what follows would not begin a command */
		return qmp_broken(q, -EBADMSG);
	return r < 0 && r != -ETIMEDOUT ? send_failed(q, r) : r;
}

int qmp_send_raw(struct qmp *q, const char *text, size_t len)
{
	unsigned commands = 0;
	int r;

	for (size_t i = 0; i < len; i++)
		commands += text[i] == '\n';
	if (!len || text[len - 1] != '\n' || len < q->begun_len ||
	    (q->begun && memcmp(text, q->begun, q->begun_len) != 0))
		return -EINVAL;
	if (commands > PENDING_MAX - q->pending)
		return -EBUSY;
	q->error[0] = '\0';
	r = send_all(q, text + q->begun_len, len - q->begun_len, -1);
	if (r < 0)
		return r;
	q->begun = NULL;
	q->begun_len = 0;
	q->pending += commands;
	return 0;
}

int qmp_begin(struct qmp *q, const char *text, size_t len)
{
	int r;

	if (q->begun || len < 3 || memchr(text, '\n', len) != text + len - 1 ||
	    text[len - 2] != '}')
		return -EINVAL;
	r = send_all(q, text, len - 2, -1);
	if (r < 0)
		return r;
	q->begun = text;
	q->begun_len = len - 2;
	return 0;
}

/* A bracket that closes nothing: QEMU drops what it has and answers with an error. */
static int drop_begun(struct qmp *q)
{
	int r = send_all(q, "]\n", 2, -1);

	if (r < 0)
		return r;
	q->begun = NULL;
	q->begun_len = 0;
	q->stale++;
	return 0;
}

/* Reads until *@ready, or nothing more will come. */
static int read_until(struct qmp *q, bool (*ready)(const struct qmp *q), uint64_t deadline)
{
	int r;

	while (!ready(q)) {
		r = read_some(q);
		if (r < 0)
			return ready(q) ? 0 : r;
		if (r > 0 && mc_now_ns() < deadline)
			continue;
		if (ready(q))
			break;
		r = qmp_io_wait(q->fd, POLLIN, deadline);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool have_raw(const struct qmp *q)
{
	return q->done > 0;
}

static bool have_answer(const struct qmp *q)
{
	return q->answered;
}

static bool have_greeting(const struct qmp *q)
{
	return q->greeted;
}

static int wait_result(struct qmp *q, uint64_t deadline, struct result *ret)
{
	int r;

	if (!q->pending)
		return -EINVAL;
	r = read_until(q, have_raw, deadline);
	if (r < 0)
		return r;
	*ret = q->result[0];
	q->done--;
	q->pending--;
	memmove(q->result, q->result + 1, q->done * sizeof(q->result[0]));
	return ret->r;
}

int qmp_wait(struct qmp *q, uint64_t deadline_ns)
{
	struct result res;

	return wait_result(q, deadline_ns, &res);
}

int qmp_wait_running(struct qmp *q, uint64_t deadline_ns, bool *running)
{
	struct result res;
	int r = wait_result(q, deadline_ns, &res);

	if (r < 0)
		return r;
	if (res.running < 0)
		return -EBADMSG;
	*running = res.running;
	return 0;
}

static int run_text(struct qmp *q, const char *text, size_t len, int fd, uint64_t deadline,
                    json_t **ret)
{
	int r;

	q->error[0] = '\0';
	/* Whoever left raw commands unanswered has given them up. */
	q->stale += q->pending - q->done;
	q->pending = q->done = 0;
	r = q->begun ? drop_begun(q) : 0;
	if (r == 0)
		r = send_all(q, text, len, fd);
	if (r < 0)
		return r;
	q->waiting = true;
	q->answered = false;
	q->returns = ret;
	r = read_until(q, have_answer, deadline);
	if (r == -ETIMEDOUT)
		q->stale++;
	q->waiting = q->answered = false;
	q->returns = NULL;
	return r < 0 ? r : q->answer;
}

int qmp_command_fd(struct qmp *q, const char *name, json_t *args, int fd, unsigned timeout_ms,
                   json_t **ret)
{
	uint64_t deadline = mc_now_ns() + timeout_ms * MC_NS_PER_MS;
	mc_autofree char *json = NULL, *text = NULL;
	json_t *value = NULL;
	json_t *msg;
	int len, r;

	if (args)
		msg = json_pack("{s:s, s:o}", "execute", name, "arguments", args);
	else
		msg = json_pack("{s:s}", "execute", name);
	json = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
	json_decref(msg);
	len = json ? asprintf(&text, "%s\n", json) : -1;
	if (len < 0) {
		text = NULL;
		return -ENOMEM;
	}
	r = run_text(q, text, (size_t)len, fd, deadline, ret ? &value : NULL);
	if (r < 0)
		json_decref(value);
	else if (ret)
		*ret = value;
	return r;
}

int qmp_command(struct qmp *q, const char *name, json_t *args, unsigned timeout_ms, json_t **ret)
{
	return qmp_command_fd(q, name, args, -1, timeout_ms, ret);
}

static struct qmp *qmp_new(void)
{
	struct qmp *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->fd = -1;
	q->size = LINE_FIRST;
	q->buf = malloc(q->size);
	if (!q->buf) {
		free(q);
		return NULL;
	}
	/* Set before anything is read: a stranger's answer may come with the greeting. */
	snprintf(q->first, sizeof(q->first), "mc-%d-%llu", (int)getpid(),
	         (unsigned long long)mc_now_ns());
	return q;
}

/* Greeting and capabilities. */
static int negotiate(struct qmp *q, uint64_t deadline)
{
	/* With oob QEMU reads on while it executes a command, and doesn't begin to read then. */
	static const char oob[] = ",\"arguments\":{\"enable\":[\"oob\"]}";
	char capabilities[160];
	int r = read_until(q, have_greeting, deadline);

	if (r < 0) {
		/* A peer that hangs up before its greeting doesn't speak QMP. */
		return r == -ETIMEDOUT ? -EBUSY : r == -ECONNRESET ? -EBADMSG : r;
	}
	snprintf(capabilities, sizeof(capabilities),
	         "{\"execute\":\"qmp_capabilities\",\"id\":\"%s\"%s}\n", q->first,
	         q->has_oob ? oob : "");
	r = run_text(q, capabilities, strlen(capabilities), -1, deadline, NULL);
	q->first[0] = '\0';
	return r == -EREMOTEIO ? -EBADMSG : r;
}

int qmp_connect(struct qmp **ret, const char *path, unsigned timeout_ms)
{
	uint64_t deadline = mc_now_ns() + timeout_ms * MC_NS_PER_MS;
	mc_cleanup(qmp_freep) struct qmp *q = qmp_new();
	int r;

	if (!q)
		return -ENOMEM;
	r = qmp_io_connect(path, &q->fd, &q->pid);
	if (r == 0)
		r = negotiate(q, deadline);
	if (r == 0)
		*ret = mc_take_ptr(q);
	return r;
}

int qmp_open(struct qmp **ret, int fd, pid_t pid, unsigned timeout_ms)
{
	mc_cleanup(qmp_freep) struct qmp *q = qmp_new();
	int r;

	if (!q)
		return -ENOMEM;
	q->fd = fd;
	q->pid = pid;
	r = negotiate(q, mc_now_ns() + timeout_ms * MC_NS_PER_MS);
	if (r == 0)
		*ret = mc_take_ptr(q);
	else
		q->fd = -1; /* stays the caller's */
	return r;
}
