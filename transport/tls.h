/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * TLS 1.3 below a TCP link, by GnuTLS (its manual and header document every call used).  The
 * primary is the TLS client, the backup the server; both prove who they are, by certificates or
 * by a pre-shared key.  There is no resumption: a new connection is a new session.
 *
 * One thread; nothing blocks: the socket is non-blocking and belongs to the link.
 */
#ifndef MC_TRANSPORT_TLS_H
#define MC_TRANSPORT_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../ipc/config.h"
#include "../ipc/wire.h"

struct tls_creds;
struct tls;

/*
 * Reads the credentials out of @fd (ipc/creds.h; stays the caller's).  0, or negative errno with a
 * sentence in @why (MC_WHY_MAX) that says what is wrong with which file.  @cfg outlives it.
 */
int tls_creds_new(struct tls_creds **ret, int fd, const struct mc_config *cfg, char *why,
                  size_t why_len);
struct tls_creds *tls_creds_free(struct tls_creds *c); /* NULL ok; returns NULL */

/*
 * Checks the certificate, or the identity, that the peer of @t has proved to own against
 * tls-peer-name, the peer's address and allow-peer.  0, or -EKEYREJECTED with tls_error().
 */
int tls_creds_check_peer(struct tls *t);

/* A session over @fd. -ENOMEM, -EIO (GnuTLS). @c outlives it. */
int tls_new(struct tls **ret, const struct tls_creds *c, int fd);
struct tls *tls_free(struct tls *t); /* NULL ok; returns NULL */

/*
 * Goes on with what precedes the link: the exchange of TLS messages in the clear, the handshake,
 * the check of the peer.  1: done; 0: wait for tls_wants(); -EKEYREJECTED: one end refused the
 * other, trying again won't help; other errno: the connection broke.  tls_error() says why.
 */
int tls_handshake(struct tls *t);
uint32_t tls_wants(const struct tls *t); /* EPOLLIN or EPOLLOUT */

/* What went wrong, a sentence; "" when nothing did. */
const char *tls_error(const struct tls *t);
/* Who the peer is, for people: "TLS 1.3, AES-128-GCM, peer CN=...". After the handshake. */
const char *tls_peer(const struct tls *t);

/*
 * As send() and recv(): bytes, 0 (recv: the peer has closed), or negative errno, -EAGAIN among
 * them.  After -EAGAIN of tls_send() the same bytes must be given again.
 */
ssize_t tls_send(struct tls *t, const void *data, size_t len);
ssize_t tls_recv(struct tls *t, void *buf, size_t len);
/* True when tls_recv() has bytes without reading the socket. */
bool tls_pending(const struct tls *t);

/* --- tls-preamble.c: the messages before the handshake --------------------------------- */

#define TLS_PREAMBLE_MAX (MC_WIRE_HEADER + sizeof(struct mc_wire_reason) + MC_WHY_MAX)

/* The message that @side sends first, into @buf (TLS_PREAMBLE_MAX); returns its length. */
size_t tls_preamble_pack(enum mc_side side, const char *guest, void *buf);

/*
 * What @len bytes from the other side (@from) mean.  >0: so many bytes are still missing before
 * more can be said; 0: the handshake follows; -EKEYREJECTED: the peer doesn't use TLS, or refuses,
 * -EPROTO: no peer of ours; @why: a sentence (MC_WHY_MAX).
 */
int tls_preamble_check(enum mc_side from, const char *guest, const void *buf, size_t len, char *why,
                       size_t why_len);

#endif
