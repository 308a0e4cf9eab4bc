/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Terms of a guest, kept under the state directory: what is written here is on the disk
 * (file and directory fsynced) before it is used.
 */
#ifndef MC_SUPERVISOR_TERM_H
#define MC_SUPERVISOR_TERM_H

#include "../ipc/config.h"

struct term_record {
	struct mc_term current;  /* newest that was in force here */
	struct mc_term reserved; /* for a takeover; may or may not have been used */
};

/* Reads the record of a guest; all zero when there is none. 0 or negative errno. */
int term_load(const char *dir, const char *guest, struct term_record *ret);
/* Writes it, atomically and durably. 0 or negative errno. */
int term_store(const char *dir, const char *guest, const struct term_record *r);
/* A term above everything in the record, with a new random id. */
struct mc_term term_next(const struct term_record *r);
/* 128 random bits. */
void term_random(uint64_t id[2]);

#endif
