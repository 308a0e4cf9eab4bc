/* SPDX-License-Identifier: GPL-2.0-or-later */
/* TLS between two ends in one process: what precedes it, keys, refusals, data through full buffers.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "../ipc/creds.h"
#include "../ipc/util.h"
#include "tls.h"

#define KEYS                                                                                       \
	"# "                                                                                       \
	"identities\nfirst:00112233445566778899aabbccddeeff\nsecond:"                              \
	"ffeeddccbbaa99887766554433221100\n"
#define BYTES (1U << 20)

static char why[MC_WHY_MAX];

struct end {
	struct mc_config cfg;
	struct tls_creds *creds;
	struct tls *tls;
	int fd;
};

static int open_end(struct end *e, enum mc_side side, const char *keys, const char *identity)
{
	struct mc_creds c = {.part = {[MC_CREDS_PSK] = (char *)keys},
	                     .len = {[MC_CREDS_PSK] = strlen(keys)}};
	int fd = mc_creds_pack(&c), r;

	mc_config_defaults(&e->cfg);
	e->cfg.side = side;
	e->cfg.tls = MC_TLS_PSK;
	strcpy(e->cfg.guest, "vm");
	strcpy(e->cfg.psk_file, "keys.psk");
	strcpy(e->cfg.psk_identity, identity);
	r = tls_creds_new(&e->creds, fd, &e->cfg, why, sizeof(why));
	close(fd);
	return r;
}

static void close_end(struct end *e)
{
	tls_free(e->tls);
	tls_creds_free(e->creds);
	mc_closep(&e->fd);
}

/* Two ends with a small socket between them. */
static void open_pair(struct end *p, struct end *b, const char *keys, const char *identity)
{
	int sp[2], small = 8192;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sp), 0);
	for (int i = 0; i < 2; i++)
		(void)setsockopt(sp[i], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	p->fd = sp[0];
	b->fd = sp[1];
	assert_int_equal(open_end(p, MC_SIDE_PRIMARY, keys, identity), 0);
	assert_int_equal(open_end(b, MC_SIDE_BACKUP, KEYS, ""), 0);
	assert_int_equal(tls_new(&p->tls, p->creds, p->fd), 0);
	assert_int_equal(tls_new(&b->tls, b->creds, b->fd), 0);
}

/* Turns both until both are through, or one of them fails. */
static void shake(struct end *p, struct end *b, int *rp, int *rb)
{
	*rp = *rb = 0;
	for (int i = 0; i < 100 && *rp >= 0 && *rb >= 0 && (!*rp || !*rb); i++) {
		if (!*rp)
			*rp = tls_handshake(p->tls);
		if (!*rb)
			*rb = tls_handshake(b->tls);
	}
}

static void test_handshake_and_data(void **state)
{
	static uint8_t out[BYTES], in[BYTES];
	struct end p = {0}, b = {0};
	size_t sent = 0, got = 0;
	int rp, rb;

	(void)state;
	for (size_t i = 0; i < BYTES; i++)
		out[i] = (uint8_t)(i * 7 + i / 256);
	open_pair(&p, &b, KEYS, "second");
	assert_int_equal(tls_wants(p.tls), EPOLLOUT);
	assert_int_equal(tls_wants(b.tls), EPOLLIN);
	shake(&p, &b, &rp, &rb);
	assert_int_equal(rp, 1);
	assert_int_equal(rb, 1);
	assert_non_null(strstr(tls_peer(b.tls), "peer second"));
	assert_non_null(strstr(tls_peer(p.tls), "TLS1.3"));
	while (got < BYTES) {
		ssize_t n = sent < BYTES ? tls_send(p.tls, out + sent, BYTES - sent) : 0;

		assert_true(n >= 0 || n == -EAGAIN);
		sent += n > 0 ? (size_t)n : 0;
		n = tls_recv(b.tls, in + got, mc_min_u64(1000, BYTES - got));
		assert_true(n > 0 || n == -EAGAIN);
		got += n > 0 ? (size_t)n : 0;
	}
	assert_memory_equal(in, out, BYTES);
	assert_int_equal(tls_recv(b.tls, in, 1), -EAGAIN);
	mc_closep(&p.fd);
	assert_int_equal(tls_recv(b.tls, in, 1), 0);
	close_end(&p);
	close_end(&b);
}

