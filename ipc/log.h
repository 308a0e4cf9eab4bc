/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Logging of the main programs, to stderr with syslog priority prefixes when stderr goes to
 * the journal (JOURNAL_STREAM), readable text otherwise.  Library code never logs.  Errors
 * are also kept as the process' last words in the arena when mc_log_set_words() was called.
 */
#ifndef MC_IPC_LOG_H
#define MC_IPC_LOG_H

#include <stddef.h>
#include <syslog.h>

/* Who speaks: "mc-capture", guest (or NULL). Strings must outlive the process' logging. */
void mc_log_setup(const char *process, const char *guest, int max_level);

/* Where the last error line is kept (arena, 128 bytes); NULL: nowhere. */
void mc_log_set_words(char *words, size_t len);

void mc_log(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Logs at LOG_ERR with ": strerror" appended and returns @error (negative errno). */
int mc_log_errno(int error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define mc_err(...)   mc_log(LOG_ERR, __VA_ARGS__)
#define mc_warn(...)  mc_log(LOG_WARNING, __VA_ARGS__)
#define mc_info(...)  mc_log(LOG_INFO, __VA_ARGS__)
#define mc_debug(...) mc_log(LOG_DEBUG, __VA_ARGS__)

#endif
