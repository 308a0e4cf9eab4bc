/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A peer of the QMP client that follows a script, in a process of its own. */
#ifndef MC_QMP_TEST_PEER_H
#define MC_QMP_TEST_PEER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "qmp.h"

#define GREETING                                                                                   \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "         \
	"\"package\": \"x\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define STAMP "\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}"
#define LONG  5000 /* ms: a limit that a passing test never meets */

typedef void (*script_fn)(int fd);

struct peer {
	char dir[32], path[64];
	pid_t pid;
};

static inline void say(int fd, const char *text)
{
	size_t len = strlen(text);
	ssize_t n;

	while (len) {
		n = send(fd, text, len, MSG_NOSIGNAL);
		if (n < 0)
			_exit(3);
		text += n;
		len -= (size_t)n;
	}
}

/* Reads a line that must hold @want. */
static inline void hear(int fd, const char *want)
{
	char buf[4096];
	size_t n = 0;

	do {
		if (n + 1 == sizeof(buf) || read(fd, buf + n, 1) != 1)
			_exit(4);
	} while (buf[n++] != '\n');
	buf[n] = '\0';
	if (!strstr(buf, want)) {
		fprintf(stderr, "peer: heard %s, not %s\n", buf, want);
		_exit(5);
	}
}

/* Answers qmp_capabilities with @answer, a JSON object whose id is filled in. */
static inline void negotiate(int fd, const char *answer)
{
	char buf[4096], text[512];
	size_t n = 0;
	char *id;

	do {
		if (n + 1 == sizeof(buf) || read(fd, buf + n, 1) != 1)
			_exit(4);
	} while (buf[n++] != '\n');
	buf[n] = '\0';
	id = strstr(buf, "\"id\":");
	if (!strstr(buf, "qmp_capabilities") || !id)
		_exit(5);
	id[strlen("\"id\":\"") + strcspn(id + strlen("\"id\":\""), "\"") + 1] = '\0';
	snprintf(text, sizeof(text), "{%s, %s}\r\n", answer, id);
	say(fd, text);
}

static inline void hear_eof(int fd)
{
	char c;

	if (read(fd, &c, 1) > 0)
		_exit(6);
}

static inline void welcome(int fd)
{
	say(fd, GREETING);
	negotiate(fd, "\"return\": {}");
}

static inline int listen_at(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 4), 0);
	return fd;
}

static inline void peer_start(struct peer *p, script_fn script)
{
	int l, fd;

	strcpy(p->dir, "/tmp/test-qmp-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->path, sizeof(p->path), "%s/qmp", p->dir);
	l = listen_at(p->path);
	fflush(NULL);
	p->pid = fork();
	assert_true(p->pid >= 0);
	if (!p->pid) {
		alarm(30);
		fd = accept(l, NULL, NULL);
		script(fd);
		_exit(0);
	}
	close(l);
}

/* The peer must have gone through its script to the end. */
static inline void peer_end(struct peer *p)
{
	int status;

	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	unlink(p->path);
	rmdir(p->dir);
	assert_int_equal(status, 0);
}

struct events {
	unsigned n;
	char last[32];
	char detail[64];
};

static inline void on_event(void *ctx, const char *name, json_t *data)
{
	struct events *e = ctx;
	const char *reason = json_string_value(json_object_get(data, "reason"));

	e->n++;
	snprintf(e->last, sizeof(e->last), "%s", name);
	snprintf(e->detail, sizeof(e->detail), "%s", reason ? reason : "");
}

static inline struct qmp *connected(struct peer *p, script_fn script, struct events *e)
{
	struct qmp *q = NULL;

	peer_start(p, script);
	assert_int_equal(qmp_connect(&q, p->path, LONG), 0);
	*e = (struct events){0};
	qmp_on_event(q, on_event, e);
	return q;
}

#endif
