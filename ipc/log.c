/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
}

void mc_log_set_words(char *words, size_t len)
{
	setup.words = words;
	setup.words_len = len;
}

static void put(int level, const char *text)
{
	char prefix[32] = "";
	struct timespec now;
	struct tm tm;

	if (level <= LOG_ERR && setup.words)
		snprintf(setup.words, setup.words_len, "%s", text);
	if (level > setup.max_level)
		return;
	if (setup.journal) {
		snprintf(prefix, sizeof(prefix), "<%d>", level); /* the journal stamps its lines */
	} else {
		clock_gettime(CLOCK_REALTIME, &now);
		localtime_r(&now.tv_sec, &tm);
		snprintf(prefix, sizeof(prefix), "%02d:%02d:%02d.%03ld ", tm.tm_hour, tm.tm_min,
		         tm.tm_sec, now.tv_nsec / 1000000);
	}
	if (setup.guest && setup.guest[0])
		fprintf(stderr, "%s%s: guest %s: %s\n", prefix, setup.process, setup.guest, text);
	else
		fprintf(stderr, "%s%s: %s\n", prefix, setup.process, text);
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
	put(level, text);
}

int mc_log_errno(int error, const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	size_t n;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	n = strlen(text);
	snprintf(text + n, sizeof(text) - n, ": %s", strerror(error < 0 ? -error : error));
	put(LOG_ERR, text);
	return error < 0 ? error : -error;
}
