/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Wire format: every field of every message damaged, every length cut. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util.h"
#include "wire.h"

static const struct mc_term term = {.number = 7, .id = 0x1234};
static char why[128];

static struct mc_wire_limits limits(enum mc_side from)
{
	return (struct mc_wire_limits){
	        .slab_size = 1 << 20, .have_term = 1, .term = term, .from = from};
}

/* A correct header of each type, from whoever may send it. */
static struct mc_wire_header good(unsigned type, enum mc_side *from)
{
	static const uint32_t length[MC_MSG_TYPES] = {
	        [MC_MSG_HELLO] = sizeof(struct mc_wire_hello),
	        [MC_MSG_START] = sizeof(struct mc_wire_start),
	        [MC_MSG_SLAB] = sizeof(struct mc_wire_slab) + 100,
	        [MC_MSG_COMMIT] = sizeof(struct mc_wire_commit),
	        [MC_MSG_NACK] = sizeof(struct mc_wire_reason),
	        [MC_MSG_END] = sizeof(struct mc_wire_reason),
	        [MC_MSG_PING] = sizeof(struct mc_wire_ping),
	        [MC_MSG_PONG] = sizeof(struct mc_wire_ping),
	        [MC_MSG_RDMA_ASK] = sizeof(struct mc_wire_rdma_ask),
	        [MC_MSG_RDMA_OFFER] = sizeof(struct mc_wire_rdma_offer),
	        [MC_MSG_HASH_ASK] = sizeof(struct mc_wire_hash_ask),
	        [MC_MSG_HASHES] = sizeof(struct mc_wire_hashes),
	};
	bool backup = type == MC_MSG_ACK || type == MC_MSG_NACK || type == MC_MSG_RDMA_OFFER ||
	              type == MC_MSG_HASHES;
	bool epoch = (type >= MC_MSG_START && type <= MC_MSG_ABORT);
	struct mc_wire_header h;

	*from = backup ? MC_SIDE_BACKUP : MC_SIDE_PRIMARY;
	mc_wire_header_init(&h, (enum mc_msg)type, &term, epoch ? 3 : 0, length[type]);
	return h;
}

/* In the first copy, too. */
static bool any_epoch(unsigned type)
{
	return type == MC_MSG_SLAB || type == MC_MSG_HASH_ASK || type == MC_MSG_HASHES;
}

static void test_good_headers(void **state)
{
	(void)state;
	for (unsigned type = 1; type < MC_MSG_TYPES; type++) {
		enum mc_side from;
		struct mc_wire_header h = good(type, &from);
		struct mc_wire_limits l = limits(from);

		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), 0);
		assert_string_not_equal(mc_msg_name(type), "?");
	}
}

/* Each field that must have one value, with another one. */
static void test_bad_headers(void **state)
{
	(void)state;
	for (unsigned type = 1; type < MC_MSG_TYPES; type++) {
		enum mc_side from;
		const struct mc_wire_header g = good(type, &from);
		struct mc_wire_limits l = limits(from);
		struct mc_wire_header h = g;

		h.magic ^= 1;
		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), -EPROTO);
		h = g, h.version++;
		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), -EPROTONOSUPPORT);
		h = g, h.reserved = 1;
		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), -EPROTO);
		h = g, h.epoch = MC_EPOCH_MAX + 1;
		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), -EPROTO);
		h = g, h.term++;
		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), -ESTALE);
		h = g, h.term_id++;
		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), -ESTALE);
		h = g, h.length = UINT32_MAX;
		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), -EPROTO);
		if (g.length) {
			h = g,
			h.length = type == MC_MSG_SLAB ? sizeof(struct mc_wire_slab) : g.length - 1;
			assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)), -EPROTO);
		}
		h = g, h.epoch = g.epoch ? 0 : 1;
		assert_int_equal(mc_wire_header_check(&h, &l, why, sizeof(why)),
		                 any_epoch(type) ? 0 : -EPROTO);
	}
}

