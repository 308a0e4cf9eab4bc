/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "messages.h"
#include "supervisor.h"
#include "text.h"

#define HISTORY_MAX (256 * 1024)
#define READ_MAX    (64 * 1024)

static void history_path(const struct manager *m, const char *guest, const char *suffix, char *buf,
                         size_t len)
{
	snprintf(buf, len, "%s/%s.events%s", m->state_dir, guest, suffix);
}

/* What was cut off by a full disk, or by the host's death, mustn't take the next line along. */
static bool ends_in_line(int fd, off_t size)
{
	char last = '\n';

	return size == 0 || pread(fd, &last, 1, size - 1) != 1 || last == '\n';
}

static int append(const char *path, const char *old, const char *line)
{
	int mc_autoclose fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	struct iovec v[2] = {{.iov_base = (void *)"\n", .iov_len = 1},
	                     {.iov_base = (void *)line, .iov_len = strlen(line)}};
	struct stat st;
	bool whole;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size > HISTORY_MAX) {
		/* One older file is kept; rather no event than a file that grows. */
		if (rename(path, old) < 0)
			return -errno;
		mc_closep(&fd);
		fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (fd < 0)
			return -errno;
		st.st_size = 0;
	}
	whole = ends_in_line(fd, st.st_size);
	n = writev(fd, v + whole, 2 - whole);
	if (n < 0)
		return -errno;
	return (size_t)n < v[1].iov_len + !whole ? -ENOSPC : 0;
}

/* What an operator must act on, or look for later: ids of the journal's catalog. */
static const struct {
	const char *event, *word; /* event's name, and a word of its text or NULL */
	const char *id;           /* NULL: none, but more than a note */
	int level;
} messages[] = {
        {"state", "-> PROTECTED", MC_MESSAGE_PROTECTED, LOG_NOTICE},
        {"state", "-> HELD", MC_MESSAGE_HELD, LOG_CRIT},
        {"state", "-> DEGRADED", MC_MESSAGE_DEGRADED, LOG_ERR},
        {"state", "-> STOPPED", MC_MESSAGE_STOPPED, LOG_ERR},
        {"state", "-> ACTIVE", MC_MESSAGE_ACTIVE, LOG_CRIT},
        {"given-up", NULL, MC_MESSAGE_GIVEN_UP, LOG_CRIT},
        {"process-died", NULL, MC_MESSAGE_PROCESS_DIED, LOG_WARNING},
        {"gate-leak", NULL, NULL, LOG_CRIT},
        {"gate-damaged", NULL, NULL, LOG_ERR},
        {"gate-kept", NULL, NULL, LOG_WARNING},
};

static void log_event(const struct guest *g, const char *id, const char *by, uint64_t epoch,
                      const char *text)
{
	struct mc_log_fields f = {.event = id, .by = by, .guest = g->name, .epoch = epoch};
	int level = LOG_INFO;

	for (size_t i = 0; i < MC_ARRAY_SIZE(messages); i++) {
		if (strcmp(messages[i].event, id) != 0 ||
		    (messages[i].word && !strstr(text, messages[i].word)))
			continue;
		f.message_id = messages[i].id;
		level = messages[i].level;
		break;
	}
	mc_log_fields(level, &f, "guest %s: %s: %s", g->name, id, text);
}

static void stamp_now(char *buf, size_t len)
{
	struct timespec now;
	char when[40];
	struct tm tm;

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(buf, len, "%s.%03ldZ", when, now.tv_nsec / 1000000);
}

void event_write_by(struct guest *g, const char *id, const char *by, uint64_t epoch,
                    const char *fmt, ...)
{
	char text[640], name[32], stamp[64], path[512], old[512], buf[2048];
	char mc_autofree *line = NULL;
	va_list ap;
	json_t *j;
	int r;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	text_clean(text, false);
	snprintf(name, sizeof(name), "%s", id);
	text_clean(name, false);
	log_event(g, name, by, epoch, text);
	stamp_now(stamp, sizeof(stamp));
	j = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s}", "time", stamp, "event", name, "by", by,
	              "term", (json_int_t)bus_guest_term(g), "epoch", (json_int_t)epoch, "text",
	              text);
	line = j ? json_dumps(j, JSON_COMPACT) : NULL;
	json_decref(j);
	if (!line || snprintf(buf, sizeof(buf), "%s\n", line) >= (int)sizeof(buf))
		return;
	history_path(g->m, g->name, "", path, sizeof(path));
	history_path(g->m, g->name, ".old", old, sizeof(old));
	r = append(path, old, buf);
	if (r < 0)
		mc_warn("guest %s: can't write its history %s: %s; look at that folder's space and "
		        "rights",
		        g->name, path, strerror(-r));
}

