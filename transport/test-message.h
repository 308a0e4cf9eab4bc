/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Correct messages of every type, as a peer sends them. */
#ifndef MC_TRANSPORT_TEST_MESSAGE_H
#define MC_TRANSPORT_TEST_MESSAGE_H

#include <stdlib.h>

#include "test-link.h"

#define CONTENT 20 /* bytes of the slab that is sent */
#define MSG_MAX (MC_WIRE_HEADER + MC_WIRE_HELLO_MAX)

struct msg {
	uint8_t buf[MSG_MAX];
	size_t len;
};

static inline void seal(struct msg *m)
{
	struct mc_wire_header h;

	memcpy(&h, m->buf, sizeof(h));
	h.checksum = mc_wire_checksum(&h, m->buf + sizeof(h), m->len - sizeof(h), NULL, 0);
	memcpy(m->buf, &h, sizeof(h));
}

static inline void make(struct msg *m, enum mc_msg type, uint64_t epoch, const void *payload,
                        size_t len)
{
	struct mc_wire_header h;

	mc_wire_header_init(&h, type, &TERM, epoch, (uint32_t)len);
	memcpy(m->buf, &h, sizeof(h));
	if (len)
		memcpy(m->buf + sizeof(h), payload, len);
	m->len = sizeof(h) + len;
	seal(m);
}

static inline void fill_hello(struct mc_hello *to, enum mc_side side)
{
	static const char text[] = "machine q35\nqemu 7.2\n";
	struct mc_hello hello;

	memset(&hello, 0, sizeof(hello));
	strcpy(hello.h.guest, "test");
	strcpy(hello.h.build, "x");
	hello.h.instance[0] = hello.h.instance[1] = 9;
	hello.h.slab_size = UNIT;
	hello.h.max_epoch = 256 * UNIT;
	hello.h.features = MC_FEATURE_DELTA;
	hello.h.failure_timeout_ms = 600000;
	hello.h.last_committed = side == MC_SIDE_BACKUP;
	hello.h.side = side;
	hello.h.blocks = 1;
	strcpy(hello.block[0].name, "ram");
	hello.block[0].size = RAM_BYTES;
	hello.h.description = sizeof(text) - 1;
	memcpy(hello.description, text, sizeof(text));
	*to = hello;
}

static inline void make_hello(struct msg *m, enum mc_side side)
{
	static struct mc_hello hello;
	static uint8_t payload[MC_WIRE_HELLO_MAX];

	fill_hello(&hello, side);
	make(m, MC_MSG_HELLO, 0, payload, mc_wire_hello_pack(&hello, payload));
}

static inline void make_slab(struct msg *m, uint64_t epoch)
{
	uint8_t payload[sizeof(struct mc_wire_slab) + CONTENT] = {0};
	struct mc_wire_slab s = {.of_kind = MC_KIND_STATE, .bytes = CONTENT};

	memcpy(payload, &s, sizeof(s));
	make(m, MC_MSG_SLAB, epoch, payload, sizeof(payload));
}

/* A correct message of each type, epoch 2 on the base of 1. */
static inline void make_any(struct msg *m, enum mc_msg type, enum mc_side side)
{
	struct mc_wire_start start = {.base = 1, .raw_bytes = CONTENT, .slabs = 1};
	struct mc_wire_commit commit = {.wire_bytes = CONTENT, .slabs = 1};
	struct mc_wire_hash_ask ask = {.seed = 1, .first = 64, .pages = 64};
	struct mc_wire_hashes hashes = {.first = 64};
	struct mc_wire_ping ping = {.stamp = 1};
	uint8_t text[64];
	struct mc_wire_header h;

	switch (type) {
	case MC_MSG_HELLO:
		make_hello(m, side);
		return;
	case MC_MSG_START:
		make(m, type, 2, &start, sizeof(start));
		return;
	case MC_MSG_SLAB:
		make_slab(m, 2);
		return;
	case MC_MSG_COMMIT:
		make_slab(m, 2);
		memcpy(&h, m->buf, sizeof(h));
		commit.digest = h.checksum;
		make(m, type, 2, &commit, sizeof(commit));
		return;
	case MC_MSG_PING:
	case MC_MSG_PONG:
		make(m, type, 0, &ping, sizeof(ping));
		return;
	case MC_MSG_HASH_ASK:
		make(m, type, 1, &ask, sizeof(ask));
		return;
	case MC_MSG_HASHES:
		make(m, type, 1, &hashes, sizeof(hashes));
		return;
	case MC_MSG_NACK:
		make(m, type, 2, text, mc_wire_reason_pack(1, "why", text));
		return;
	case MC_MSG_END:
		make(m, type, 0, text, mc_wire_reason_pack(MC_REASON_UNPROTECT, "why", text));
		return;
	default:
		make(m, type, type == MC_MSG_END_ACK ? 0 : 2, NULL, 0);
	}
}

static inline void write_any(int fd, enum mc_msg type, enum mc_side side)
{
	struct msg m;

	make_any(&m, type, side);
	link_write(fd, m.buf, m.len);
}

/* Reads to the end of the connection. */
static inline void read_out(int fd)
{
	static uint8_t buf[65536];

	shutdown(fd, SHUT_WR);
	do
		wait_readable(fd);
	while (recv(fd, buf, sizeof(buf), 0) > 0);
	close(fd);
}

static inline void expect_hello(int fd)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	struct mc_wire_header h;

	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HELLO);
}

/* The end of a link is seen here before transport has cleared up behind it. */
static inline bool nothing_owned(void *ctx)
{
	return pool_owned(&((struct world *)ctx)->sup.slabs) == 0;
}

#endif
