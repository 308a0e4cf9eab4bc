/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Logging of the main programs: to the journal, with the fields GUEST=, STAGE=, EPOCH=, when
 * stderr goes there (JOURNAL_STREAM); readable text on stderr otherwise.  Library code never logs.
 * Errors are also kept as the process' last words in the arena when mc_log_set_words() was called.
 */
#ifndef MC_IPC_LOG_H
#define MC_IPC_LOG_H

#include <stddef.h>
#include <stdint.h>
#include <syslog.h>

/* Who speaks: "mc-capture", guest (or NULL). Strings must outlive the process' logging. */
void mc_log_setup(const char *process, const char *guest, int max_level);

/* Where the last error line is kept (arena, 128 bytes); NULL: nowhere. */
void mc_log_set_words(char *words, size_t len);

void mc_log(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* What to do about an errno (of either sign), as the end of a sentence. */
const char *mc_remedy(int error);

/*
 * Logs at LOG_ERR with ": strerror" appended and returns @error (negative errno).  A text without a
 * remedy of its own (after ";", or a question) gets that of the error.
 */
int mc_log_errno(int error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Fields of an entry in the journal, for what operators look for. NULL and 0: not there. */
struct mc_log_fields {
	const char *message_id; /* 32 hex digits, in the catalog */
	const char *guest, *event, *by;
	uint64_t epoch;
};

/* As mc_log(), with fields. */
void mc_log_fields(int level, const struct mc_log_fields *f, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

#define mc_err(...)   mc_log(LOG_ERR, __VA_ARGS__)
#define mc_warn(...)  mc_log(LOG_WARNING, __VA_ARGS__)
#define mc_info(...)  mc_log(LOG_INFO, __VA_ARGS__)
#define mc_debug(...) mc_log(LOG_DEBUG, __VA_ARGS__)

#endif