/* Reads the last @max bytes of a file, whole lines; returns how many, or negative errno. */
static ssize_t read_tail(const char *path, char *buf, size_t max)
{
	int mc_autoclose fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	struct stat st;
	ssize_t n;
	char *begin;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	n = pread(fd, buf, max, st.st_size > (off_t)max ? st.st_size - (off_t)max : 0);
	if (n < 0)
		return -errno;
	if (st.st_size <= (off_t)max)
		return n;
	/* Not from the middle of a line, if there are lines. */
	begin = memchr(buf, '\n', (size_t)n);
	if (!begin)
		return n;
	n -= begin + 1 - buf;
	memmove(buf, begin + 1, (size_t)n);
	return n;
}

/* What is wrong with the history, as a line of it. */
static void put_notice(FILE *f, const char *fmt, ...)
{
	char text[1200], stamp[64];
	va_list ap;
	json_t *j;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	stamp_now(stamp, sizeof(stamp));
	j = json_pack("{s:s, s:s, s:s, s:i, s:i, s:s}", "time", stamp, "event", "history", "by",
	              "mc-supervisor", "term", 0, "epoch", 0, "text", text_clean(text, false));
	if (j && json_dumpf(j, f, JSON_COMPACT | JSON_ENSURE_ASCII) == 0)
		fputc('\n', f);
	json_decref(j);
}

/* False when it is no event of ours. What goes on is ASCII: the bus takes it. */
static bool put_line(FILE *f, const char *line, size_t len)
{
	json_t *j = json_loadb(line, len, 0, NULL);
	bool good = json_is_string(json_object_get(j, "event")) &&
	            json_is_string(json_object_get(j, "text"));

	if (good && json_dumpf(j, f, JSON_COMPACT | JSON_ENSURE_ASCII) == 0)
		fputc('\n', f);
	json_decref(j);
	return good;
}

static void put_lines(FILE *f, const char *path, const char *buf, size_t n)
{
	unsigned damaged = 0;

	while (n) {
		const char *end = memchr(buf, '\n', n);
		size_t len = end ? (size_t)(end - buf) : n, step = len + (end != NULL);

		damaged += !put_line(f, buf, len);
		buf += step;
		n -= step;
	}
	if (damaged)
		put_notice(f,
		           "%u lines of %s are damaged and left out, all others are shown; did "
		           "this host crash, or its disk fill up? That file may be removed",
		           damaged, path);
}

/* Shows what is in a file, or why that can't be said; 0, or -ENOENT. */
static int put_file(FILE *f, const char *path, char *buf, size_t max)
{
	ssize_t n = read_tail(path, buf, max);

	if (n == -ENOENT)
		return -ENOENT;
	if (n < 0)
		put_notice(f, "%s can't be read: %s; look at that file, and at its disk", path,
		           strerror((int)-n));
	else
		put_lines(f, path, buf, (size_t)n);
	return 0;
}

int event_read(const struct manager *m, const char *name, char **ret)
{
	char path[512], old[512], mc_autofree *buf = malloc(READ_MAX), *text = NULL;
	off_t size = 0;
	struct stat st;
	size_t len;
	FILE *f = buf ? open_memstream(&text, &len) : NULL;
	int r = -ENOENT;

	if (!f)
		return -ENOMEM;
	history_path(m, name, "", path, sizeof(path));
	history_path(m, name, ".old", old, sizeof(old));
	if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
		size = st.st_size;
	if (size < READ_MAX)
		r = put_file(f, old, buf, READ_MAX - (size_t)size);
	if (put_file(f, path, buf, READ_MAX) == 0)
		r = 0;
	if (fclose(f) != 0 && r == 0)
		r = -ENOMEM;
	if (r == 0)
		*ret = text;
	else
		free(text);
	return r;
}
