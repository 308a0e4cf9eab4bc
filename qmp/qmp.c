/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "../ipc/util.h"

#define ANSWER_MAX (4U << 20)
#define CONNECT_MS 1000

struct qmp {
	int fd;
	pid_t pid;
	char *buf; /* what was read and not yet taken as a line */
	size_t len, size;
	bool eof;
	qmp_event_fn on_event;
	void *event_ctx;
	char error[256];
};

static int read_more(struct qmp *q)
{
	ssize_t n;

	if (q->eof)
		return -ECONNRESET;
	if (q->len + 1 >= q->size) {
		size_t size = q->size * 2;
		char *p;

		if (size > ANSWER_MAX)
			return -EBADMSG;
		p = realloc(q->buf, size);
		if (!p)
			return -ENOMEM;
		q->buf = p;
		q->size = size;
	}
	n = recv(q->fd, q->buf + q->len, q->size - q->len - 1, MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : -ECONNRESET;
	if (n == 0) {
		q->eof = true;
		return -ECONNRESET;
	}
	q->len += (size_t)n;
	q->buf[q->len] = '\0';
	return 0;
}

/* Length of the first complete line, newline included; 0 when there is none. */
static size_t have_line(const struct qmp *q)
{
	const char *nl = q->len ? memchr(q->buf, '\n', q->len) : NULL;

	return nl ? (size_t)(nl - q->buf) + 1 : 0;
}

static void drop_line(struct qmp *q, size_t n)
{
	memmove(q->buf, q->buf + n, q->len - n);
	q->len -= n;
}

static int wait_input(struct qmp *q, uint64_t deadline)
{
	struct pollfd p = {.fd = q->fd, .events = POLLIN};
	uint64_t now = mc_now_ns();
	struct timespec ts;
	int r;

	if (now >= deadline)
		return -ETIMEDOUT;
	ts.tv_sec = (time_t)((deadline - now) / MC_NS_PER_S);
	ts.tv_nsec = (long)((deadline - now) % MC_NS_PER_S);
	r = ppoll(&p, 1, &ts, NULL);
	if (r < 0)
		return errno == EINTR ? 0 : -errno;
	return r ? 0 : -ETIMEDOUT;
}

/* Waits for a complete line. Its length, or -ETIMEDOUT, -ECONNRESET, -EBADMSG. */
static ssize_t next_line(struct qmp *q, uint64_t deadline)
{
	for (;;) {
		size_t n = have_line(q);
		int r;

		if (n)
			return (ssize_t)n;
		r = read_more(q);
		if (r == -EAGAIN)
			r = wait_input(q, deadline);
		if (r < 0)
			return r;
	}
}

enum line_kind { LINE_BAD, LINE_RETURN, LINE_ERROR, LINE_EVENT };

/* Skips a JSON string that begins at @p (on its quote); the byte after it, or NULL. */
static const char *skip_string(const char *p, const char *end)
{
	for (p++; p < end; p++) {
		if (*p == '\\')
			p++;
		else if (*p == '"')
			return p + 1;
	}
	return NULL;
}

static enum line_kind kind_of_key(const char *key, size_t n)
{
	if (n == 6 && memcmp(key, "return", 6) == 0)
		return LINE_RETURN;
	if (n == 5 && memcmp(key, "error", 5) == 0)
		return LINE_ERROR;
	if (n == 5 && memcmp(key, "event", 5) == 0)
		return LINE_EVENT;
	return LINE_BAD;
}

/* What a line is, by the keys of its outermost object; without building a tree. */
static enum line_kind classify(const char *p, size_t len)
{
	const char *end = p + len;
	int depth = 0;

	while (p < end) {
		const char *after;

		if (*p == '{' || *p == '[')
			depth++;
		else if (*p == '}' || *p == ']')
			depth--;
		if (*p != '"') {
			p++;
			continue;
		}
		after = skip_string(p, end);
		if (!after)
			return LINE_BAD;
		if (depth == 1) {
			const char *c = after;

			while (c < end && (*c == ' ' || *c == '\t'))
				c++;
			if (c < end && *c == ':') {
				enum line_kind k = kind_of_key(p + 1, (size_t)(after - p) - 2);

				if (k != LINE_BAD)
					return k;
			}
		}
		p = after;
	}
	return LINE_BAD;
}

static int deliver_event(struct qmp *q, size_t n)
{
	json_t *m = json_loadb(q->buf, n, 0, NULL);
	const char *name = m ? json_string_value(json_object_get(m, "event")) : NULL;

	if (!name) {
		json_decref(m);
		return -EBADMSG;
	}
	if (q->on_event)
		q->on_event(q->event_ctx, name, json_object_get(m, "data"));
	json_decref(m);
	return 0;
}

static void keep_error(struct qmp *q, size_t n)
{
	json_t *m = json_loadb(q->buf, n, 0, NULL);
	const char *desc = json_string_value(json_object_get(json_object_get(m, "error"), "desc"));

	snprintf(q->error, sizeof(q->error), "%s", desc ? desc : "unknown error");
	json_decref(m);
}

/* Waits for an answer; it stays in the buffer, its length is returned. */
static ssize_t wait_answer(struct qmp *q, uint64_t deadline)
{
	for (;;) {
		ssize_t n = next_line(q, deadline);
		int r = 0;

		if (n < 0)
			return n;
		switch (classify(q->buf, (size_t)n)) {
		case LINE_RETURN:
			return n;
		case LINE_ERROR:
			keep_error(q, (size_t)n);
			drop_line(q, (size_t)n);
			return -EREMOTEIO;
		case LINE_EVENT:
			r = deliver_event(q, (size_t)n);
			break;
		case LINE_BAD:
			r = -EBADMSG;
		}
		if (r < 0)
			return r;
		drop_line(q, (size_t)n);
	}
}

static int send_all(struct qmp *q, const char *text, size_t len, int fd, uint64_t deadline)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c = {0};

	while (len) {
		struct iovec iov = {.iov_base = (void *)text, .iov_len = len};
		struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
		struct pollfd p = {.fd = q->fd, .events = POLLOUT};
		ssize_t n;

		if (fd >= 0) {
			m.msg_control = c.buf;
			m.msg_controllen = sizeof(c.buf);
			CMSG_FIRSTHDR(&m)->cmsg_level = SOL_SOCKET;
			CMSG_FIRSTHDR(&m)->cmsg_type = SCM_RIGHTS;
			CMSG_FIRSTHDR(&m)->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &fd, sizeof(fd));
		}
		n = sendmsg(q->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			text += n;
			len -= (size_t)n;
			fd = -1;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -ECONNRESET;
		if (mc_now_ns() >= deadline)
			return -ETIMEDOUT;
		(void)poll(&p, 1, 10);
	}
	return 0;
}

