/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether the peer is one that may replicate this guest. */
#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "../ipc/util.h"
#include "tls-private.h"

/* A line of allow-peer that equals @name. */
static bool listed(const char *list, const char *name)
{
	size_t n = strlen(name);

	for (const char *line = list; line && n; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, name, n) == 0 && (!line[n] || line[n] == '\n'))
			return true;
	}
	return false;
}

static int address_of(int fd, char *buf, size_t len)
{
	struct sockaddr_storage a = {0};
	socklen_t alen = sizeof(a);
	const void *p = &((struct sockaddr_in *)&a)->sin_addr;
	const struct in6_addr *v6 = &((struct sockaddr_in6 *)&a)->sin6_addr;
	int family;

	if (getpeername(fd, (struct sockaddr *)&a, &alen) < 0)
		return -errno;
	family = a.ss_family;
	if (family == AF_INET6) {
		p = v6;
		if (IN6_IS_ADDR_V4MAPPED(v6)) {
			family = AF_INET;
			p = v6->s6_addr + 12;
		}
	}
	return inet_ntop(family, p, buf, (socklen_t)len) ? 0 : -errno;
}

static int check_name(struct tls *t, gnutls_x509_crt_t crt, const char *dn)
{
	const struct mc_config *cfg = t->creds->cfg;
	char address[INET6_ADDRSTRLEN] = "";
	const char *want = cfg->tls_peer_name;

	if (!want[0] && t->creds->side == MC_SIDE_BACKUP && cfg->allow_peer[0])
		return 0; /* it is named by allow-peer, wherever it comes from */
	if (!want[0]) {
		if (address_of(t->fd, address, sizeof(address)) < 0)
			return tls_fail(t, -ENOTCONN,
			                "the peer's address is gone: it closed; it is tried again");
		want = address;
	}
	if (gnutls_x509_crt_check_hostname2(crt, want, GNUTLS_VERIFY_DO_NOT_ALLOW_WILDCARDS))
		return 0;
	return tls_fail(
	        t, -EKEYREJECTED,
	        "the certificate of %s isn't valid for the name %s; give the name that it has "
	        "as tls-peer-name%s",
	        dn, want, t->creds->side == MC_SIDE_BACKUP ? ", or its subject as allow-peer" : "");
}

static int check_allowed(struct tls *t, const char *dn, const char *cn)
{
	const char *list = t->creds->cfg->allow_peer;

	if (!list[0] || listed(list, dn) || listed(list, cn))
		return 0;
	t->denied = true;
	return tls_fail(t, -EKEYREJECTED,
	                "the peer %s may not replicate guest %s; allow it with allow-peer", dn,
	                t->creds->cfg->guest);
}

/* Its text goes into logs and terminals. */
static void printable(char *s)
{
	for (; *s; s++)
		if (*s < ' ' || *s == 127)
			*s = '?';
}

static int check_certificate(struct tls *t, const gnutls_datum_t *der)
{
	gnutls_datum_t dn = {NULL, 0};
	gnutls_x509_crt_t crt;
	char cn[200] = "", subject[200] = "?";
	size_t len = sizeof(cn);
	int r;

	if (gnutls_x509_crt_init(&crt) < 0)
		return tls_fail(t, -ENOMEM, "out of memory; free some on this host");
	if (gnutls_x509_crt_import(crt, der, GNUTLS_X509_FMT_DER) < 0 ||
	    gnutls_x509_crt_get_dn3(crt, &dn, 0) < 0) {
		r = tls_fail(t, -EKEYREJECTED,
		             "the peer's certificate can't be read; make it anew, as X.509");
	} else {
		snprintf(subject, sizeof(subject), "%.*s", (int)dn.size, (char *)dn.data);
		if (gnutls_x509_crt_get_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, 0, cn,
		                                  &len) < 0)
			cn[0] = '\0';
		printable(subject);
		r = check_name(t, crt, subject);
		if (r == 0)
			r = check_allowed(t, subject, cn);
		snprintf(t->peer, sizeof(t->peer), "%s", subject);
	}
	gnutls_free(dn.data);
	gnutls_x509_crt_deinit(crt);
	return r;
}

/* The chain: signed by our CA, in time, not revoked, for this purpose. */
static int check_chain(struct tls *t)
{
	const char *purpose = t->creds->side == MC_SIDE_PRIMARY ? GNUTLS_KP_TLS_WWW_SERVER
	                                                        : GNUTLS_KP_TLS_WWW_CLIENT;
	/* cppcheck-suppress legacyUninitvar */
	gnutls_typed_vdata_st data = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (void *)purpose};
	gnutls_datum_t text = {NULL, 0};
	unsigned status = 0;
	int e = gnutls_certificate_verify_peers(t->session, &data, 1, &status);

	if (e < 0)
		return tls_fail(t, -EKEYREJECTED,
		                "the peer's certificate can't be verified: %s; compare ca-cert.pem "
		                "on both ends",
		                gnutls_strerror(e));
	if (!status)
		return 0;
	e = gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
	tls_fail(t, -EKEYREJECTED,
	         "the peer's certificate is refused: %.300s(its CA must be that of this end's %s, "
	         "its "
	         "dates valid, the clocks right)",
	         e < 0 ? "" : (char *)text.data, "ca-cert.pem");
	gnutls_free(text.data);
	return -EKEYREJECTED;
}

int tls_verify(gnutls_session_t s)
{
	struct tls *t = gnutls_session_get_ptr(s);
	unsigned n = 0;
	const gnutls_datum_t *certs = gnutls_certificate_get_peers(s, &n);
	int r = certs && n ? check_chain(t)
	                   : tls_fail(t, -EKEYREJECTED,
	                              "the peer has no certificate; give it tls-dir");

	if (r == 0)
		r = check_certificate(t, &certs[0]);
	return r < 0 ? GNUTLS_E_CERTIFICATE_ERROR : 0;
}

static int check_identity(struct tls *t)
{
	const char *id = gnutls_psk_server_get_username(t->session);
	const char *list = t->creds->cfg->allow_peer;

	if (!id)
		return tls_fail(t, -EKEYREJECTED, "the peer has no identity; give it psk-identity");
	snprintf(t->peer, sizeof(t->peer), "%s", id);
	printable(t->peer);
	if (!list[0] || listed(list, id))
		return 0;
	t->denied = true;
	return tls_fail(t, -EKEYREJECTED,
	                "the identity %s may not replicate guest %s; allow it with allow-peer",
	                t->peer, t->creds->cfg->guest);
}

int tls_creds_check_peer(struct tls *t)
{
	if (t->creds->psk_server)
		return check_identity(t);
	if (t->creds->psk_client) {
		snprintf(t->peer, sizeof(t->peer), "the holder of the same key");
		return 0;
	}
	return t->peer[0]
	               ? 0
	               : tls_fail(t, -EKEYREJECTED, "the peer has no certificate; give it tls-dir");
}
