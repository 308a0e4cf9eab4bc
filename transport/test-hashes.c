/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Page hashes on a link, both ends: who is asked what, and what a peer gets for a lie. */
#include <errno.h>

#include "test-message.h"

static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];

static void write_hello(int fd, enum mc_side side, uint64_t features, uint32_t resync)
{
	static struct mc_hello hello;
	struct msg m;

	fill_hello(&hello, side);
	hello.h.features = features;
	hello.h.resync = resync;
	hello.h.last_committed = 0;
	make(&m, MC_MSG_HELLO, 0, payload, mc_wire_hello_pack(&hello, payload));
	link_write(fd, m.buf, m.len);
}

static void write_ask(int fd, uint64_t first, uint32_t pages)
{
	struct mc_wire_hash_ask ask = {.seed = 5, .first = first, .pages = pages};
	struct msg m;

	make(&m, MC_MSG_HASH_ASK, 0, &ask, sizeof(ask));
	link_write(fd, m.buf, m.len);
}

/* Hashes of pages [first, first + 64): the page's number. */
static void fill_slot(struct mc_hash_slot *s, uint64_t first)
{
	s->q.first = first;
	s->q.pages = 64;
	s->known = 1;
	for (uint64_t i = 0; i < 64; i++)
		s->hash[i] = (struct mc_page_hash){.low = first + i};
}

static bool is_closed(int fd)
{
	struct mc_wire_header h;

	return link_next(fd, &h, payload) == 0;
}

/* --- backup ---------------------------------------------------------------------------- */

static uint32_t answered_resync(int fd)
{
	struct mc_wire_header h;
	struct mc_wire_hello hello;

	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HELLO);
	memcpy(&hello, payload, sizeof(hello));
	assert_true(hello.features & MC_FEATURE_HASHES);
	return hello.resync;
}

static struct world *backup_world(bool kept)
{
	struct world *w = world_new(MC_SIDE_BACKUP);

	atomic_store(&w->sup.control->ram_kept, kept);
	world_start(w);
	return w;
}

static bool has_question(void *ctx)
{
	struct mc_hash_box *box = ((struct world *)ctx)->res.hashes;

	return mc_hash_question(box, atomic_load(&box->answered)) != NULL;
}

/* As restore answers the oldest question. */
static void answer(struct world *w)
{
	struct mc_hash_box *box = w->res.hashes;
	struct mc_hash_slot *s;

	assert_true(wait_until(&w->res, has_question, w));
	s = mc_hash_question(box, atomic_load(&box->answered));
	assert_int_equal(s->q.seed, 5);
	fill_slot(s, s->q.first);
	mc_hash_answered(box, true);
	mc_arena_ring(&w->res, MC_ROLE_TRANSPORT);
}

static void expect_hashes(int fd, uint64_t first)
{
	static struct mc_hash_slot got, want;
	struct mc_wire_header h;

	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HASHES);
	assert_int_equal(h.epoch, 0);
	assert_int_equal(mc_hashes_parse(payload, h.length, &got), 0);
	assert_int_equal(got.q.first, first);
	fill_slot(&want, first);
	assert_memory_equal(got.hash, want.hash, 64 * sizeof(want.hash[0]));
}

static void test_backup_answers(void **state)
{
	struct world *w = backup_world(true);
	int fd = link_open(w);

	(void)state;
	write_hello(fd, MC_SIDE_PRIMARY, MC_FEATURE_HASHES, 0);
	assert_int_equal(answered_resync(fd), 2);
	for (uint64_t i = 0; i < 40; i++) {
		write_ask(fd, i * 64, 64);
		write_ask(fd, i * 64 + 64, 64);
		answer(w);
		answer(w);
		expect_hashes(fd, i * 64);
		expect_hashes(fd, i * 64 + 64);
	}
	close(fd);
	world_end(w);
}

static bool must_empty(void *ctx)
{
	return atomic_load(&((struct world *)ctx)->sup.control->want_empty);
}

/* One of an older release: turned away until the RAM is empty, then filled as ever. */
static void test_backup_is_emptied(void **state)
{
	struct world *w = backup_world(true);
	int fd = link_open(w);

	(void)state;
	write_hello(fd, MC_SIDE_PRIMARY, MC_FEATURE_DELTA, 0);
	assert_true(is_closed(fd));
	close(fd);
	assert_true(wait_until(&w->res, must_empty, w));
	assert_int_equal(state_now(w), MC_STATE_WAITING);
	atomic_store(&w->res.control->ram_kept, 0);
	fd = link_open(w);
	write_hello(fd, MC_SIDE_PRIMARY, MC_FEATURE_DELTA, 0);
	assert_int_equal(answered_resync(fd), 1);
	close(fd);
	world_end(w);
}

