/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the QMP client knows of its connection; private to libmcqmp. */
#ifndef MC_QMP_PRIVATE_H
#define MC_QMP_PRIVATE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "qmp.h"

#define QMP_LINE_FIRST  (64U << 10) /* buffer to begin with: answers in a pause are short */
#define QMP_PENDING_MAX 8U          /* raw commands whose results may be open */

/*
 * QEMU answers in order.  Of the commands sent, the oldest `stale` ones have nobody who
 * waits for them any more (timed out); then come `pending` raw ones, for which result[] has
 * the first `done` results; then the one of qmp_command(), if `waiting`.
 */
struct qmp_result {
	int r;
	int running; /* answer to query-status: 0 or 1; -1: another answer */
};

struct qmp {
	int fd;
	int dead; /* negative errno: of no more use */
	pid_t pid;
	bool greeted, has_oob;
	const char *begun; /* command of which QEMU has all but its end */
	size_t begun_len;  /* what was sent of it */
	qmp_event_fn on_event;
	void *event_ctx;
	void (*on_wait)(void *ctx, uint64_t ns);
	void *wait_ctx;
	int peer_fd; /* qmp_watch_peer(); -1: none */
	bool (*peer_ends)(void *ctx);
	void *peer_ctx;

	char *buf;
	size_t used, size;
	size_t scanned; /* bytes of buf known to hold no newline */

	unsigned stale, pending, done;
	struct qmp_result result[QMP_PENDING_MAX];
	bool waiting, answered;
	int answer;       /* of the waiting command */
	json_t **returns; /* where its value goes; NULL: not wanted */
	char error[512];
	/*
	 * id of our first command.  QEMU may still have to answer what a client before us asked
	 * (it died waiting), and tells us: everything before this id isn't ours.
	 */
	char first[48];
};

/* Of no more use, for the first reason given; returns that. */
int qmp_broken(struct qmp *q, int error);

/*
 * Reads once, never blocks, and takes the whole messages that are there: events go to their
 * function, answers to who waits.  1: something came; 0: nothing there; negative errno: -ENOMEM, or
 * the connection is broken.
 */
int qmp_read_some(struct qmp *q);

#endif