static void test_types(void **state)
{
	static const unsigned only_primary[] = {MC_MSG_START, MC_MSG_SLAB,     MC_MSG_COMMIT,
	                                        MC_MSG_ABORT, MC_MSG_RDMA_ASK, MC_MSG_HASH_ASK};
	static const unsigned only_backup[] = {MC_MSG_ACK, MC_MSG_NACK, MC_MSG_RDMA_OFFER,
	                                       MC_MSG_HASHES};
	struct mc_wire_limits p = limits(MC_SIDE_PRIMARY), b = limits(MC_SIDE_BACKUP);
	struct mc_wire_header h;
	enum mc_side from;

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(only_primary); i++) {
		h = good(only_primary[i], &from);
		assert_int_equal(mc_wire_header_check(&h, &b, why, sizeof(why)), -EPROTO);
	}
	for (size_t i = 0; i < MC_ARRAY_SIZE(only_backup); i++) {
		h = good(only_backup[i], &from);
		assert_int_equal(mc_wire_header_check(&h, &p, why, sizeof(why)), -EPROTO);
	}
	h = good(MC_MSG_PING, &from);
	h.type = 0;
	assert_int_equal(mc_wire_header_check(&h, &p, why, sizeof(why)), -EPROTO);
	h.type = MC_MSG_TYPES;
	assert_int_equal(mc_wire_header_check(&h, &p, why, sizeof(why)), -EPROTO);
	h.type = UINT16_MAX;
	assert_int_equal(mc_wire_header_check(&h, &p, why, sizeof(why)), -EPROTO);
	/* A slab may be as large as agreed, not a byte more. */
	h = good(MC_MSG_SLAB, &from);
	h.length = sizeof(struct mc_wire_slab) + (1 << 20);
	assert_int_equal(mc_wire_header_check(&h, &p, why, sizeof(why)), 0);
	h.length++;
	assert_int_equal(mc_wire_header_check(&h, &p, why, sizeof(why)), -EPROTO);
	h = good(MC_MSG_HASHES, &from);
	h.length = MC_WIRE_HASHES_MAX;
	assert_int_equal(mc_wire_header_check(&h, &b, why, sizeof(why)), 0);
	h.length++;
	assert_int_equal(mc_wire_header_check(&h, &b, why, sizeof(why)), -EPROTO);
}

/* The checksum sees every bit of header and payload, however the payload is cut. */
static void test_checksum(void **state)
{
	uint8_t payload[100];
	enum mc_side from;
	struct mc_wire_header h = good(MC_MSG_SLAB, &from);
	uint64_t sum;

	(void)state;
	memset(payload, 5, sizeof(payload));
	sum = mc_wire_checksum(&h, payload, sizeof(payload), NULL, 0);
	assert_int_equal(mc_wire_checksum(&h, payload, 30, payload + 30, 70), sum);
	h.checksum = sum;
	assert_int_equal(mc_wire_checksum(&h, payload, sizeof(payload), NULL, 0), sum);
	for (size_t i = 0; i < sizeof(payload); i++) {
		payload[i] ^= 1;
		assert_int_not_equal(mc_wire_checksum(&h, payload, sizeof(payload), NULL, 0), sum);
		payload[i] ^= 1;
	}
	for (size_t i = 0; i < offsetof(struct mc_wire_header, checksum); i++) {
		((uint8_t *)&h)[i] ^= 0x80;
		assert_int_not_equal(mc_wire_checksum(&h, payload, sizeof(payload), NULL, 0), sum);
		((uint8_t *)&h)[i] ^= 0x80;
	}
}

static struct mc_hello hello;
static uint8_t wire[MC_WIRE_HELLO_MAX + 1];

