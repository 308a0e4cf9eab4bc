/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared by the tls*.c files only. */
#ifndef MC_TRANSPORT_TLS_PRIVATE_H
#define MC_TRANSPORT_TLS_PRIVATE_H

#include <gnutls/gnutls.h>

#include "tls.h"

struct tls_creds {
	const struct mc_config *cfg;
	enum mc_side side;
	gnutls_priority_t priority;
	gnutls_certificate_credentials_t x509;
	gnutls_psk_client_credentials_t psk_client;
	gnutls_psk_server_credentials_t psk_server;
	char *keys; /* PSK, server: lines "IDENTITY:HEXKEY" */
	size_t keys_len;
};

enum tls_step {
	TLS_SEND, /* primary: our message; backup: the answer */
	TLS_RECEIVE,
	TLS_SHAKE,
	TLS_DONE,
};

struct tls {
	const struct tls_creds *creds;
	gnutls_session_t session;
	int fd;
	enum tls_step step;
	bool wants_write;
	uint8_t buf[TLS_PREAMBLE_MAX];
	size_t have, sent;
	bool denied;      /* proved to be somebody who isn't allowed */
	char unknown[64]; /* PSK identity that nobody has here */
	char error[MC_WHY_MAX];
	char peer[256];
};

/* Formats the sentence that tls_error() gives, and returns @r. */
int tls_fail(struct tls *t, int r, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* tls-peer.c: for gnutls_session_set_verify_function(). */
int tls_verify(gnutls_session_t s);

#endif
