/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rehearsal: the committed epoch is loaded into a throw-away QEMU while protection goes on.
 *
 *   mc-restore                          mc-restore --rehearse            throw-away QEMU
 *   asked by want_rehearsal
 *     fork, exec ---------------------> standby's command line,
 *                                       rewritten (rehearse-args.c)
 *                                         fork, exec -----------------> maps the standby's RAM
 *                                       <- QMP: waits for state         file privately
 *   <---- REHEARSE_READY ---------------
 *   applies nothing more for now
 *   ----- REHEARSE_GO, state as fd ---->
 *                                       pages QEMU wrote itself: as
 *                                       in the file; migrate-incoming -> loads, stays paused
 *   <---- REHEARSE_DONE, sentence ------
 *   applies again                       kills QEMU, ends
 *
 * The two talk over a socket pair (SOCK_SEQPACKET), fd 3 of the helper.  Whoever dies ends the
 * rest.
 */
#ifndef MC_RESTORE_REHEARSE_H
#define MC_RESTORE_REHEARSE_H

#include <stdint.h>

#define REHEARSE_FD  3
#define REHEARSE_RAM 16 /* blocks at most */

enum rehearse_step {
	REHEARSE_READY = 1,
	REHEARSE_GO = 2, /* with the device state's fd */
	REHEARSE_DONE = 3,
};

struct rehearse_message {
	uint32_t step;
	int32_t error;    /* DONE: 0 or negative errno */
	uint64_t took_ns; /* READY: start of QEMU; DONE: load */
	char text[256];   /* DONE with an error: why */
};

/* A RAM block as the throw-away QEMU gets it. */
struct rehearse_ram {
	char id[64];
	uint64_t size;
	char path[64];
};

/*
 * Makes the throw-away's arguments (malloc'ed, NULL at the end; also the strings) from those of the
 * standby.  Everything that reaches out is replaced by nothing (network, consoles, monitors) or
 * dropped; RAM blocks become private mappings of @ram's files; @qmp_fd is its only monitor.
 * 0; -ENOMEM; -EPERM with a sentence in @why: an option that could do harm (writable disks).
 */
int rehearse_args(char *const *standby, const struct rehearse_ram *ram, unsigned nram, int qmp_fd,
                  char ***ret, char *why, size_t why_len);
void rehearse_args_free(char **argv); /* NULL ok */

/* `mc-restore --rehearse PID ID=SIZE=PATH...`: the helper. Exit status. */
int rehearse_main(int argc, char **argv);

#endif
