/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The options of a protection: one table for a{sv} keys and mcctl options.  Every value goes
 * through text, so that each has one parser and one error message.
 */
#ifndef MC_SUPERVISOR_OPTIONS_H
#define MC_SUPERVISOR_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../ipc/arena.h"

struct manager;

enum request_gate {
	REQUEST_GATE_AUTO, /* the plug for taps, a relay where one was named */
	REQUEST_GATE_PLUG,
	REQUEST_GATE_RELAY,
	REQUEST_GATE_NONE,
};

/* What a caller asked for, checked. */
struct request {
	struct mc_config cfg;
	struct mc_arena_params params; /* ram_pages and side filled in later */
	bool dry_run, args_only;
	bool again;                     /* what ended is begun again: nobody called */
	bool gate_given;                /* NICs were named, or none are wanted */
	enum request_gate gate;         /* what the gate may be */
	bool primary;                   /* filled in by the examination, as are: */
	uint64_t ram_bytes;             /* of the guest */
	char *standby_args;             /* malloc'ed */
	struct sd_bus_message *message; /* the call to answer, owned; NULL: from a file */
	/* Tells the end of what was asked for: 0 and a result, or negative errno and a sentence. */
	void (*done)(struct manager *m, struct request *rq, int r, const char *text);
};

void request_init(struct request *rq);

/*
 * Sets one option by name. 0; -EINVAL with a sentence in @why that names key, value and what
 * is allowed; -ENOENT: no such key.  @running: only those that may change while running.
 */
int option_set(struct request *rq, const char *key, const char *value, bool running, char *why,
               size_t why_len);

#define MC_TLS_DIR "/etc/microcheckpoint/tls" /* used when it has a ca-cert.pem */

/* Without a word about the link's security: certificates of @dir, if it has some. */
void request_secure(struct request *rq, const char *dir);

/* Checks that what must be given is. */
int request_check(const struct request *rq, bool primary, char *why, size_t why_len);

/* Copies the values that may change while running into a live configuration. */
void request_apply_running(const struct request *rq, struct mc_config *to);

/* Taps that QEMU has open belong to the gate without being named. */
bool request_takes_taps(const struct request *rq);

/* The gate over all NICs: plug where one has it. */
void request_set_gate(struct request *rq);

/* A sentence when the gate that was asked for isn't that of the NICs that were named, or NULL. */
const char *request_gate_mistake(const struct request *rq);

/* Frees what the request owns, and itself; NULL is fine. */
void request_free(struct request *rq);

/* Comma separated names of the NICs; "" when there are none. */
void request_gated(const struct request *rq, char *buf, size_t len);

/* options-peer.c: 0 when the transport can connect to it: a numeric address, a port or none; or
 * -EINVAL. */
int options_peer_check(const char *v);

/* Names of all options, NULL at the end; *flag tells whether it takes no value. */
const char *option_name(unsigned i, bool *flag);

/* True for keys that may be given several times, their values adding up. */
bool option_repeats(const char *key);

#endif