/* An empty RAM isn't worth a question. */
static void test_backup_is_empty(void **state)
{
	struct world *w = backup_world(false);
	int fd = link_open(w);

	(void)state;
	write_hello(fd, MC_SIDE_PRIMARY, MC_FEATURE_HASHES, 0);
	assert_int_equal(answered_resync(fd), 1);
	close(fd);
	world_end(w);
}

static bool is_down(void *ctx)
{
	return atomic_load(&((struct world *)ctx)->sup.control->link) == MC_LINK_DOWN;
}

/* What was asked on a link that broke isn't answered on the next one. */
static void test_backup_late_answer(void **state)
{
	struct world *w = backup_world(true);
	int fd = link_open(w);

	(void)state;
	write_hello(fd, MC_SIDE_PRIMARY, MC_FEATURE_HASHES, 0);
	assert_int_equal(answered_resync(fd), 2);
	write_ask(fd, 64, 64);
	write_ask(fd, 128, 64);
	assert_true(wait_until(&w->res, has_question, w));
	close(fd);
	assert_true(wait_until(&w->res, is_down, w));
	assert_int_equal(mc_state_move(w->res.control, MC_SIDE_BACKUP, MC_ROLE_RESTORE,
	                               MC_STATE_SYNCING, MC_STATE_WAITING, MC_REASON_LINK_CLOSED),
	                 0);
	fd = link_open(w);
	write_hello(fd, MC_SIDE_PRIMARY, MC_FEATURE_HASHES, 0);
	assert_int_equal(answered_resync(fd), 2);
	write_ask(fd, 640, 64);
	while (has_question(w))
		answer(w);
	if (atomic_load(&w->res.hashes->asked) < 3)
		answer(w);
	expect_hashes(fd, 640);
	close(fd);
	world_end(w);
}

static void test_backup_bad_questions(void **state)
{
	static const struct {
		uint64_t first;
		uint32_t pages;
	} bad[] = {{0, 0},           {0, MC_HASH_PAGES + 1},
	           {1, 64},          {UINT64_MAX - 63, 64},
	           {1ULL << 40, 64}, {RAM_BYTES / MC_PAGE_SIZE - 64, 1024}};

	(void)state;
	for (size_t i = 0; i <= MC_ARRAY_SIZE(bad); i++) {
		struct world *w = backup_world(true);
		int fd = link_open(w);

		write_hello(fd, MC_SIDE_PRIMARY, MC_FEATURE_HASHES, 0);
		assert_int_equal(answered_resync(fd), 2);
		if (i < MC_ARRAY_SIZE(bad))
			write_ask(fd, bad[i].first, bad[i].pages);
		else /* more at a time than there is room for */
			for (uint64_t k = 0; k <= MC_HASH_SLOTS; k++)
				write_ask(fd, 64 * k, 64);
		assert_true(is_closed(fd));
		assert_true(is_alive(w));
		close(fd);
		world_end(w);
	}
}

/* --- primary --------------------------------------------------------------------------- */

static struct mc_hash_asker asker; /* capture's */

static bool is_linked(void *ctx)
{
	return atomic_load(&((struct world *)ctx)->sup.control->link) == MC_LINK_UP;
}

static bool is_answered(void *ctx)
{
	(void)ctx;
	return mc_hash_answer(&asker) != NULL;
}

/* A primary whose peer says that its standby was filled before. */
static int primary_link(struct world *w)
{
	int fd = link_accept(w);
	struct mc_wire_header h;
	struct mc_wire_hello hello;

	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HELLO);
	memcpy(&hello, payload, sizeof(hello));
	assert_true(hello.features & MC_FEATURE_HASHES);
	write_hello(fd, MC_SIDE_BACKUP, MC_FEATURE_HASHES, 2);
	assert_true(wait_until(&w->cap, is_linked, w));
	assert_int_equal(atomic_load(&w->sup.control->peer_keeps), 1);
	return fd;
}

static struct world *primary_world(void)
{
	struct world *w = world_new(MC_SIDE_PRIMARY);

	mc_hash_asker_init(&asker, w->cap.hashes);
	world_start(w);
	return w;
}

static void ask(struct world *w, uint64_t first)
{
	struct mc_hash_question q = {.seed = 5, .first = first, .pages = 64};

	assert_int_equal(mc_hash_ask(&asker, &q), 0);
	mc_arena_ring(&w->cap, MC_ROLE_TRANSPORT);
}

static void expect_ask(int fd, uint64_t first)
{
	struct mc_wire_hash_ask a;
	struct mc_wire_header h;

	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HASH_ASK);
	memcpy(&a, payload, sizeof(a));
	assert_int_equal(a.seed, 5);
	assert_int_equal(a.first, first);
	assert_int_equal(a.pages, 64);
}

static void write_hashes(int fd, uint64_t first, bool known, uint64_t epoch)
{
	static struct mc_hash_slot s;
	struct msg m;

	fill_slot(&s, first);
	s.known = known;
	make(&m, MC_MSG_HASHES, epoch, payload, mc_hashes_pack(&s, payload));
	link_write(fd, m.buf, m.len);
}

