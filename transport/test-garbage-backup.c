/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A backup and every message damaged at every byte, cut at every byte: the process lives, nothing
 * of a damaged epoch gets through, nothing leaks, and a peer that behaves is served afterwards.
 */
#include "test-message.h"

#define CHECKSUM offsetof(struct mc_wire_header, checksum)

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
	(void)mc_hash_drain(w->res.hashes);
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

static const enum mc_msg to_backup[] = {MC_MSG_HELLO, MC_MSG_START,   MC_MSG_SLAB,    MC_MSG_COMMIT,
                                        MC_MSG_ABORT, MC_MSG_END,     MC_MSG_END_ACK, MC_MSG_PING,
                                        MC_MSG_PONG,  MC_MSG_HASH_ASK};

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

/* As restore refuses: counted, since the same one may be refused again. */
static void refuse(struct world *w, uint64_t epoch)
{
	struct mc_control *c = w->res.control;

	atomic_store(&c->nack_epoch, epoch);
	atomic_fetch_add(&c->nacks, 1);
	mc_arena_ring(&w->res, MC_ROLE_TRANSPORT);
}

static bool is_begun(void *ctx)
{
	struct world *w = ctx;

	return mc_journal_state(&w->sup.journal, 2) == MC_EPOCH_CAPTURING;
}

/* Refused in the middle of it: the rest is read and dropped, the link goes on. */
static void test_backup_refuses_the_middle(void **state)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	struct world *w = backup_world();
	struct mc_wire_header h;

	(void)state;
	for (int again = 0; again < 2; again++) { /* the same epoch, on a link of its own */
		int fd = backup_link(w);

		write_any(fd, MC_MSG_START, MC_SIDE_PRIMARY);
		assert_true(wait_until(&w->res, is_begun, w));
		refuse(w, 2);
		do
			assert_true(link_next(fd, &h, payload) != 0);
		while (h.type == MC_MSG_ACK); /* of epoch 1, on every link */
		assert_int_equal(h.type, MC_MSG_NACK);
		assert_int_equal(h.epoch, 2);
		write_any(fd, MC_MSG_SLAB, MC_SIDE_PRIMARY);
		write_any(fd, MC_MSG_COMMIT, MC_SIDE_PRIMARY);
		write_any(fd, MC_MSG_PING, MC_SIDE_PRIMARY);
		do
			assert_true(link_next(fd, &h, payload) != 0);
		while (h.type == MC_MSG_ACK);
		assert_int_equal(h.type, MC_MSG_PONG);
		read_out(fd);
		backup_check(w, MC_MSG_NACK, 0);
	}
	backup_good_epoch(w);
	world_end(w);
}

/* Restore's part of a full pool: all the slabs there are. */
static uint32_t hog_all(struct world *w, mc_handle *hog)
{
	uint32_t n = 0;

	while (n < SLABS && mc_pool_alloc(&w->res.slabs, 1, false, &hog[n]) == 0)
		n++;
	return n;
}

static unsigned next_but_acks(int fd, struct mc_wire_header *h, uint8_t *payload)
{
	unsigned type;

	do
		type = link_next(fd, h, payload);
	while (type == MC_MSG_ACK);
	return type;
}

/*
 * No memory for an epoch: the primary isn't taken for silent meanwhile, then the epoch is
 * refused, or, when even that doesn't help, the link closed.
 */
static void test_backup_starves(void **state)
{
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	static mc_handle hog[SLABS];
	struct world *w = backup_world();
	struct mc_control *c = w->sup.control;
	const uint64_t limit = 600 * MC_NS_PER_MS;

	(void)state;
	atomic_store(&w->sup.config->failure_timeout_ms, 600);
	for (int forever = 0; forever < 2; forever++) {
		struct mc_wire_header h;
		uint64_t began = mc_now_ns();
		uint32_t n;
		int fd;

		/* The primary's HELLO must name the same time-out. */
		atomic_store(&w->sup.config->failure_timeout_ms, 600000);
		fd = backup_link(w);
		atomic_store(&w->sup.config->failure_timeout_ms, 600);
		write_any(fd, MC_MSG_PING, MC_SIDE_PRIMARY);
		assert_int_equal(next_but_acks(fd, &h, payload), MC_MSG_PONG);
		n = hog_all(w, hog);
		write_any(fd, MC_MSG_START, MC_SIDE_PRIMARY);
		write_any(fd, MC_MSG_SLAB, MC_SIDE_PRIMARY);
		assert_int_equal(next_but_acks(fd, &h, payload), MC_MSG_NACK);
		assert_int_equal(h.epoch, 2);
		assert_true(mc_now_ns() - began >= limit);
		assert_true(mc_now_ns() - atomic_load(&c->last_rx) < limit / 2);
		if (forever) {
			assert_int_equal(next_but_acks(fd, &h, payload), 0);
			assert_true(mc_now_ns() - began >= 2 * limit);
		}
		while (n)
			assert_int_equal(mc_pool_free(&w->res.slabs, hog[--n]), 0);
		mc_arena_ring_all(&w->res);
		if (!forever) {
			write_any(fd, MC_MSG_COMMIT, MC_SIDE_PRIMARY);
			write_any(fd, MC_MSG_PING, MC_SIDE_PRIMARY);
			assert_int_equal(next_but_acks(fd, &h, payload), MC_MSG_PONG);
		}
		read_out(fd);
		backup_check(w, MC_MSG_SLAB, 0);
	}
	atomic_store(&w->sup.config->failure_timeout_ms, 600000);
	backup_good_epoch(w);
	world_end(w);
}