int qmp_send_raw(struct qmp *q, const char *text, size_t len)
{
	q->error[0] = '\0';
	return send_all(q, text, len, -1, mc_now_ns() + 100 * MC_NS_PER_MS);
}

int qmp_wait(struct qmp *q, uint64_t deadline_ns)
{
	ssize_t n = wait_answer(q, deadline_ns);

	if (n < 0)
		return (int)n;
	drop_line(q, (size_t)n);
	return 0;
}

int qmp_dispatch(struct qmp *q)
{
	for (;;) {
		size_t n = have_line(q);
		int r;

		if (!n) {
			r = read_more(q);
			if (r == -EAGAIN)
				return 0;
			if (r < 0)
				return r;
			continue;
		}
		if (classify(q->buf, n) == LINE_EVENT) {
			r = deliver_event(q, n);
			if (r < 0)
				return r;
		}
		/* An answer here is a late one, to a command that was given up. */
		drop_line(q, n);
	}
}

static int command(struct qmp *q, const char *name, json_t *args, int fd, unsigned timeout_ms,
                   json_t **ret)
{
	uint64_t deadline = mc_now_ns() + timeout_ms * MC_NS_PER_MS;
	json_t *m = args ? json_pack("{s:s, s:o}", "execute", name, "arguments", args)
	                 : json_pack("{s:s}", "execute", name);
	char mc_autofree *text = m ? json_dumps(m, JSON_COMPACT) : NULL;
	ssize_t n;
	int r;

	json_decref(m);
	q->error[0] = '\0';
	if (!text)
		return -ENOMEM;
	r = send_all(q, text, strlen(text), fd, deadline);
	if (r == 0)
		r = send_all(q, "\n", 1, -1, deadline);
	if (r < 0)
		return r;
	n = wait_answer(q, deadline);
	if (n < 0)
		return (int)n;
	m = json_loadb(q->buf, (size_t)n, 0, NULL);
	drop_line(q, (size_t)n);
	if (!m)
		return -EBADMSG;
	if (ret)
		*ret = json_incref(json_object_get(m, "return"));
	json_decref(m);
	return 0;
}

