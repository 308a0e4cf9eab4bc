/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Certificates and keys, as GnuTLS wants them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "../ipc/creds.h"
#include "../ipc/util.h"
#include "tls-private.h"

/* AES-128-GCM first: half as fast again as AES-256-GCM where both are done by the CPU. */
#define CIPHERS "-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
#define X509    "NORMAL:-VERS-ALL:+VERS-TLS1.3:" CIPHERS
/* Only with a key exchange: who learns the key later can't read what was recorded. */
#define PSK     "NORMAL:-VERS-ALL:+VERS-TLS1.3:" CIPHERS ":-KX-ALL:+ECDHE-PSK:+DHE-PSK"
#define KEY_MAX 64

static int fail(char *why, size_t len, const char *what, int e)
{
	snprintf(why, len, "%s: %s", what, gnutls_strerror(e));
	return e == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL;
}

static gnutls_datum_t datum(const struct mc_creds *c, enum mc_creds_part p)
{
	return (gnutls_datum_t){(unsigned char *)c->part[p], (unsigned)c->len[p]};
}

static int load_x509(struct tls_creds *t, const struct mc_creds *c, char *why, size_t len)
{
	gnutls_datum_t ca = datum(c, MC_CREDS_CA), crl = datum(c, MC_CREDS_CRL);
	gnutls_datum_t cert = datum(c, MC_CREDS_CERT), key = datum(c, MC_CREDS_KEY);
	const char *end = t->side == MC_SIDE_PRIMARY ? "client" : "server";
	char what[300];
	int e = gnutls_certificate_allocate_credentials(&t->x509);

	if (e < 0)
		return fail(why, len, "TLS", e);
	snprintf(what, sizeof(what), "%s/ca-cert.pem", t->cfg->tls_dir);
	e = ca.size ? gnutls_certificate_set_x509_trust_mem(t->x509, &ca, GNUTLS_X509_FMT_PEM)
	            : GNUTLS_E_NO_CERTIFICATE_FOUND;
	if (e <= 0)
		return fail(why, len, what, e ? e : GNUTLS_E_NO_CERTIFICATE_FOUND);
	snprintf(what, sizeof(what), "%s/ca-crl.pem", t->cfg->tls_dir);
	e = crl.size ? gnutls_certificate_set_x509_crl_mem(t->x509, &crl, GNUTLS_X509_FMT_PEM) : 0;
	if (e < 0)
		return fail(why, len, what, e);
	snprintf(what, sizeof(what), "%s/%s-cert.pem with its key", t->cfg->tls_dir, end);
	e = gnutls_certificate_set_x509_key_mem(t->x509, &cert, &key, GNUTLS_X509_FMT_PEM);
	return e < 0 ? fail(why, len, what, e) : 0;
}

/* The line of @identity (@n bytes; 0: the first line), its key as binary. 0, -ENOENT, -EINVAL. */
static int find_key(const struct tls_creds *t, const char *identity, size_t n, uint8_t *key,
                    size_t *key_len, char *name, size_t name_len)
{
	for (const char *line = t->keys; line && *line; line = strchr(line, '\n')) {
		const char *colon;
		gnutls_datum_t hex;

		line += *line == '\n';
		colon = line + strcspn(line, ":\n");
		if (*colon != ':' || colon == line || *line == '#')
			continue;
		if (n && ((size_t)(colon - line) != n || memcmp(line, identity, n) != 0))
			continue;
		hex.data = (unsigned char *)colon + 1;
		hex.size = (unsigned)strspn(colon + 1, "0123456789abcdefABCDEF");
		*key_len = KEY_MAX;
		if (gnutls_hex_decode(&hex, key, key_len) < 0 || *key_len < 16)
			return -EINVAL;
		snprintf(name, name_len, "%.*s", (int)(colon - line), line);
		return 0;
	}
	return -ENOENT;
}