/* An identity that isn't known, a key that differs, one that isn't allowed: told at both ends. */
static void test_refused(void **state)
{
	static const struct {
		const char *keys, *allow, *at_primary, *at_backup;
	} cases[] = {
	        {"third:00112233445566778899aabbccddeeff\n", "", "identity", "'third'"},
	        {"first:00000000000000000000000000000000\n", "", "another key", "another key"},
	        {KEYS, "second\nthird", "allow-peer", "first may not replicate guest vm"},
	};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(cases); i++) {
		struct end p = {0}, b = {0};
		uint8_t byte;
		int rp, rb;

		open_pair(&p, &b, cases[i].keys, "");
		strcpy(b.cfg.allow_peer, cases[i].allow);
		shake(&p, &b, &rp, &rb);
		assert_int_equal(rb, -EKEYREJECTED);
		assert_non_null(strstr(tls_error(b.tls), cases[i].at_backup));
		/* The primary learns it from the alert, which may come after its own last step. */
		if (!rp)
			rp = tls_handshake(p.tls);
		if (rp == 1)
			rp = (int)tls_recv(p.tls, &byte, 1);
		assert_int_equal(rp, -EKEYREJECTED);
		assert_non_null(strstr(tls_error(p.tls), cases[i].at_primary));
		close_end(&p);
		close_end(&b);
	}
}

static void test_bad_keys(void **state)
{
	static const char *const bad[] = {
	        "",        "nothing\n", ":00112233445566778899aabbccddeeff\n",
	        "a:xyz\n", "a:0011\n",  "#a:00112233445566778899aabbccddeeff"};
	struct end p = {.fd = -1};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(bad); i++) {
		assert_int_equal(open_end(&p, MC_SIDE_PRIMARY, bad[i], ""), -EINVAL);
		assert_non_null(strstr(why, "keys.psk"));
	}
	assert_int_equal(open_end(&p, MC_SIDE_PRIMARY, KEYS, "nobody"), -EINVAL);
	assert_non_null(strstr(why, "nobody"));
}

/* The message before the handshake, cut at every byte and damaged at every byte. */
static void test_preamble(void **state)
{
	uint8_t buf[TLS_PREAMBLE_MAX], bad[TLS_PREAMBLE_MAX];
	size_t n = tls_preamble_pack(MC_SIDE_PRIMARY, "vm", buf);

	(void)state;
	assert_int_equal(n, MC_WIRE_HEADER + MC_NAME_MAX);
	for (size_t have = 0; have < n; have++)
		assert_true(tls_preamble_check(MC_SIDE_PRIMARY, "vm", buf, have, why, sizeof(why)) >
		            0);
	assert_int_equal(tls_preamble_check(MC_SIDE_PRIMARY, "vm", buf, n, why, sizeof(why)), 0);
	assert_true(tls_preamble_check(MC_SIDE_PRIMARY, "vm2", buf, n, why, sizeof(why)) < 0);
	for (size_t i = 0; i < n; i++) {
		memcpy(bad, buf, n);
		bad[i] ^= 1;
		/* Another length asks for more; anything else is refused. */
		assert_int_not_equal(
		        tls_preamble_check(MC_SIDE_PRIMARY, "vm", bad, n, why, sizeof(why)), 0);
	}
	n = tls_preamble_pack(MC_SIDE_BACKUP, "vm", buf);
	assert_int_equal(n, MC_WIRE_HEADER);
	assert_int_equal(tls_preamble_check(MC_SIDE_BACKUP, "vm", buf, n, why, sizeof(why)), 0);
	assert_true(tls_preamble_check(MC_SIDE_PRIMARY, "vm", buf, n, why, sizeof(why)) < 0);
}

/* A plain HELLO at an encrypted standby is answered in the clear, so that the primary can say why.
 */
static void test_plain_primary(void **state)
{
	struct mc_wire_header h;
	struct end b = {0};
	uint8_t buf[1024] = {0};
	uint32_t reason;
	char text[MC_WHY_MAX];
	ssize_t n;
	int sp[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sp), 0);
	b.fd = sp[1];
	assert_int_equal(open_end(&b, MC_SIDE_BACKUP, KEYS, ""), 0);
	assert_int_equal(tls_new(&b.tls, b.creds, b.fd), 0);
	mc_wire_header_init(&h, MC_MSG_HELLO, &b.cfg.term, 0, sizeof(struct mc_wire_hello));
	memcpy(buf, &h, sizeof(h));
	n = (ssize_t)(sizeof(h) + sizeof(struct mc_wire_hello));
	assert_int_equal(send(sp[0], buf, (size_t)n, 0), n);
	assert_int_equal(tls_handshake(b.tls), -EKEYREJECTED);
	n = recv(sp[0], buf, sizeof(buf), 0);
	assert_true(n > MC_WIRE_HEADER);
	memcpy(&h, buf, sizeof(h));
	assert_int_equal(h.type, MC_MSG_END);
	assert_int_equal(mc_wire_reason_parse(buf + sizeof(h), h.length, &reason, text), 0);
	assert_non_null(strstr(text, "encrypted"));
	close(sp[0]);
	close_end(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_handshake_and_data), cmocka_unit_test(test_refused),
	        cmocka_unit_test(test_bad_keys),           cmocka_unit_test(test_preamble),
	        cmocka_unit_test(test_plain_primary),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
