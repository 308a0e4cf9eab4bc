/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tls.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "../ipc/util.h"
#include "tls-private.h"

int tls_fail(struct tls *t, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(t->error, sizeof(t->error), fmt, ap);
	va_end(ap);
	return r;
}

const char *tls_error(const struct tls *t)
{
	return t->error;
}

const char *tls_peer(const struct tls *t)
{
	return t->peer;
}

static int set_up(struct tls *t, const struct tls_creds *c)
{
	unsigned flags = GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS |
	                 (c->side == MC_SIDE_PRIMARY ? GNUTLS_CLIENT : GNUTLS_SERVER);
	int e = gnutls_init(&t->session, flags);

	if (e >= 0)
		e = gnutls_priority_set(t->session, c->priority);
	if (e >= 0 && c->x509)
		e = gnutls_credentials_set(t->session, GNUTLS_CRD_CERTIFICATE, c->x509);
	if (e >= 0 && c->psk_client)
		e = gnutls_credentials_set(t->session, GNUTLS_CRD_PSK, c->psk_client);
	if (e >= 0 && c->psk_server)
		e = gnutls_credentials_set(t->session, GNUTLS_CRD_PSK, c->psk_server);
	if (e < 0)
		return e;
	gnutls_session_set_ptr(t->session, t);
	gnutls_transport_set_int(t->session, t->fd);
	gnutls_handshake_set_timeout(t->session, GNUTLS_INDEFINITE_TIMEOUT);
	if (c->x509) {
		gnutls_session_set_verify_function(t->session, tls_verify);
		gnutls_certificate_server_set_request(t->session, GNUTLS_CERT_REQUIRE);
	}
	return 0;
}

int tls_new(struct tls **ret, const struct tls_creds *c, int fd)
{
	struct tls *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->creds = c;
	t->fd = fd;
	t->step = c->side == MC_SIDE_PRIMARY ? TLS_SEND : TLS_RECEIVE;
	if (set_up(t, c) < 0) {
		tls_free(t);
		return -EIO;
	}
	*ret = t;
	return 0;
}

struct tls *tls_free(struct tls *t)
{
	if (!t)
		return NULL;
	if (t->session)
		gnutls_deinit(t->session);
	free(t);
	return NULL;
}

/* --- in the clear ---------------------------------------------------------------------- */

