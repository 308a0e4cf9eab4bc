/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every message, damaged at every byte and cut at every byte, against both ends of a link: the
 * process lives, nothing of a damaged epoch gets through, nothing leaks, and a peer that
 * behaves is served afterwards.
 */
#include <stdlib.h>

#include "test-link.h"

#define CONTENT  20 /* bytes of the slab that is sent */
#define CHECKSUM offsetof(struct mc_wire_header, checksum)
#define MSG_MAX  (MC_WIRE_HEADER + MC_WIRE_HELLO_MAX)

struct msg {
	uint8_t buf[MSG_MAX];
	size_t len;
};

static void seal(struct msg *m)
{
	struct mc_wire_header h;

	memcpy(&h, m->buf, sizeof(h));
	h.checksum = mc_wire_checksum(&h, m->buf + sizeof(h), m->len - sizeof(h), NULL, 0);
	memcpy(m->buf, &h, sizeof(h));
}

static void make(struct msg *m, enum mc_msg type, uint64_t epoch, const void *payload, size_t len)
{
	struct mc_wire_header h;

	mc_wire_header_init(&h, type, &TERM, epoch, (uint32_t)len);
	memcpy(m->buf, &h, sizeof(h));
	if (len)
		memcpy(m->buf + sizeof(h), payload, len);
	m->len = sizeof(h) + len;
	seal(m);
}

static void make_hello(struct msg *m, enum mc_side side)
{
	static struct mc_hello hello;
	static uint8_t payload[MC_WIRE_HELLO_MAX];
	static const char text[] = "machine q35\nqemu 7.2\n";

	memset(&hello, 0, sizeof(hello));
	strcpy(hello.h.guest, "test");
	strcpy(hello.h.build, "x");
	hello.h.instance[0] = hello.h.instance[1] = 9;
	hello.h.slab_size = UNIT;
	hello.h.max_epoch = 8 * UNIT;
	hello.h.features = MC_FEATURE_DELTA;
	hello.h.failure_timeout_ms = 600000;
	hello.h.last_committed = side == MC_SIDE_BACKUP;
	hello.h.side = side;
	hello.h.blocks = 1;
	strcpy(hello.block[0].name, "ram");
	hello.block[0].size = RAM_BYTES;
	hello.h.description = sizeof(text) - 1;
	memcpy(hello.description, text, sizeof(text));
	make(m, MC_MSG_HELLO, 0, payload, mc_wire_hello_pack(&hello, payload));
}

static void make_slab(struct msg *m, uint64_t epoch)
{
	uint8_t payload[sizeof(struct mc_wire_slab) + CONTENT] = {0};
	struct mc_wire_slab s = {.of_kind = MC_KIND_STATE, .bytes = CONTENT};

	memcpy(payload, &s, sizeof(s));
	make(m, MC_MSG_SLAB, epoch, payload, sizeof(payload));
}

/* A correct message of each type, epoch 2 on the base of 1. */
static void make_any(struct msg *m, enum mc_msg type, enum mc_side side)
{
	struct mc_wire_start start = {.base = 1, .raw_bytes = CONTENT, .slabs = 1};
	struct mc_wire_commit commit = {.wire_bytes = CONTENT, .slabs = 1};
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

static void write_any(int fd, enum mc_msg type, enum mc_side side)
{
	struct msg m;

	make_any(&m, type, side);
	link_write(fd, m.buf, m.len);
}

/* Reads to the end of the connection. */
static void read_out(int fd)
{
	static uint8_t buf[65536];

	shutdown(fd, SHUT_WR);
	do
		wait_readable(fd);
	while (recv(fd, buf, sizeof(buf), 0) > 0);
	close(fd);
}

/* --- backup ---------------------------------------------------------------------------- */

static void expect_hello(int fd)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	struct mc_wire_header h;

	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HELLO);
}

static int backup_link(struct world *w)
{
	int fd = link_open(w);

	write_any(fd, MC_MSG_HELLO, MC_SIDE_PRIMARY);
	expect_hello(fd);
	return fd;
}

/* What came through is thrown away, as restore does with what it refuses. */
static void backup_clean(struct world *w)
{
	struct mc_ring_end in;
	mc_handle h;

	assert_int_equal(mc_ring_attach_consumer(&in, w->res.ring_restore, w->res.ring_slots), 0);
	while (mc_ring_peek(&in, 0, &h) == 1) {
		assert_int_equal(mc_pool_claim(&w->res.slabs, h, MC_ROLE_TRANSPORT), 0);
		assert_int_equal(mc_pool_free(&w->res.slabs, h), 0);
		mc_ring_advance(&in, 1);
	}
	(void)mc_journal_abort_from(&w->res.journal, 2, -EBADMSG);
	atomic_store(&w->sup.control->peer_end, 0);
}

