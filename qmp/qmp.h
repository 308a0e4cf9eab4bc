/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QMP client: one connection to one QEMU monitor.  Used by capture (the guest) and restore
 * (the standby).  Reference: QEMU's docs/interop/qmp-spec.txt and the QMP reference manual.
 *
 * Not thread safe.  Every call that waits has a time limit.  After -ECONNRESET (EOF, read to
 * the end: events that came before were delivered) or -EBADMSG (not QMP) the connection
 * is of no more use.
 */
#ifndef MC_QMP_QMP_H
#define MC_QMP_QMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <jansson.h>

struct qmp;

/*
 * Called for every event as it is read, also while a command waits for its answer; must not
 * call back into @q.  @data is borrowed, NULL if there is none.  Events that come before
 * qmp_on_event() are dropped.
 */
typedef void (*qmp_event_fn)(void *ctx, const char *name, json_t *data);

/*
 * Connects to the unix socket @path, reads the greeting and negotiates capabilities.
 * 0; -ENOENT, -ECONNREFUSED; -EBUSY (no greeting within @timeout_ms: the monitor is in use by
 * another client); -EBADMSG (the peer doesn't speak QMP).
 */
int qmp_connect(struct qmp **ret, const char *path, unsigned timeout_ms);

/* What a refused qmp_connect() means to an operator, and what to do about it. */
void qmp_connect_why(int error, const char *path, char *why, size_t len);
/*
 * The same over a connected, non-blocking socket to the QEMU process @pid; @fd is taken over on
 * success only.
 */
int qmp_open(struct qmp **ret, int fd, pid_t pid, unsigned timeout_ms);
struct qmp *qmp_free(struct qmp *q); /* NULL ok; returns NULL */

int qmp_fd(const struct qmp *q);         /* for the event loop; owned by q */
pid_t qmp_peer_pid(const struct qmp *q); /* of QEMU, SO_PEERCRED at connect */
void qmp_on_event(struct qmp *q, qmp_event_fn fn, void *ctx);

/*
 * Whoever waits for an answer also looks at @fd (stays the caller's), which tells sooner than the
 * socket that QEMU may be ending.  When it is readable @ends(@ctx) says whether that is so: then
 * what QEMU had said is read, and the connection counts as broken (-ECONNRESET); if not, it must
 * see to it that @fd is readable no more.
 */
void qmp_watch_peer(struct qmp *q, int fd, bool (*ends)(void *ctx), void *ctx);

/*
 * @fn is called by qmp_command() and its like before they wait for an answer, with the time that
 * this may take at most, in ns, and after it with 0.  For a process that others watch.
 */
void qmp_on_wait(struct qmp *q, void (*fn)(void *ctx, uint64_t ns), void *ctx);

/*
 * Runs a command and waits for its answer.  @args: reference stolen, NULL for none.
 * 0 with *ret the "return" value (new reference; ret may be NULL); -EREMOTEIO: QEMU
 * answered with an error, its text is qmp_error(); -ETIMEDOUT; -ECONNRESET; -EBADMSG.
 */
int qmp_command(struct qmp *q, const char *name, json_t *args, unsigned timeout_ms, json_t **ret);

/* Same with an fd sent along (SCM_RIGHTS): add-fd, getfd. @fd stays the caller's. */
int qmp_command_fd(struct qmp *q, const char *name, json_t *args, int fd, unsigned timeout_ms,
                   json_t **ret);

/* human-monitor-command; *ret is malloc'ed text. */
int qmp_hmp(struct qmp *q, const char *line, unsigned timeout_ms, char **ret);

/*
 * For the pause: commands whose text is ready.  qmp_send_raw() writes @text: one or more
 * JSON commands, each a line.  qmp_wait() waits for the answer to the oldest unanswered one,
 * without allocating on the heap beyond the JSON of events; call it once for each line.  After
 * -ETIMEDOUT it may be called again; a qmp_command() gives up what is unanswered.
 * 0, -EREMOTEIO, -ETIMEDOUT, -ECONNRESET, -EBADMSG; -EINVAL: nothing is unanswered, or no
 * newline, or another command was begun; -EBUSY: more than 8 would be unanswered.
 */
int qmp_send_raw(struct qmp *q, const char *text, size_t len);

/*
 * Sends a command (one line that ends with "}\n") but for that end.  QEMU reads its monitor a
 * byte a system call, about 2.5 us each: what it has read before it matters is time saved.  The
 * next qmp_send_raw() must begin with the same command and sends only the rest;
 * qmp_command() makes QEMU drop what was begun.  @text must stay until then.
 * 0; -EINVAL: not such a line, or another one was begun; and as qmp_send_raw().
 */
int qmp_begin(struct qmp *q, const char *text, size_t len);
int qmp_wait(struct qmp *q, uint64_t deadline_ns);

/* The same for the answer to query-status: *running tells whether the vCPUs run. */
int qmp_wait_running(struct qmp *q, uint64_t deadline_ns, bool *running);

/* Reads what is there without waiting and delivers events. 0, -ECONNRESET, -EBADMSG. */
int qmp_dispatch(struct qmp *q);

/* Text of the last -EREMOTEIO; "" otherwise. Valid until the next call. */
const char *qmp_error(const struct qmp *q);

#endif