static int send_preamble(struct tls *t)
{
	uint8_t buf[TLS_PREAMBLE_MAX];
	size_t len = tls_preamble_pack(t->creds->side, t->creds->cfg->guest, buf);
	ssize_t n = send(t->fd, buf + t->sent, len - t->sent, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : tls_fail(t, -errno, "write failed");
	t->sent += (size_t)n;
	if (t->sent < len)
		return 0;
	t->step = t->creds->side == MC_SIDE_PRIMARY ? TLS_RECEIVE : TLS_SHAKE;
	return 1;
}

/* A plain primary is told in its own words; what it sent is read first, or our answer may be lost.
 */
static void tell_plain(struct tls *t)
{
	static const struct mc_term none;
	uint8_t buf[TLS_PREAMBLE_MAX];
	struct mc_wire_header h;
	size_t n = mc_wire_reason_pack(
	        MC_REASON_REFUSED,
	        "this standby takes only encrypted links; give the primary tls-dir or psk-file, "
	        "without insecure",
	        buf + MC_WIRE_HEADER);

	while (recv(t->fd, t->buf, sizeof(t->buf), MSG_DONTWAIT) > 0)
		;
	mc_wire_header_init(&h, MC_MSG_END, &none, 0, (uint32_t)n);
	h.checksum = mc_wire_checksum(&h, buf + MC_WIRE_HEADER, n, NULL, 0);
	memcpy(buf, &h, sizeof(h));
	(void)send(t->fd, buf, MC_WIRE_HEADER + n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int receive_preamble(struct tls *t)
{
	bool primary = t->creds->side == MC_SIDE_PRIMARY;
	enum mc_side from = primary ? MC_SIDE_BACKUP : MC_SIDE_PRIMARY;
	int want;

	/* Never beyond it: what follows is GnuTLS' to read. */
	while ((want = tls_preamble_check(from, t->creds->cfg->guest, t->buf, t->have, t->error,
	                                  sizeof(t->error))) > 0) {
		ssize_t n;

		if ((size_t)want > sizeof(t->buf) - t->have)
			return tls_fail(t, -EPROTO, "the link begins with too long a message");
		n = recv(t->fd, t->buf + t->have, (size_t)want, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n <= 0)
			return tls_fail(t, n < 0 ? -errno : -ECONNRESET,
			                "the peer closed before the handshake; its log says why");
		t->have += (size_t)n;
	}
	if (want == -EKEYREJECTED && !primary)
		tell_plain(t);
	if (want < 0)
		return want;
	t->step = primary ? TLS_SHAKE : TLS_SEND;
	return 1;
}

/* --- handshake ------------------------------------------------------------------------- */

/* What the peer's alert means here. */
static int alerted(struct tls *t)
{
	gnutls_alert_description_t a = gnutls_alert_get(t->session);
	const char *name = gnutls_alert_get_name(a) ?: "?";

	/* GnuTLS calls a key that doesn't fit an illegal parameter. */
	if (t->creds->psk_client &&
	    (a == GNUTLS_A_UNKNOWN_PSK_IDENTITY || a == GNUTLS_A_DECRYPT_ERROR ||
	     a == GNUTLS_A_ILLEGAL_PARAMETER))
		return tls_fail(
		        t, -EKEYREJECTED,
		        "the peer doesn't know this host's identity, or has another key for it "
		        "(%s); compare both psk-files",
		        name);
	switch (a) {
	case GNUTLS_A_BAD_CERTIFICATE:
	case GNUTLS_A_UNSUPPORTED_CERTIFICATE:
	case GNUTLS_A_CERTIFICATE_REVOKED:
	case GNUTLS_A_CERTIFICATE_EXPIRED:
	case GNUTLS_A_CERTIFICATE_UNKNOWN:
	case GNUTLS_A_UNKNOWN_CA:
		return tls_fail(t, -EKEYREJECTED,
		                "the peer refused this host's certificate (%s); its log says why",
		                name);
	case GNUTLS_A_ACCESS_DENIED:
		return tls_fail(
		        t, -EKEYREJECTED,
		        "the peer doesn't allow this host to replicate the guest (%s); see its "
		        "option allow-peer",
		        name);
	default:
		return tls_fail(
		        t, -EKEYREJECTED,
		        "the peer refused the handshake (%s); one end may have certificates, "
		        "the other a pre-shared key",
		        name);
	}
}

static int shake_failed(struct tls *t, int e)
{
	if (t->denied)
		(void)gnutls_alert_send(t->session, GNUTLS_AL_FATAL, GNUTLS_A_ACCESS_DENIED);
	else if (t->unknown[0])
		(void)gnutls_alert_send(t->session, GNUTLS_AL_FATAL, GNUTLS_A_UNKNOWN_PSK_IDENTITY);
	else
		(void)gnutls_alert_send_appropriate(t->session, e);
	if (t->error[0]) /* our own verification said why */
		return -EKEYREJECTED;
	if (e == GNUTLS_E_FATAL_ALERT_RECEIVED)
		return alerted(t);
	if (t->unknown[0])
		return tls_fail(t, -EKEYREJECTED,
		                "the peer's identity '%s' isn't in %s, or its key isn't valid; add "
		                "the line, or mend it",
		                t->unknown, t->creds->cfg->psk_file);
	if (t->creds->psk_server && e == GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER)
		return tls_fail(t, -EKEYREJECTED,
		                "the peer has another key for its identity than %s; compare both "
		                "psk-files",
		                t->creds->cfg->psk_file);
	if (e == GNUTLS_E_PULL_ERROR || e == GNUTLS_E_PUSH_ERROR ||
	    e == GNUTLS_E_PREMATURE_TERMINATION)
		return tls_fail(t, -ECONNRESET,
		                "the peer closed during the handshake; its log says why");
	return tls_fail(t, -EKEYREJECTED,
	                "TLS handshake: %s; one end may have certificates, the other a pre-shared "
	                "key, or another one",
	                gnutls_strerror(e));
}

static void describe(struct tls *t)
{
	char who[sizeof(t->peer)];

	memcpy(who, t->peer, sizeof(who));
	snprintf(t->peer, sizeof(t->peer), "%s, %s, peer %.200s",
	         gnutls_protocol_get_name(gnutls_protocol_get_version(t->session)),
	         gnutls_cipher_get_name(gnutls_cipher_get(t->session)), who);
}

static int shake(struct tls *t)
{
	int e = gnutls_handshake(t->session), r;

	t->wants_write = gnutls_record_get_direction(t->session);
	if (e == GNUTLS_E_AGAIN || e == GNUTLS_E_INTERRUPTED ||
	    (e < 0 && !gnutls_error_is_fatal(e)))
		return 0;
	if (e < 0)
		return shake_failed(t, e);
	r = tls_creds_check_peer(t);
	if (r < 0)
		return shake_failed(t, GNUTLS_E_CERTIFICATE_ERROR);
	describe(t);
	t->step = TLS_DONE;
	return 1;
}

int tls_handshake(struct tls *t)
{
	int r = 1;

	while (r > 0 && t->step != TLS_DONE) {
		t->wants_write = false;
		t->error[0] = '\0';
		if (t->step == TLS_SEND)
			r = send_preamble(t);
		else if (t->step == TLS_RECEIVE)
			r = receive_preamble(t);
		else
			r = shake(t);
	}
	return r;
}

uint32_t tls_wants(const struct tls *t)
{
	return t->wants_write || t->step == TLS_SEND ? EPOLLOUT : EPOLLIN;
}

/* --- afterwards ------------------------------------------------------------------------ */

static ssize_t failed(struct tls *t, ssize_t e)
{
	if (e == GNUTLS_E_AGAIN || e == GNUTLS_E_INTERRUPTED || !gnutls_error_is_fatal((int)e))
		return -EAGAIN;
	if (e == GNUTLS_E_FATAL_ALERT_RECEIVED)
		return alerted(t);
	if (e == GNUTLS_E_PUSH_ERROR || e == GNUTLS_E_PULL_ERROR)
		return tls_fail(t, -ECONNRESET, "the connection broke");
	return tls_fail(t, -EPROTO, "TLS: %s", gnutls_strerror((int)e));
}

ssize_t tls_send(struct tls *t, const void *data, size_t len)
{
	ssize_t n = gnutls_record_send(t->session, data, len);

	return n < 0 ? failed(t, n) : n;
}

ssize_t tls_recv(struct tls *t, void *buf, size_t len)
{
	ssize_t n = gnutls_record_recv(t->session, buf, len);

	/* A process that dies says no good-bye; an end in good order is END, within the link. */
	if (n == GNUTLS_E_PREMATURE_TERMINATION)
		return 0;
	return n < 0 ? failed(t, n) : n;
}

bool tls_pending(const struct tls *t)
{
	return gnutls_record_check_pending(t->session) > 0;
}
