/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

/* The one piece of process-wide state: who speaks, and how much. */
static struct {
	const char *process;
	const char *guest;
	int max_level;
	bool journal;
	char *words;
	size_t words_len;
} setup = {.process = "mc", .max_level = LOG_INFO};

void mc_log_setup(const char *process, const char *guest, int max_level)
{
	setup.process = process;
	setup.guest = guest;
	setup.max_level = max_level;
	setup.journal = getenv("JOURNAL_STREAM") != NULL;
	tzset(); /* later the time zone's file may be out of reach */
}

void mc_log_set_words(char *words, size_t len)
{
	setup.words = words;
	setup.words_len = len;
}

static void put_line(const char *prefix, const char *text)
{
	if (setup.guest && setup.guest[0])
		fprintf(stderr, "%s%s: guest %s: %s\n", prefix, setup.process, setup.guest, text);
	else
		fprintf(stderr, "%s%s: %s\n", prefix, setup.process, text);
}

static void put_text(const char *text)
{
	char prefix[32];
	struct timespec now;
	struct tm tm;

	clock_gettime(CLOCK_REALTIME, &now);
	localtime_r(&now.tv_sec, &tm);
	snprintf(prefix, sizeof(prefix), "%02d:%02d:%02d.%03ld ", tm.tm_hour, tm.tm_min, tm.tm_sec,
	         now.tv_nsec / 1000000);
	put_line(prefix, text);
}

/* One KEY=VALUE of an entry, when there is a value. */
static void add_field(struct iovec *v, int *n, char *buf, size_t len, const char *key,
                      const char *value)
{
	int used;

	if (!value || !value[0])
		return;
	used = snprintf(buf, len, "%s=%s", key, value);
	v[*n].iov_base = buf;
	v[*n].iov_len = used < (int)len ? (size_t)used : len - 1;
	++*n;
}

static void put_journal(int level, const struct mc_log_fields *f, const char *text)
{
	const char *guest = f && f->guest ? f->guest : setup.guest;
	char field[8][96], message[1280], epoch[24] = "", prefix[8];
	struct iovec v[9];
	int n = 0;

	if (guest && guest[0] && !(f && f->guest))
		snprintf(message, sizeof(message), "MESSAGE=guest %s: %s", guest, text);
	else
		snprintf(message, sizeof(message), "MESSAGE=%s", text);
	v[n].iov_base = message;
	v[n++].iov_len = strlen(message);
	if (f && f->epoch)
		snprintf(epoch, sizeof(epoch), "%llu", (unsigned long long)f->epoch);
	snprintf(prefix, sizeof(prefix), "%d", level);
	add_field(v, &n, field[0], sizeof(field[0]), "PRIORITY", prefix);
	add_field(v, &n, field[1], sizeof(field[1]), "SYSLOG_IDENTIFIER", setup.process);
	add_field(v, &n, field[2], sizeof(field[2]), "GUEST", guest);
	add_field(v, &n, field[3], sizeof(field[3]), "STAGE", setup.process);
	add_field(v, &n, field[4], sizeof(field[4]), "EPOCH", epoch);
	add_field(v, &n, field[5], sizeof(field[5]), "EVENT", f ? f->event : NULL);
	add_field(v, &n, field[6], sizeof(field[6]), "DECIDED_BY", f ? f->by : NULL);
	add_field(v, &n, field[7], sizeof(field[7]), "MESSAGE_ID", f ? f->message_id : NULL);
	if (sd_journal_sendv(v, n) >= 0)
		return;
	snprintf(prefix, sizeof(prefix), "<%d>", level); /* the journal stamps its lines */
	put_line(prefix, text);
}

static void put(int level, const struct mc_log_fields *f, const char *text)
{
	if (level <= LOG_ERR && setup.words)
		snprintf(setup.words, setup.words_len, "%s", text);
	if (level > setup.max_level)
		return;
	if (setup.journal)
		put_journal(level, f, text);
	else
		put_text(text);
}

void mc_log_fields(int level, const struct mc_log_fields *f, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	put(level, f, text);
}

void mc_log(int level, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	if (level > setup.max_level && level > LOG_ERR)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	put(level, NULL, text);
}

const char *mc_remedy(int error)
{
	switch (error < 0 ? -error : error) {
	case EPERM:
	case EACCES:
		return "mcctl doctor shows what may not be done here";
	case ENOENT:
	case ENOTDIR:
		return "is it there, under this name?";
	case ENOMEM:
	case ENOBUFS:
		return "free memory on this host";
	case ENOSPC:
	case EDQUOT:
		return "free some room there";
	case EMFILE:
	case ENFILE:
		return "raise the limit of open files (LimitNOFILE=)";
	case EADDRINUSE:
		return "end who uses it already (ss -lp)";
	case EADDRNOTAVAIL:
		return "no interface of this host has that address";
	case EAGAIN:
	case EBUSY:
	case ETIMEDOUT:
		return "is this host overloaded? It is tried again";
	default:
		return "if it doesn't go by itself: mcctl restart NAME STAGE, then report it";
	}
}

int mc_log_errno(int error, const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	size_t n;
	bool has_remedy;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	has_remedy = strpbrk(text, ";?") != NULL;
	n = strlen(text);
	snprintf(text + n, sizeof(text) - n, ": %s%s%s", strerror(error < 0 ? -error : error),
	         has_remedy ? "" : "; ", has_remedy ? "" : mc_remedy(error));
	put(LOG_ERR, NULL, text);
	return error < 0 ? error : -error;
}
