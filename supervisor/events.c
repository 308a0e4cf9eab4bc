/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "messages.h"
#include "supervisor.h"

#define HISTORY_MAX (256 * 1024)
#define READ_MAX    (64 * 1024)

static void history_path(const struct manager *m, const char *guest, const char *suffix, char *buf,
                         size_t len)
{
	snprintf(buf, len, "%s/%s.events%s", m->state_dir, guest, suffix);
}

static void append(struct guest *g, const char *line)
{
	char path[512], old[512];
	int mc_autoclose fd = -1;
	struct stat st;

	history_path(g->m, g->name, "", path, sizeof(path));
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > HISTORY_MAX) {
		/* One older file is kept. */
		history_path(g->m, g->name, ".old", old, sizeof(old));
		(void)rename(path, old);
		mc_closep(&fd);
		fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	}
	if (fd < 0 || write(fd, line, strlen(line)) < 0)
		mc_warn("guest %s: can't write its history %s: %s; look at that folder's space and "
		        "rights",
		        g->name, path, strerror(errno));
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

void event_write_by(struct guest *g, const char *id, const char *by, uint64_t epoch,
                    const char *fmt, ...)
{
	char text[640], when[40], stamp[64], buf[2048], mc_autofree *line = NULL;
	struct timespec now;
	struct tm tm;
	va_list ap;
	json_t *j;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_event(g, id, by, epoch, text);
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(stamp, sizeof(stamp), "%s.%03ldZ", when, now.tv_nsec / 1000000);
	j = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s}", "time", stamp, "event", id, "by", by,
	              "term", (json_int_t)bus_guest_term(g), "epoch", (json_int_t)epoch, "text",
	              text);
	line = j ? json_dumps(j, JSON_COMPACT) : NULL;
	json_decref(j);
	if (line && snprintf(buf, sizeof(buf), "%s\n", line) < (int)sizeof(buf))
		append(g, buf);
}

/* Appends the last @max bytes of a file to a buffer; returns how many. */
static size_t read_tail(const char *path, char *buf, size_t max)
{
	int mc_autoclose fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	ssize_t n;
	char *begin;

	if (!max || fd < 0 || fstat(fd, &st) < 0)
		return 0;
	n = pread(fd, buf, max, st.st_size > (off_t)max ? st.st_size - (off_t)max : 0);
	if (n <= 0)
		return 0;
	if (st.st_size <= (off_t)max)
		return (size_t)n;
	/* Not from the middle of a line. */
	begin = memchr(buf, '\n', (size_t)n);
	if (!begin)
		return 0;
	n -= begin + 1 - buf;
	memmove(buf, begin + 1, (size_t)n);
	return (size_t)n;
}

char *event_read(struct manager *m, const char *name)
{
	char path[512], old[512], *buf = malloc(READ_MAX + 1);
	struct stat st;
	size_t n = 0;

	if (!buf)
		return NULL;
	history_path(m, name, "", path, sizeof(path));
	history_path(m, name, ".old", old, sizeof(old));
	if (stat(path, &st) == 0 && st.st_size < READ_MAX)
		n = read_tail(old, buf, READ_MAX - (size_t)st.st_size);
	n += read_tail(path, buf + n, READ_MAX - n);
	if (!n) {
		free(buf);
		return NULL;
	}
	buf[n] = '\0';
	return buf;
}
