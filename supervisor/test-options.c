/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Options of a protection, and terms on disk. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "options.h"
#include "term.h"

static struct request rq;
static char why[512];

static int set(const char *key, const char *value)
{
	why[0] = '\0';
	return option_set(&rq, key, value, false, why, sizeof(why));
}

static void test_good_values(void **state)
{
	(void)state;
	request_init(&rq);
	assert_int_equal(set("interval", "12.5"), 0);
	assert_int_equal(atomic_load(&rq.cfg.interval_us), 12500);
	assert_int_equal(set("max-memory", "2G"), 0);
	assert_int_equal(rq.params.max_memory, 2ULL << 30);
	assert_int_equal(set("accept", "isa-serial"), 0);
	assert_int_equal(set("accept", "VGA"), 0);
	assert_string_equal(rq.cfg.accept, "isa-serial,VGA");
	assert_int_equal(set("zstd-level", "-5"), 0);
	assert_int_equal(atomic_load(&rq.cfg.zstd_level), -5);
	assert_int_equal(set("relay", "n0=unix:/run/r0,tap=tap0,netns=blue"), 0);
	assert_int_equal(set("relay", "n1=unix:/run/r1,sock=/run/peer,local=/run/me"), 0);
	assert_int_equal(rq.cfg.nnics, 2);
	assert_string_equal(rq.cfg.nic[0].netns, "blue");
	assert_string_equal(rq.cfg.nic[1].sock, "/run/peer");
	assert_int_equal(set("qmp", "/run/q"), 0);
	assert_int_equal(set("peer", "192.0.2.1:7911"), 0);
	assert_int_equal(set("peer", "192.0.2.1"), 0);
	assert_int_equal(set("peer", "[2001:db8::1]:65535"), 0);
	assert_int_equal(set("peer", "[2001:db8::1]"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), -EINVAL);
	assert_non_null(strstr(why, "insecure"));
	assert_int_equal(set("insecure", "true"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), 0);
}

/* How the link is secured: one way, named; certificates of the usual place when there are some. */
static void test_security(void **state)
{
	char dir[] = "/tmp/mc-test-XXXXXX", path[64];

	(void)state;
	request_init(&rq);
	assert_int_equal(set("qmp", "/run/q"), 0);
	assert_int_equal(set("peer", "192.0.2.1:7911"), 0);
	assert_int_equal(set("allow-peer", "CN=a,O=b"), 0);
	assert_int_equal(set("allow-peer", "c"), 0);
	assert_string_equal(rq.cfg.allow_peer, "CN=a,O=b\nc");
	assert_int_equal(set("allow-peer", "c\nd"), -EINVAL);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), -EINVAL);
	assert_non_null(strstr(why, "allow-peer"));
	assert_int_equal(set("psk-file", "keys"), -EINVAL);
	assert_int_equal(set("psk-file", "/etc/keys"), 0);
	assert_int_equal(set("tls-dir", "/etc/tls"), -EINVAL);
	assert_int_equal(rq.cfg.tls, MC_TLS_PSK);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), 0);
	assert_int_equal(set("insecure", "yes"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), -EINVAL);
	assert_int_equal(set("insecure", "no"), 0);
	assert_int_equal(set("tls-peer-name", "b.example"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), -EINVAL);

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/ca-cert.pem", dir);
	request_init(&rq);
	request_secure(&rq, dir);
	assert_int_equal(rq.cfg.tls, MC_TLS_NONE);
	fclose(fopen(path, "w"));
	rq.cfg.insecure = 1;
	request_secure(&rq, dir);
	assert_int_equal(rq.cfg.tls, MC_TLS_NONE);
	rq.cfg.insecure = 0;
	request_secure(&rq, dir);
	assert_int_equal(rq.cfg.tls, MC_TLS_X509);
	assert_string_equal(rq.cfg.tls_dir, dir);
	unlink(path);
	rmdir(dir);
}

