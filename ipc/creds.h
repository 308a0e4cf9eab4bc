/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Credentials of the link, on their way from the supervisor, which opens the files, to the
 * transport, which has no business in the file system: a sealed memfd with the files' content.
 * Only the transport inherits it, and closes it once it is read.
 */
#ifndef MC_IPC_CREDS_H
#define MC_IPC_CREDS_H

#include <stddef.h>
#include <stdint.h>

enum mc_creds_part {
	MC_CREDS_CA = 0,   /* certificates of the authorities, PEM */
	MC_CREDS_CRL = 1,  /* revoked certificates, PEM; may be absent */
	MC_CREDS_CERT = 2, /* own certificate (and intermediates), PEM */
	MC_CREDS_KEY = 3,  /* its private key, PEM */
	MC_CREDS_PSK = 4,  /* lines "IDENTITY:HEXKEY" */
	MC_CREDS_PARTS = 5,
};

#define MC_CREDS_PART_MAX (512U << 10)

/* Files' content, each followed by a NUL; NULL and 0: absent. */
struct mc_creds {
	char *part[MC_CREDS_PARTS];
	size_t len[MC_CREDS_PARTS];
};

/* A sealed memfd that holds @c. fd (close on exec) or negative errno. */
int mc_creds_pack(const struct mc_creds *c);

/*
 * Reads what mc_creds_pack() wrote. 0; -EBADMSG (something else, or not sealed), -ENOMEM.
 * @ret: to be freed with mc_creds_done(). @fd stays the caller's.
 */
int mc_creds_unpack(int fd, struct mc_creds *ret);

/* Frees, and overwrites before. Accepts a zeroed struct. */
void mc_creds_done(struct mc_creds *c);

#endif