/* GnuTLS asks for the key of an identity that a client claims to have. */
static int on_identity(gnutls_session_t s, const gnutls_datum_t *identity, gnutls_datum_t *key)
{
	struct tls *t = gnutls_session_get_ptr(s);
	uint8_t buf[KEY_MAX];
	size_t len;
	char name[128];

	if (!identity->size || find_key(t->creds, (const char *)identity->data, identity->size, buf,
	                                &len, name, sizeof(name)) < 0) {
		for (size_t i = 0; i < identity->size && i < sizeof(t->unknown) - 1; i++) {
			uint8_t c = identity->data[i];

			t->unknown[i] = c > ' ' && c < 127 ? (char)c : '?';
		}
		return -1;
	}
	key->data = gnutls_malloc(len);
	if (!key->data)
		return -1;
	memcpy(key->data, buf, len);
	key->size = (unsigned)len;
	explicit_bzero(buf, sizeof(buf));
	return 0;
}

static int load_psk_client(struct tls_creds *t, char *why, size_t len)
{
	const char *want = t->cfg->psk_identity;
	uint8_t buf[KEY_MAX];
	size_t n;
	char name[128];
	gnutls_datum_t key;
	int e = find_key(t, want, strlen(want), buf, &n, name, sizeof(name));

	if (e == -ENOENT) {
		snprintf(why, len,
		         "%s: there is no line '%s:HEXKEY'; add it, or name another psk-identity",
		         t->cfg->psk_file, want[0] ? want : "IDENTITY");
		return -EINVAL;
	}
	if (e < 0) {
		snprintf(why, len,
		         "%s: the key must be 16 to 64 bytes in hexadecimal; psktool makes one",
		         t->cfg->psk_file);
		return e;
	}
	key = (gnutls_datum_t){buf, (unsigned)n};
	e = gnutls_psk_allocate_client_credentials(&t->psk_client);
	if (e >= 0)
		e = gnutls_psk_set_client_credentials(t->psk_client, name, &key,
		                                      GNUTLS_PSK_KEY_RAW);
	explicit_bzero(buf, sizeof(buf));
	return e < 0 ? fail(why, len, t->cfg->psk_file, e) : 0;
}

static int load_psk(struct tls_creds *t, struct mc_creds *c, char *why, size_t len)
{
	int e;

	t->keys = mc_take_ptr(c->part[MC_CREDS_PSK]);
	t->keys_len = c->len[MC_CREDS_PSK];
	if (t->side == MC_SIDE_PRIMARY)
		return load_psk_client(t, why, len);
	e = gnutls_psk_allocate_server_credentials(&t->psk_server);
	if (e < 0)
		return fail(why, len, t->cfg->psk_file, e);
	gnutls_psk_set_server_credentials_function2(t->psk_server, on_identity);
	return 0;
}

int tls_creds_new(struct tls_creds **ret, int fd, const struct mc_config *cfg, char *why,
                  size_t why_len)
{
	struct tls_creds *t = calloc(1, sizeof(*t));
	struct mc_creds c;
	int r, e;

	if (!t)
		return -ENOMEM;
	t->cfg = cfg;
	t->side = (enum mc_side)cfg->side;
	snprintf(why, why_len,
	         "the credentials for TLS can't be read; mc-supervisor's log says why, then mcctl "
	         "restart");
	/* No core file, and no debugger of the same user, gets to see a private key. */
	(void)prctl(PR_SET_DUMPABLE, 0);
	r = mc_creds_unpack(fd, &c);
	if (r == 0 && cfg->tls == MC_TLS_X509)
		r = load_x509(t, &c, why, why_len);
	else if (r == 0)
		r = load_psk(t, &c, why, why_len);
	mc_creds_done(&c);
	if (r == 0) {
		e = gnutls_priority_init(&t->priority, cfg->tls == MC_TLS_X509 ? X509 : PSK, NULL);
		r = e < 0 ? fail(why, why_len,
		                 "this GnuTLS has not what is needed; 3.7 or newer has", e)
		          : 0;
	}
	if (r < 0) {
		tls_creds_free(t);
		return r;
	}
	*ret = t;
	return 0;
}

struct tls_creds *tls_creds_free(struct tls_creds *c)
{
	if (!c)
		return NULL;
	if (c->priority)
		gnutls_priority_deinit(c->priority);
	if (c->x509)
		gnutls_certificate_free_credentials(c->x509);
	if (c->psk_client)
		gnutls_psk_free_client_credentials(c->psk_client);
	if (c->psk_server)
		gnutls_psk_free_server_credentials(c->psk_server);
	if (c->keys)
		explicit_bzero(c->keys, c->keys_len);
	free(c->keys);
	free(c);
	return NULL;
}