static void test_primary_asks(void **state)
{
	struct world *w = primary_world();
	int fd = primary_link(w);

	(void)state;
	for (uint64_t i = 0; i < 40; i++) {
		ask(w, 64 * i);
		expect_ask(fd, 64 * i);
		write_hashes(fd, 64 * i, true, 0);
		assert_true(wait_until(&w->cap, is_answered, w));
		assert_int_equal(mc_hash_answer(&asker)->known, 1);
		assert_int_equal(mc_hash_answer(&asker)->hash[63].low, 64 * i + 63);
		mc_hash_taken(&asker);
	}
	close(fd);
	world_end(w);
}

static void expect_void(struct world *w)
{
	assert_true(wait_until(&w->cap, is_answered, w));
	assert_int_equal(mc_hash_answer(&asker)->known, 0);
	mc_hash_taken(&asker);
}

/* Another block, another epoch, nothing of a standby that is being filled, without being asked. */
static void test_primary_hears_lies(void **state)
{
	(void)state;
	for (int i = 0; i < 4; i++) {
		struct world *w = primary_world();
		int fd = primary_link(w);

		if (i != 3) {
			ask(w, 640);
			expect_ask(fd, 640);
		}
		write_hashes(fd, i == 0 ? 704 : 640, i != 1, i == 2 ? 7 : 0);
		assert_true(is_closed(fd));
		assert_true(is_alive(w));
		if (i != 3)
			expect_void(w);
		close(fd);
		world_end(w);
	}
}

/* A link that breaks takes its questions with it, and what was compared begins again. */
static void test_primary_link_breaks(void **state)
{
	struct world *w = primary_world();
	int fd = primary_link(w);

	(void)state;
	atomic_store(&w->cap.control->sync_total, RAM_BYTES); /* capture looked at its pages */
	ask(w, 64);
	ask(w, 128);
	expect_ask(fd, 64);
	close(fd);
	expect_void(w);
	expect_void(w);
	assert_int_equal(atomic_load(&w->sup.control->sync_wanted), 1);
	/* As capture does, once nothing of the old copy is left. */
	atomic_store(&w->cap.control->sync_total, 0);
	atomic_store(&w->cap.control->sync_copy, 1);
	mc_arena_ring(&w->cap, MC_ROLE_TRANSPORT);
	fd = primary_link(w);
	ask(w, 256);
	expect_ask(fd, 256);
	close(fd);
	world_end(w);
}

/* A comparison that a transport of before began can't be gone on with. */
static void test_primary_successor(void **state)
{
	struct world *w = world_new(MC_SIDE_PRIMARY);
	struct mc_wire_header h;
	int fd;

	(void)state;
	mc_hash_asker_init(&asker, w->cap.hashes);
	atomic_store(&w->sup.control->sync_total, RAM_BYTES);
	atomic_store(&w->sup.control->peer_keeps, 1);
	atomic_store(&w->sup.control->peer_instance[0], 9);
	atomic_store(&w->sup.control->peer_instance[1], 9);
	ask(w, 64);
	world_start(w);
	expect_void(w);
	fd = link_accept(w);
	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HELLO);
	/* Emptied meanwhile: all the more. */
	write_hello(fd, MC_SIDE_BACKUP, MC_FEATURE_HASHES, 1);
	assert_true(is_closed(fd));
	assert_int_equal(atomic_load(&w->sup.control->sync_wanted), 1);
	assert_int_equal(state_now(w), MC_STATE_SYNCING);
	close(fd);
	world_end(w);
}

/* A peer that says so but can't be asked. */
static void test_primary_peer_without(void **state)
{
	struct world *w = primary_world();
	struct mc_wire_header h;
	int fd = link_accept(w);

	(void)state;
	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HELLO);
	write_hello(fd, MC_SIDE_BACKUP, MC_FEATURE_DELTA, 2);
	assert_true(is_closed(fd));
	close(fd);
	fd = link_accept(w);
	assert_int_equal(link_next(fd, &h, payload), MC_MSG_HELLO);
	write_hello(fd, MC_SIDE_BACKUP, MC_FEATURE_DELTA, 1);
	assert_true(wait_until(&w->cap, is_linked, w));
	assert_int_equal(atomic_load(&w->sup.control->peer_keeps), 0);
	ask(w, 64);
	expect_void(w);
	close(fd);
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_backup_answers),
	        cmocka_unit_test(test_backup_is_emptied),
	        cmocka_unit_test(test_backup_is_empty),
	        cmocka_unit_test(test_backup_late_answer),
	        cmocka_unit_test(test_backup_bad_questions),
	        cmocka_unit_test(test_primary_asks),
	        cmocka_unit_test(test_primary_hears_lies),
	        cmocka_unit_test(test_primary_link_breaks),
	        cmocka_unit_test(test_primary_successor),
	        cmocka_unit_test(test_primary_peer_without),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
