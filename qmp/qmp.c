/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "../ipc/util.h"
#include "io.h"
#include "qmp-private.h"

#define SEND_NS   MC_NS_PER_S /* a monitor that takes no command for so long is stuck */
#define READS_MAX 64          /* by qmp_dispatch(): a flood of events must not keep us */

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

void qmp_watch_peer(struct qmp *q, int fd, bool (*ends)(void *ctx), void *ctx)
{
	q->peer_fd = fd;
	q->peer_ends = ends;
	q->peer_ctx = ctx;
}

void qmp_on_event(struct qmp *q, qmp_event_fn fn, void *ctx)
{
	q->on_event = fn;
	q->event_ctx = ctx;
}

void qmp_on_wait(struct qmp *q, void (*fn)(void *ctx, uint64_t ns), void *ctx)
{
	q->on_wait = fn;
	q->wait_ctx = ctx;
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

int qmp_dispatch(struct qmp *q)
{
	int r = 1;

	for (unsigned i = 0; i < READS_MAX && r > 0; i++)
		r = qmp_read_some(q);
	return r < 0 ? r : 0;
}

/* The peer took nothing more: what it sent before is still to be read and delivered. */
static int send_failed(struct qmp *q, int error)
{
	int r;

	if (error != -EPIPE && error != -ECONNRESET)
		return qmp_broken(q, error);
	do
		r = qmp_read_some(q);
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
	if (commands > QMP_PENDING_MAX - q->pending)
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

/* QEMU ends: what it wrote before that is in the socket. */
static int last_words(struct qmp *q, bool (*ready)(const struct qmp *q))
{
	int r;

	do
		r = qmp_read_some(q);
	while (r > 0);
	return ready(q) ? 0 : r < 0 ? r : qmp_broken(q, -ECONNRESET);
}

/* Reads until *@ready, or nothing more will come. */
static int read_until(struct qmp *q, bool (*ready)(const struct qmp *q), uint64_t deadline)
{
	int r;

	while (!ready(q)) {
		r = qmp_read_some(q);
		if (r < 0)
			return ready(q) ? 0 : r;
		if (r > 0 && mc_now_ns() < deadline)
			continue;
		if (ready(q))
			break;
		r = qmp_io_wait_two(q->fd, q->peer_fd, deadline);
		if (r == 1 && q->peer_ends(q->peer_ctx))
			return last_words(q, ready);
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

static int wait_result(struct qmp *q, uint64_t deadline, struct qmp_result *ret)
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
	struct qmp_result res;

	return wait_result(q, deadline_ns, &res);
}

int qmp_wait_running(struct qmp *q, uint64_t deadline_ns, bool *running)
{
	struct qmp_result res;
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
	if (q->on_wait)
		q->on_wait(q->wait_ctx, timeout_ms * MC_NS_PER_MS);
	r = run_text(q, text, (size_t)len, fd, deadline, ret ? &value : NULL);
	if (q->on_wait)
		q->on_wait(q->wait_ctx, 0);
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
	q->fd = q->peer_fd = -1;
	q->size = QMP_LINE_FIRST;
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