/* --- a HELLO that doesn't fit ------------------------------------------------------------ */

static void other_slab_size(struct mc_hello *h)
{
	h->h.slab_size *= 2;
}
static void other_timeout(struct mc_hello *h)
{
	h->h.failure_timeout_ms = 400;
}
static void other_ram(struct mc_hello *h)
{
	h->block[0].size *= 2;
}
static void more_ram(struct mc_hello *h)
{
	h->h.blocks = 2;
	strcpy(h->block[1].name, "ram1");
	h->block[1].size = 4096;
}
static void other_block(struct mc_hello *h)
{
	strcpy(h->block[0].name, "mem");
}
static void other_qemu(struct mc_hello *h)
{
	memcpy(strstr(h->description, "7.2"), "8.0", 3);
}
static void other_machine(struct mc_hello *h)
{
	memcpy(strstr(h->description, "q35"), "q36", 3);
}
static void device_more(struct mc_hello *h)
{
	strcat(h->description, "virtio-rng-pci rng0\n");
	h->h.description = (uint32_t)strlen(h->description);
}
static void other_guest(struct mc_hello *h)
{
	strcpy(h->h.guest, "nobody");
}
static void terminal_tricks(struct mc_hello *h)
{
	h->description[0] = '\033';
}

/* Refused before anything is copied, by a sentence that names what differs. */
static void test_backup_refuses_by_name(void **state)
{
	static const struct {
		void (*change)(struct mc_hello *h);
		const char *word;
	} no[] = {
	        {other_slab_size, "slab-size"},
	        {other_timeout, "failure-timeout"},
	        {other_ram, "RAM"},
	        {more_ram, "memory backends"},
	        {other_block, "mem"},
	        {other_qemu, "qemu 8.0"},
	        {other_machine, "q36"},
	        {device_more, "virtio-rng-pci"},
	        {other_guest, "another guest"},
	        {terminal_tricks, "unprintable"},
	};
	static uint8_t payload[MC_WIRE_HELLO_MAX + UNIT];
	static struct mc_hello hello;
	struct world *w = world_new(MC_SIDE_BACKUP);

	(void)state;
	world_start(w);
	for (size_t i = 0; i < MC_ARRAY_SIZE(no); i++) {
		struct mc_wire_header h;
		char text[MC_WHY_MAX];
		uint32_t reason;
		struct msg m;
		int fd = link_open(w);

		fill_hello(&hello, MC_SIDE_PRIMARY);
		no[i].change(&hello);
		make(&m, MC_MSG_HELLO, 0, payload, mc_wire_hello_pack(&hello, payload));
		link_write(fd, m.buf, m.len);
		assert_int_equal(link_next(fd, &h, payload), MC_MSG_END);
		assert_int_equal(mc_wire_reason_parse(payload, h.length, &reason, text), 0);
		if (!strstr(text, no[i].word))
			fail_msg("'%s' isn't told: %s", no[i].word, text);
		read_out(fd);
		assert_int_equal(state_now(w), MC_STATE_WAITING);
	}
	close(backup_link(w));
	assert_true(wait_until(&w->sup, is_syncing, w));
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_backup_damaged),
	        cmocka_unit_test(test_backup_damaged_and_sealed),
	        cmocka_unit_test(test_backup_cut),
	        cmocka_unit_test(test_backup_wrong_order),
	        cmocka_unit_test(test_backup_refuses_the_middle),
	        cmocka_unit_test(test_backup_starves),
	        cmocka_unit_test(test_backup_refuses_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