static size_t make_hello(void)
{
	memset(&hello, 0, sizeof(hello));
	strcpy(hello.h.guest, "vm");
	strcpy(hello.h.build, "1.0");
	hello.h.side = MC_SIDE_PRIMARY;
	hello.h.blocks = 2;
	strcpy(hello.block[0].name, "ram0");
	strcpy(hello.block[1].name, "ram1");
	hello.block[1].size = 12345;
	strcpy(hello.description, "machine q35\n");
	hello.h.description = (uint32_t)strlen(hello.description);
	return mc_wire_hello_pack(&hello, wire);
}

static void test_hello(void **state)
{
	static struct mc_hello got;
	size_t n = make_hello();

	(void)state;
	assert_int_equal(mc_wire_hello_parse(wire, n, &got, why, sizeof(why)), 0);
	assert_string_equal(got.h.guest, "vm");
	assert_int_equal(got.block[1].size, 12345);
	assert_string_equal(got.description, "machine q35\n");
	for (size_t len = 0; len < n; len++)
		assert_int_equal(mc_wire_hello_parse(wire, len, &got, why, sizeof(why)), -EPROTO);
	assert_int_equal(mc_wire_hello_parse(wire, n + 1, &got, why, sizeof(why)), -EPROTO);
}

static void test_hello_fields(void **state)
{
	static struct mc_hello got;
	size_t n = make_hello();
	const struct mc_hello was = hello;

	(void)state;
#define BAD(change)                                                                                \
	do {                                                                                       \
		hello = was;                                                                       \
		change;                                                                            \
		(void)mc_wire_hello_pack(&was, wire);                                              \
		memcpy(wire, &hello.h, sizeof(hello.h));                                           \
		memcpy(wire + sizeof(hello.h), hello.block, 2 * sizeof(hello.block[0]));           \
		assert_int_equal(mc_wire_hello_parse(wire, n, &got, why, sizeof(why)), -EPROTO);   \
		assert_true(why[0]);                                                               \
	} while (0)
	BAD(memset(hello.h.guest, 'x', sizeof(hello.h.guest)));
	BAD(strcpy(hello.h.guest, "../etc"));
	BAD(hello.h.guest[0] = '\0');
	BAD(memset(hello.h.build, 'x', sizeof(hello.h.build)));
	BAD(hello.h.blocks = MC_BLOCKS_MAX + 1);
	BAD(hello.h.blocks = 3);
	BAD(hello.h.blocks = UINT32_MAX);
	BAD(hello.h.description = MC_DESC_TEXT);
	BAD(hello.h.description++);
	BAD(hello.h.side = 0);
	BAD(hello.h.side = 9);
	BAD(hello.h.taken_over = 2);
	BAD(hello.h.resync = 3);
	BAD(hello.h.ask = 2);
	BAD(hello.h.stream = MC_STREAMS_MAX);
	BAD(memset(hello.block[1].name, 'x', sizeof(hello.block[1].name)));
#undef BAD
}

static void test_reason(void **state)
{
	uint8_t buf[sizeof(struct mc_wire_reason) + MC_WHY_MAX];
	char text[MC_WHY_MAX], longest[MC_WHY_MAX + 100];
	uint32_t reason;
	size_t n = mc_wire_reason_pack(5, "so \x1b[2J it is", buf);

	(void)state;
	assert_int_equal(mc_wire_reason_parse(buf, n, &reason, text), 0);
	assert_int_equal(reason, 5);
	assert_string_equal(text, "so ?[2J it is"); /* nothing that a terminal would obey */
	for (size_t len = 0; len < n; len++)
		assert_int_equal(mc_wire_reason_parse(buf, len, &reason, text), -EPROTO);
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	n = mc_wire_reason_pack(1, longest, buf);
	assert_int_equal(mc_wire_reason_parse(buf, n, &reason, text), 0);
	assert_int_equal(strlen(text), MC_WHY_MAX - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_good_headers), cmocka_unit_test(test_bad_headers),
	        cmocka_unit_test(test_types),        cmocka_unit_test(test_checksum),
	        cmocka_unit_test(test_hello),        cmocka_unit_test(test_hello_fields),
	        cmocka_unit_test(test_reason),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