static bool is_syncing(void *ctx)
{
	return state_now(ctx) == MC_STATE_SYNCING;
}

/* A backup that holds epoch 1 of us. */
static struct world *backup_world(void)
{
	struct world *w = world_new(MC_SIDE_BACKUP);
	struct mc_control *c = w->res.control;

	world_start(w);
	close(backup_link(w));
	assert_true(wait_until(&w->sup, is_syncing, w));
	assert_int_equal(mc_commit_reset(c, TERM.number), 0);
	assert_int_equal(mc_commit_advance(c, TERM.number, 1), 0);
	assert_int_equal(mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_SYNCING,
	                               MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT),
	                 0);
	return w;
}

/* A link on which @type may come next. */
static int backup_before(struct world *w, enum mc_msg type)
{
	int fd;

	if (type == MC_MSG_HELLO)
		return link_open(w);
	fd = backup_link(w);
	if (type == MC_MSG_SLAB || type == MC_MSG_COMMIT)
		write_any(fd, MC_MSG_START, MC_SIDE_PRIMARY);
	if (type == MC_MSG_COMMIT)
		write_any(fd, MC_MSG_SLAB, MC_SIDE_PRIMARY);
	return fd;
}

/* The end of a link is seen here before transport has cleared up behind it. */
static bool nothing_owned(void *ctx)
{
	return pool_owned(&((struct world *)ctx)->sup.slabs) == 0;
}

/* After whatever it was: nothing got through, nothing is left. */
static void backup_check(struct world *w, enum mc_msg type, size_t at)
{
	enum mc_epoch_state s = mc_journal_state(&w->sup.journal, 2);

	if (!is_alive(w))
		fail_msg("%s damaged at byte %zu: the process died", mc_msg_name(type), at);
	if (s == MC_EPOCH_CAPTURED)
		fail_msg("%s damaged at byte %zu: the epoch got through", mc_msg_name(type), at);
	assert_int_equal(mc_commit_epoch(atomic_load(&w->sup.control->commit)), 1);
	assert_int_equal(state_now(w), MC_STATE_PROTECTED);
	backup_clean(w);
	if (!wait_until(&w->sup, nothing_owned, w))
		fail_msg("%s damaged at byte %zu: %llu slabs leak", mc_msg_name(type), at,
		         (unsigned long long)pool_owned(&w->sup.slabs));
}

static void backup_good_epoch(struct world *w)
{
	int fd = backup_link(w);

	write_any(fd, MC_MSG_START, MC_SIDE_PRIMARY);
	write_any(fd, MC_MSG_SLAB, MC_SIDE_PRIMARY);
	write_any(fd, MC_MSG_COMMIT, MC_SIDE_PRIMARY);
	read_out(fd);
	if (mc_journal_state(&w->sup.journal, 2) != MC_EPOCH_CAPTURED)
		fail_msg("a good epoch is %s",
		         mc_epoch_state_name(mc_journal_state(&w->sup.journal, 2)));
	backup_clean(w);
	assert_true(wait_until(&w->sup, nothing_owned, w));
}

static const enum mc_msg to_backup[] = {MC_MSG_HELLO,   MC_MSG_START, MC_MSG_SLAB,
                                        MC_MSG_COMMIT,  MC_MSG_ABORT, MC_MSG_END,
                                        MC_MSG_END_ACK, MC_MSG_PING,  MC_MSG_PONG};

/* A byte is turned over; @sealed: the checksum is right again, the content isn't. */
static void backup_damaged(bool sealed)
{
	struct world *w = backup_world();

	for (size_t t = 0; t < MC_ARRAY_SIZE(to_backup); t++) {
		struct msg m;

		make_any(&m, to_backup[t], MC_SIDE_PRIMARY);
		for (size_t at = 0; at < m.len; at++) {
			int fd;

			if (sealed && at >= CHECKSUM && at < MC_WIRE_HEADER)
				continue;
			fd = backup_before(w, to_backup[t]);
			make_any(&m, to_backup[t], MC_SIDE_PRIMARY);
			m.buf[at] ^= 0xff;
			if (sealed)
				seal(&m);
			link_write(fd, m.buf, m.len);
			read_out(fd);
			backup_check(w, to_backup[t], at);
		}
		backup_good_epoch(w);
	}
	world_end(w);
}

static void test_backup_damaged(void **state)
{
	(void)state;
	backup_damaged(false);
}

