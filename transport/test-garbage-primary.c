/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A primary and every message of a backup damaged, cut, or a lie: nothing is committed, the gate
 * stays shut, and a peer that behaves is served afterwards.
 */
#include <errno.h>

#include "test-message.h"

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
                                         MC_MSG_PING,  MC_MSG_END_ACK, MC_MSG_PONG, MC_MSG_HASHES};

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

#define MANY 80 /* slabs of an epoch: more than a link queues */

static void stage_many(struct world *w)
{
	struct mc_ring_end out;

	assert_int_equal(mc_ring_attach_producer(&out, w->sta.ring_transport[0], w->sta.ring_slots),
	                 0);
	assert_int_equal(mc_journal_begin(&w->cap.journal, 2), 0);
	atomic_store(&mc_journal_get(&w->cap.journal, 2)->base, 1);
	atomic_store(&mc_journal_get(&w->cap.journal, 2)->slabs, MANY);
	assert_int_equal(mc_journal_move(&w->cap.journal, 2, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED),
	                 0);
	for (uint32_t i = 0; i < MANY; i++) {
		mc_handle h;

		assert_int_equal(mc_pool_alloc(&w->sta.slabs, 2, false, &h), 0);
		*mc_pool_meta(&w->sta.slabs, h) = (struct mc_slab_meta){.epoch = 2,
		                                                        .seq = i,
		                                                        .kind = MC_KIND_ENCODED,
		                                                        .of_kind = MC_KIND_PAGES,
		                                                        .used = UNIT};
		memset(mc_pool_data(&w->sta.slabs, h), (int)i, UNIT);
		assert_int_equal(mc_ring_push(&out, h), 0);
	}
	/* Unless transport has given it up meanwhile. */
	(void)mc_journal_move(&w->sta.journal, 2, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED);
	mc_arena_ring_all(&w->sta);
}

/* A reset, as from a host that forgot the connection. */
static void reset(int fd)
{
	struct linger l = {.l_onoff = 1};

	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l)), 0);
	close(fd);
}

/* START, every slab from the first one on, COMMIT. */
static void read_whole_epoch(int fd)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	struct mc_wire_commit c;
	struct mc_wire_header h;
	struct mc_wire_slab s;
	uint64_t digest = 0;

	assert_int_equal(link_next(fd, &h, payload), MC_MSG_START);
	for (uint32_t i = 0; i < MANY; i++) {
		assert_int_equal(link_next(fd, &h, payload), MC_MSG_SLAB);
		memcpy(&s, payload, sizeof(s));
		assert_int_equal(s.seq, i);
		assert_int_equal(payload[sizeof(s) + UNIT / 2], i);
		digest ^= h.checksum;
	}
	assert_int_equal(link_next(fd, &h, payload), MC_MSG_COMMIT);
	memcpy(&c, payload, sizeof(c));
	/* What was sent on the links that broke doesn't count. */
	assert_int_equal(c.wire_bytes, MANY * UNIT);
	assert_true(c.digest == digest);
}

/* Links that break in the middle of an epoch: it is sent again whole, from its first slab. */
static void test_primary_link_breaks_while_sending(void **state)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	struct world *w = primary_world();
	int fd;

	(void)state;
	stage_many(w);
	for (int i = 0; i < 20; i++) {
		struct mc_wire_header h;

		fd = primary_link(w);
		write_any(fd, MC_MSG_HELLO, MC_SIDE_BACKUP);
		assert_int_equal(link_next(fd, &h, payload), MC_MSG_START);
		for (int n = 0; n < i % 5; n++)
			assert_int_equal(link_next(fd, &h, payload), MC_MSG_SLAB);
		reset(fd);
	}
	fd = primary_link(w);
	write_any(fd, MC_MSG_HELLO, MC_SIDE_BACKUP);
	read_whole_epoch(fd);
	assert_true(is_alive(w));
	close(fd);
	world_end(w);
}

static bool is_aborted(void *ctx)
{
	struct world *w = ctx;

	return mc_journal_state(&w->sup.journal, 2) == MC_EPOCH_ABORTED;
}

/* Refused before it is there whole: the rest isn't sent, the backup hears so, nothing leaks. */
static void test_primary_is_refused_while_sending(void **state)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	struct world *w = primary_world();
	struct mc_wire_header h;
	unsigned type;
	int fd;

	(void)state;
	stage_many(w);
	fd = primary_link(w);
	write_any(fd, MC_MSG_HELLO, MC_SIDE_BACKUP);
	assert_int_equal(link_next(fd, &h, payload), MC_MSG_START);
	write_any(fd, MC_MSG_NACK, MC_SIDE_BACKUP);
	assert_true(wait_until(&w->sup, is_aborted, w));
	while ((type = link_next(fd, &h, payload)) == MC_MSG_SLAB)
		;
	assert_int_equal(type, MC_MSG_ABORT);
	assert_int_equal(h.epoch, 2);
	assert_true(wait_until(&w->sup, nothing_owned, w));
	close(fd);
	world_end(w);
}

static bool is_linked(void *ctx)
{
	return atomic_load(&((struct world *)ctx)->sup.control->link) == MC_LINK_UP;
}

static bool is_stopped(void *ctx)
{
	return state_now(ctx) == MC_STATE_STOPPED;
}

/*
 * A first epoch that the backup can't take, and one that was given up: as nothing was sent, the
 * backup can't take over, and the protection ends without it.
 */
static void test_primary_sends_nothing(void **state)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX];
	static struct mc_hello hello;

	(void)state;
	for (int given_up = 0; given_up < 2; given_up++) {
		struct world *w = world_new(MC_SIDE_PRIMARY);
		struct msg m;
		int fd;

		atomic_store(&w->sup.control->armed_epoch, 2);
		world_start(w);
		fd = primary_link(w);
		fill_hello(&hello, MC_SIDE_BACKUP);
		hello.h.last_committed = 0;
		hello.h.max_epoch = MANY / 2 * UNIT;
		make(&m, MC_MSG_HELLO, 0, payload, mc_wire_hello_pack(&hello, payload));
		link_write(fd, m.buf, m.len);
		if (given_up) {
			assert_int_equal(mc_journal_begin(&w->cap.journal, 2), 0);
			assert_int_equal(mc_journal_abort_from(&w->cap.journal, 2, -EIO), 1);
			assert_true(wait_until(&w->sup, is_linked, w));
			close(fd);
			/* Refused at the next try: an armed one would have to wait for its backup.
			 */
			fd = primary_link(w);
			write_any(fd, MC_MSG_END, MC_SIDE_BACKUP);
		} else {
			stage_many(w);
		}
		assert_true(wait_until(&w->sup, is_stopped, w));
		assert_int_equal(atomic_load(&w->sup.control->first_sent), 0);
		close(fd);
		world_end(w);
	}
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
	        cmocka_unit_test(test_primary_damaged),
	        cmocka_unit_test(test_primary_cut),
	        cmocka_unit_test(test_primary_link_breaks_while_sending),
	        cmocka_unit_test(test_primary_is_refused_while_sending),
	        cmocka_unit_test(test_primary_sends_nothing),
	        cmocka_unit_test(test_primary_lies),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