int qmp_command(struct qmp *q, const char *name, json_t *args, unsigned timeout_ms, json_t **ret)
{
	return command(q, name, args, -1, timeout_ms, ret);
}

int qmp_command_fd(struct qmp *q, const char *name, json_t *args, int fd, unsigned timeout_ms,
                   json_t **ret)
{
	return command(q, name, args, fd, timeout_ms, ret);
}

int qmp_hmp(struct qmp *q, const char *line, unsigned timeout_ms, char **ret)
{
	json_t *v = NULL;
	int r = qmp_command(q, "human-monitor-command", json_pack("{s:s}", "command-line", line),
	                    timeout_ms, &v);

	if (r < 0)
		return r;
	*ret = json_is_string(v) ? strdup(json_string_value(v)) : NULL;
	json_decref(v);
	return *ret ? 0 : -EBADMSG;
}

static int open_socket(struct qmp *q, const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = CONNECT_MS / 1000};
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (strlen(path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	strcpy(a.sun_path, path);
	q->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (q->fd < 0)
		return -errno;
	/* A full listen queue blocks connect(): bounded by the send time-out. */
	(void)setsockopt(q->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(q->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		return errno == EAGAIN || errno == EINPROGRESS ? -EBUSY : -errno;
	if (getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	q->pid = cred.pid;
	return 0;
}

static int greet(struct qmp *q, unsigned timeout_ms)
{
	ssize_t n = next_line(q, mc_now_ns() + timeout_ms * MC_NS_PER_MS);
	json_t *m;
	bool ok;

	if (n == -ETIMEDOUT)
		return -EBUSY;
	if (n < 0)
		return -EBADMSG;
	m = json_loadb(q->buf, (size_t)n, 0, NULL);
	ok = json_is_object(json_object_get(m, "QMP"));
	json_decref(m);
	drop_line(q, (size_t)n);
	return ok ? qmp_command(q, "qmp_capabilities", NULL, timeout_ms, NULL) : -EBADMSG;
}

int qmp_connect(struct qmp **ret, const char *path, unsigned timeout_ms)
{
	struct qmp *q = calloc(1, sizeof(*q));
	int r;

	if (!q)
		return -ENOMEM;
	q->fd = -1;
	q->size = 65536;
	q->buf = malloc(q->size);
	r = q->buf ? open_socket(q, path) : -ENOMEM;
	if (r == 0)
		r = greet(q, timeout_ms);
	if (r < 0) {
		qmp_free(q);
		return r;
	}
	*ret = q;
	return 0;
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

int qmp_fd(const struct qmp *q)
{
	return q->fd;
}

pid_t qmp_peer_pid(const struct qmp *q)
{
	return q->pid;
}

void qmp_on_event(struct qmp *q, qmp_event_fn fn, void *ctx)
{
	q->on_event = fn;
	q->event_ctx = ctx;
}

const char *qmp_error(const struct qmp *q)
{
	return q->error;
}