static void test_backup_damaged_and_sealed(void **state)
{
	(void)state;
	backup_damaged(true);
}

static void test_backup_cut(void **state)
{
	struct world *w = backup_world();

	(void)state;
	for (size_t t = 0; t < MC_ARRAY_SIZE(to_backup); t++) {
		struct msg m;

		make_any(&m, to_backup[t], MC_SIDE_PRIMARY);
		for (size_t at = 0; at < m.len; at++) {
			int fd = backup_before(w, to_backup[t]);

			link_write(fd, m.buf, at);
			read_out(fd);
			backup_check(w, to_backup[t], at);
		}
		backup_good_epoch(w);
	}
	world_end(w);
}

/* What only a backup may say, and what comes in the wrong order. */
static void test_backup_wrong_order(void **state)
{
	static const enum mc_msg wrong[] = {MC_MSG_ACK, MC_MSG_NACK, MC_MSG_SLAB, MC_MSG_COMMIT,
	                                    MC_MSG_HELLO};
	struct world *w = backup_world();

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(wrong); i++) {
		int fd = backup_link(w);

		write_any(fd, wrong[i], MC_SIDE_PRIMARY);
		read_out(fd);
		backup_check(w, wrong[i], 0);
	}
	for (int twice = 0; twice < 2; twice++) { /* START in START; COMMIT after a repeated SLAB */
		int fd = backup_link(w);

		write_any(fd, MC_MSG_START, MC_SIDE_PRIMARY);
		write_any(fd, twice ? MC_MSG_SLAB : MC_MSG_START, MC_SIDE_PRIMARY);
		write_any(fd, MC_MSG_SLAB, MC_SIDE_PRIMARY);
		write_any(fd, MC_MSG_COMMIT, MC_SIDE_PRIMARY);
		read_out(fd);
		backup_check(w, MC_MSG_START, (size_t)twice);
	}
	backup_good_epoch(w);
	world_end(w);
}

/* --- primary --------------------------------------------------------------------------- */

/* Epoch 2 as the stage worker hands it over. */
static void stage_epoch(struct world *w)
{
	struct mc_ring_end out;
	struct mc_slab_meta *m;
	mc_handle h;

	assert_int_equal(mc_ring_attach_producer(&out, w->sta.ring_transport[0], w->sta.ring_slots),
	                 0);
	assert_int_equal(mc_journal_begin(&w->cap.journal, 2), 0);
	assert_int_equal(mc_pool_alloc(&w->sta.slabs, 2, false, &h), 0);
	m = mc_pool_meta(&w->sta.slabs, h);
	*m = (struct mc_slab_meta){
	        .epoch = 2, .kind = MC_KIND_ENCODED, .of_kind = MC_KIND_STATE, .used = CONTENT};
	atomic_store(&mc_journal_get(&w->cap.journal, 2)->base, 1);
	atomic_store(&mc_journal_get(&w->cap.journal, 2)->slabs, 1);
	assert_int_equal(mc_journal_move(&w->cap.journal, 2, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED),
	                 0);
	assert_int_equal(mc_ring_push(&out, h), 0);
	assert_int_equal(mc_journal_move(&w->sta.journal, 2, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED),
	                 0);
	mc_arena_ring_all(&w->sta);
}

/* A protected primary, epoch 1 committed, epoch 2 to be sent. */
static struct world *primary_world(void)
{
	struct world *w = world_new(MC_SIDE_PRIMARY);
	struct mc_control *c = w->sup.control;
	struct mc_arena tra;

	arena_as(&tra, &w->sup, MC_ROLE_TRANSPORT);
	atomic_store(&c->armed_epoch, 1);
	atomic_store(&c->peer_instance[0], 9);
	atomic_store(&c->peer_instance[1], 9);
	assert_int_equal(mc_journal_begin(&w->cap.journal, 1), 0);
	assert_int_equal(mc_journal_move(&w->cap.journal, 1, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED),
	                 0);
	assert_int_equal(mc_journal_move(&w->sta.journal, 1, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED),
	                 0);
	assert_int_equal(mc_journal_move(&tra.journal, 1, MC_EPOCH_STAGED, MC_EPOCH_SENT), 0);
	assert_int_equal(mc_journal_move(&tra.journal, 1, MC_EPOCH_SENT, MC_EPOCH_COMMITTED), 0);
	assert_int_equal(mc_state_move(c, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT, MC_STATE_SYNCING,
	                               MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT),
	                 0);
	mc_arena_done(&tra);
	world_start(w);
	return w;
}

/* The connection of the primary, its HELLO read. */
static int primary_link(struct world *w)
{
	int fd = link_accept(w);

	expect_hello(fd);
	return fd;
}