/* Each is refused, names its key, and changes nothing. */
static void test_bad_values(void **state)
{
	static const char *const bad[][2] = {
	        {"interval", "0"},
	        {"interval", "often"},
	        {"interval", ""},
	        {"interval", "nan"},
	        {"interval", "60001"},
	        {"workers", "17"},
	        {"workers", "-1"},
	        {"slab-size", "5000"},
	        {"slab-size", "2T"},
	        {"max-memory", "1"},
	        {"on-overload", "panic"},
	        {"gate", "open"},
	        {"transport", "pigeon"},
	        {"tracker", "magic"},
	        {"insecure", "maybe"},
	        {"relay", "n0"},
	        {"relay", "n0=unix:"},
	        {"relay", "n0=tcp:/x"},
	        {"relay", "n0=unix:/x"},
	        {"relay", "n0=unix:/x,tap=a,sock=/y"},
	        {"relay", "n0=unix:/x,tap=0123456789abcdef"},
	        {"relay", "n0=unix:/x,colour=red"},
	        {"peer", "host-b:7911"},
	        {"peer", "host-b"},
	        {"peer", "192.0.2.1:"},
	        {"peer", "192.0.2.1:0"},
	        {"peer", "192.0.2.1:65536"},
	        {"peer", "192.0.2.1:7911x"},
	        {"peer", "192.0.2.1 :7911"},
	        {"peer", "[2001:db8::1"},
	        {"peer", "[2001:db8::1]7911"},
	        {"peer", ":7911"},
	        {"peer", "[]:7911"},
	        {"nic", ""},
	        {"nic", "0123456789abcdef"},
	        {"nic", "tap0,netns="},
	        {"nic", "tap0,colour=red"},
	        {"nic", "../tap0"},
	        {"qmp", ""},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct request before;

		request_init(&rq);
		before = rq;
		assert_int_equal(set(bad[i][0], bad[i][1]), -EINVAL);
		assert_non_null(strstr(why, bad[i][0]));
		before.gate_given = rq.gate_given;
		assert_memory_equal(&before, &rq, sizeof(rq));
	}
	assert_int_equal(set("colour", "red"), -ENOENT);
	assert_int_equal(option_set(&rq, "qmp", "/x", true, why, sizeof(why)), -EPERM);
	assert_int_equal(option_set(&rq, "interval", "50", true, why, sizeof(why)), 0);
}

/* Which gate NICs get, and which can't be had together. */
static void test_gates(void **state)
{
	(void)state;
	request_init(&rq);
	assert_true(request_takes_taps(&rq));
	assert_int_equal(set("nic", "tap0"), 0);
	assert_int_equal(set("nic", "tap0,netns=blue"), 0);
	assert_int_equal(set("nic", "tap0"), -EINVAL);
	assert_int_equal(rq.cfg.nnics, 2);
	assert_int_equal(rq.cfg.gate, MC_GATE_PLUG);
	assert_string_equal(rq.cfg.nic[1].netns, "blue");
	/* Taps were named: no others are taken. */
	assert_false(request_takes_taps(&rq));
	assert_int_equal(set("qmp", "/run/q"), 0);
	assert_int_equal(set("peer", "127.0.0.1:7911"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), 0);
	assert_int_equal(set("gate", "plug"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), 0);
	assert_int_equal(set("gate", "relay"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), -EINVAL);
	assert_int_equal(set("gate", "none"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), -EINVAL);
	assert_int_equal(set("relay", "n0=unix:/run/r0,tap=tap1"), 0);
	assert_int_equal(set("gate", "plug"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), -EINVAL);
	assert_non_null(strstr(why, "dgram"));
	/* Both kinds beside each other. */
	assert_int_equal(set("gate", "auto"), 0);
	assert_int_equal(request_check(&rq, true, why, sizeof(why)), 0);
	assert_int_equal(rq.cfg.gate, MC_GATE_PLUG);
	request_init(&rq);
	assert_int_equal(set("relay", "n0=unix:/run/r0,tap=tap1"), 0);
	assert_int_equal(rq.cfg.gate, MC_GATE_RELAY);
	assert_true(request_takes_taps(&rq));
	assert_int_equal(set("gate", "relay"), 0);
	assert_false(request_takes_taps(&rq));
}

static void test_too_many_nics(void **state)
{
	(void)state;
	request_init(&rq);
	for (int i = 0; i < MC_NICS_MAX; i++)
		assert_int_equal(set("relay", "n=unix:/r,tap=t"), 0);
	assert_int_equal(set("relay", "n=unix:/r,tap=t"), -EINVAL);
	assert_int_equal(rq.cfg.nnics, MC_NICS_MAX);
}

static void test_terms(void **state)
{
	char dir[] = "/tmp/test-term-XXXXXX", path[64];
	struct term_record r, got;
	FILE *f;

	(void)state;
	assert_non_null(mkdtemp(dir));
	assert_int_equal(term_load(dir, "vm", &r), 0);
	assert_int_equal(r.current.number, 0);
	r.current = term_next(&r);
	r.reserved = term_next(&r);
	assert_int_equal(r.current.number, 1);
	assert_int_equal(r.reserved.number, 2);
	assert_int_not_equal(r.current.id, r.reserved.id);
	assert_int_equal(term_store(dir, "vm", &r), 0);
	assert_int_equal(term_load(dir, "vm", &got), 0);
	assert_memory_equal(&r, &got, sizeof(r));
	/* A reserved term may have been used: the next one is above it. */
	assert_int_equal(term_next(&got).number, 3);
	snprintf(path, sizeof(path), "%s/vm.term", dir);
	f = fopen(path, "w");
	fputs("current what", f);
	fclose(f);
	assert_int_equal(term_load(dir, "vm", &got), -EBADMSG);
	unlink(path);
	rmdir(dir);
	assert_int_equal(term_store(dir, "vm", &r), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_good_values), cmocka_unit_test(test_security),
	        cmocka_unit_test(test_bad_values),  cmocka_unit_test(test_too_many_nics),
	        cmocka_unit_test(test_gates),       cmocka_unit_test(test_terms),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
