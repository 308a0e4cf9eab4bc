/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Configuration files: /etc/microcheckpoint/guests.d/NAME.conf, one a guest.
 *
 *     # vm.conf: lines KEY = VALUE; '#' begins a comment line
 *     role = primary                         (or standby)
 *     qmp = /run/vm.qmp
 *     peer = 192.0.2.2:7911
 *     relay = n0=unix:/run/vm.r0,tap=tap0    (may be given several times)
 *
 * The keys are those of mcctl's options (options.h) and role.  Every mistake is named with file
 * and line; a file with a mistake counts as a whole not at all.
 */
#ifndef MC_SUPERVISOR_CONF_H
#define MC_SUPERVISOR_CONF_H

#include <stdbool.h>
#include <stddef.h>

#include "options.h"

#define CONF_DIR       "/etc/microcheckpoint/guests.d"
#define CONF_FILES_MAX 256
#define CONF_SIZE_MAX  65536 /* bytes of a file */

/* What a file says, checked. */
struct guest_conf {
	struct guest_conf *next;
	struct request rq; /* rq.cfg.guest is the name */
	bool primary;
	/* boot.c: where it stands */
	bool settled;  /* nothing more to do */
	bool busy;     /* being examined */
	char why[640]; /* why it could not be started last time */
};

/* Is called with one sentence for each mistake: "FILE:LINE: key: what is wrong; remedy". */
typedef void (*conf_bad_fn)(void *ctx, const char *text);

/*
 * Reads one file; its name must be NAME.conf.  0 and *ret (to be given to conf_free), or
 * -EINVAL after @bad was told every mistake, or negative errno of reading it (told as well).
 */
int conf_read(const char *path, struct guest_conf **ret, conf_bad_fn bad, void *ctx);

/*
 * Reads every *.conf of a directory, in the order of their names.  Returns the number of bad
 * files, or negative errno; a directory that isn't there is an empty one.  *ret: the good ones.
 */
int conf_read_dir(const char *dir, struct guest_conf **ret, conf_bad_fn bad, void *ctx);

/* Frees a list. NULL is fine; returns NULL. */
struct guest_conf *conf_free(struct guest_conf *list);

#endif