/* Answered, and epoch 2 received. */
static int primary_served(struct world *w)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	int fd = primary_link(w);
	struct mc_wire_header h;

	write_any(fd, MC_MSG_HELLO, MC_SIDE_BACKUP);
	assert_int_equal(link_next(fd, &h, payload), MC_MSG_START);
	assert_int_equal(h.epoch, 2);
	assert_int_equal(link_next(fd, &h, payload), MC_MSG_SLAB);
	assert_int_equal(link_next(fd, &h, payload), MC_MSG_COMMIT);
	return fd;
}

static void primary_check(struct world *w, enum mc_msg type, size_t at)
{
	if (!is_alive(w))
		fail_msg("%s damaged at byte %zu: the process died", mc_msg_name(type), at);
	if (mc_journal_state(&w->sup.journal, 2) != MC_EPOCH_SENT)
		fail_msg("%s damaged at byte %zu: epoch 2 is %s", mc_msg_name(type), at,
		         mc_epoch_state_name(mc_journal_state(&w->sup.journal, 2)));
	if (state_now(w) != MC_STATE_PROTECTED || atomic_load(&w->sup.control->end_acked))
		fail_msg("%s damaged at byte %zu: state %s", mc_msg_name(type), at,
		         mc_state_name(state_now(w)));
}

static const enum mc_msg to_primary[] = {MC_MSG_HELLO, MC_MSG_ACK,     MC_MSG_NACK, MC_MSG_END,
                                         MC_MSG_PING,  MC_MSG_END_ACK, MC_MSG_PONG};

/*
 * Every @step'th byte of each message turned over, or the message cut there: each makes the
 * primary connect anew, which takes its time.
 */
static void primary_bad(bool cut)
{
	struct world *w = primary_world();

	stage_epoch(w);
	for (size_t t = 0; t < MC_ARRAY_SIZE(to_primary); t++) {
		size_t step = to_primary[t] == MC_MSG_HELLO ? 11 : 3;
		struct msg m;

		make_any(&m, to_primary[t], MC_SIDE_BACKUP);
		for (size_t at = 0; at < m.len; at += step) {
			bool first = to_primary[t] == MC_MSG_HELLO;
			int fd = first ? primary_link(w) : primary_served(w);

			make_any(&m, to_primary[t], MC_SIDE_BACKUP);
			m.buf[at] ^= 0xff;
			link_write(fd, m.buf, cut ? at : m.len);
			read_out(fd);
			/* Nothing was sent yet when the very first HELLO was bad. */
			if (!first)
				primary_check(w, to_primary[t], at);
		}
	}
	close(primary_served(w));
	primary_check(w, MC_MSG_HELLO, 0);
	world_end(w);
}

static void test_primary_damaged(void **state)
{
	(void)state;
	primary_bad(false);
}

static void test_primary_cut(void **state)
{
	(void)state;
	primary_bad(true);
}

static bool is_committed(void *ctx)
{
	struct world *w = ctx;

	return mc_journal_state(&w->sup.journal, 2) == MC_EPOCH_COMMITTED;
}

/* ACKs of what was never sent, of another term; an END_ACK that nobody asked for. */
static void test_primary_lies(void **state)
{
	struct world *w = primary_world();
	struct mc_wire_header h;
	struct msg m;
	int fd;

	(void)state;
	stage_epoch(w);
	for (int i = 0; i < 4; i++) {
		fd = primary_served(w);
		make_any(&m, i == 3 ? MC_MSG_END_ACK : MC_MSG_ACK, MC_SIDE_BACKUP);
		memcpy(&h, m.buf, sizeof(h));
		if (i == 0)
			h.epoch = 3;
		if (i == 1)
			h.term++;
		if (i == 2)
			h.term_id++;
		memcpy(m.buf, &h, sizeof(h));
		seal(&m);
		link_write(fd, m.buf, m.len);
		read_out(fd);
		primary_check(w, MC_MSG_ACK, (size_t)i);
	}
	fd = primary_served(w);
	write_any(fd, MC_MSG_ACK, MC_SIDE_BACKUP);
	assert_true(wait_until(&w->sup, is_committed, w));
	close(fd);
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_backup_damaged),
	        cmocka_unit_test(test_backup_damaged_and_sealed),
	        cmocka_unit_test(test_backup_cut),
	        cmocka_unit_test(test_backup_wrong_order),
	        cmocka_unit_test(test_primary_damaged),
	        cmocka_unit_test(test_primary_cut),
	        cmocka_unit_test(test_primary_lies),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
