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
		mc_warn("guest %s: can't write its history %s: %s", g->name, path, strerror(errno));
}

void event_write(struct guest *g, const char *id, uint64_t epoch, const char *fmt, ...)
{
	char text[640], when[40], mc_autofree *line = NULL;
	time_t now = time(NULL);
	struct tm tm;
	va_list ap;
	json_t *j;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	mc_info("guest %s: %s: %s", g->name, id, text);
	gmtime_r(&now, &tm);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
	j = json_pack("{s:s, s:s, s:I, s:s}", "time", when, "event", id, "epoch", (json_int_t)epoch,
	              "text", text);
	line = j ? json_dumps(j, JSON_COMPACT) : NULL;
	json_decref(j);
	if (line) {
		char buf[1024];

		snprintf(buf, sizeof(buf), "%s\n", line);
		append(g, buf);
	}
}

char *event_read(struct manager *m, const char *name)
{
	char path[512], *buf, *begin;
	int mc_autoclose fd = -1;
	struct stat st;
	ssize_t n;

	history_path(m, name, "", path, sizeof(path));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return NULL;
	buf = malloc(READ_MAX + 1);
	if (!buf)
		return NULL;
	n = pread(fd, buf, READ_MAX, st.st_size > READ_MAX ? st.st_size - READ_MAX : 0);
	if (n < 0) {
		free(buf);
		return NULL;
	}
	buf[n] = '\0';
	/* Not from the middle of a line. */
	begin = st.st_size > READ_MAX ? strchr(buf, '\n') : NULL;
	if (begin)
		memmove(buf, begin + 1, strlen(begin + 1) + 1);
	return buf;
}
