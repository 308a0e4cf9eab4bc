/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "netgate.h"
#include "queue.h"

static uint8_t frame[FRAME_MAX];

/* Order, content and epochs of many frames of all sizes. */
static void test_order(void **state)
{
	struct queue q;
	struct frame f;
	uint64_t n = 0;

	(void)state;
	queue_init(&q, UINT64_MAX);
	assert_false(queue_peek(&q, &f));
	for (unsigned i = 0; i < 2000; i++) {
		size_t len = 1 + i * 37 % 9000;

		memset(frame, (int)i, len);
		assert_int_equal(queue_push(&q, frame, len), 0);
		if (i % 100 == 99)
			queue_mark(&q, i / 100 + 1);
	}
	assert_int_equal(queue_push(&q, frame, 1), 0);
	assert_int_equal(q.frames, 2001);
	for (unsigned i = 0; i < 2000; i++) {
		assert_true(queue_peek(&q, &f));
		assert_int_equal(f.len, 1 + i * 37 % 9000);
		assert_int_equal(f.data[f.len - 1], (uint8_t)i);
		assert_int_equal(f.epoch, i / 100 + 1);
		n += f.len;
		queue_pop(&q);
	}
	assert_true(queue_peek(&q, &f));
	assert_true(f.epoch == EPOCH_OPEN);
	queue_pop(&q);
	assert_false(queue_peek(&q, &f));
	assert_int_equal(q.bytes, 0);
	assert_null(q.first);
	assert_true(n > 0);
	/* All but a few of its chunks went back. */
	assert_true(q.spares > 0 && q.spares <= 16);
	queue_done(&q);
	assert_null(q.spare);
}

static void test_limits(void **state)
{
	struct queue q;

	(void)state;
	queue_init(&q, 1000);
	assert_int_equal(queue_push(&q, frame, 0), -EMSGSIZE);
	assert_int_equal(queue_push(&q, frame, FRAME_MAX + 1), -EMSGSIZE);
	assert_int_equal(queue_push(&q, frame, 600), 0);
	assert_int_equal(queue_push(&q, frame, 401), -ENOBUFS);
	assert_int_equal(queue_push(&q, frame, 400), 0);
	queue_pop(&q);
	assert_int_equal(queue_push(&q, frame, 600), 0);
	q.limit = 1 << 20; /* changed while running */
	assert_int_equal(queue_push(&q, frame, FRAME_MAX), 0);
	queue_done(&q);
	assert_int_equal(q.bytes, 0);
}

/* A barrier marks only what has none: an aborted epoch's frames keep their place. */
static void test_marks(void **state)
{
	struct queue q;
	struct frame f;

	(void)state;
	queue_init(&q, 1 << 20);
	assert_int_equal(queue_push(&q, frame, 60), 0);
	queue_mark(&q, 5);
	queue_mark(&q, 6);
	assert_true(queue_peek(&q, &f));
	assert_int_equal(f.epoch, 5);
	queue_done(&q);
}

/* More barriers than can be told apart: a frame may leave later, never earlier. */
static void test_many_marks(void **state)
{
	struct queue q;
	struct frame f;

	(void)state;
	queue_init(&q, 1 << 20);
	for (uint64_t e = 1; e <= 2 * QUEUE_MARKS; e++) {
		frame[0] = (uint8_t)e;
		assert_int_equal(queue_push(&q, frame, 60), 0);
		queue_mark(&q, e);
	}
	assert_int_equal(queue_push(&q, frame, 60), 0);
	for (uint64_t e = 1; e <= 2 * QUEUE_MARKS; e++) {
		assert_true(queue_peek(&q, &f));
		assert_int_equal(f.data[0], (uint8_t)e);
		assert_int_equal(f.epoch, e < QUEUE_MARKS ? e : 2 * QUEUE_MARKS);
		queue_pop(&q);
	}
	assert_true(queue_peek(&q, &f));
	assert_true(f.epoch == EPOCH_OPEN);
	queue_mark(&q, 1000);
	assert_true(queue_peek(&q, &f));
	assert_int_equal(f.epoch, 1000);
	queue_done(&q);
}

static struct mc_control ctl;

static enum gate_mode mode(enum mc_side side, enum mc_state s)
{
	atomic_store(&ctl.state, s);
	return netgate_wanted_mode(&ctl, side);
}

/* docs/architecture.md, "Gate by state". */
static void test_modes(void **state)
{
	(void)state;
	memset(&ctl, 0, sizeof(ctl));
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_SYNCING), GATE_PASS);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_STOPPED), GATE_PASS);
	atomic_store(&ctl.armed_epoch, 1);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_SYNCING), GATE_PASS);
	atomic_store(&ctl.barrier_req, 1);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_SYNCING), GATE_HOLD);
	/* The first epoch was never sent: nobody can take over, nothing needs to be held. */
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_STOPPED), GATE_PASS);
	atomic_store(&ctl.first_sent, 1);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_PROTECTED), GATE_HOLD);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_HELD), GATE_HOLD);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_DEGRADED), GATE_PASS);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_ENDED), GATE_HOLD);
	atomic_store(&ctl.end_acked, 1);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_ENDED), GATE_PASS);
	atomic_store(&ctl.end_acked, 0);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_STOPPED), GATE_HOLD);
	atomic_store(&ctl.peer_taken, 1);
	assert_int_equal(mode(MC_SIDE_PRIMARY, MC_STATE_STOPPED), GATE_SHUT);
	for (int s = 0; s < MC_STATES; s++)
		assert_int_equal(mode(MC_SIDE_BACKUP, (enum mc_state)s), GATE_SHUT);
	atomic_store(&ctl.commit, MC_COMMIT_TAKEN | mc_commit_word(1, 1));
	assert_int_equal(mode(MC_SIDE_BACKUP, MC_STATE_TAKING_OVER), GATE_SHUT);
	assert_int_equal(mode(MC_SIDE_BACKUP, MC_STATE_ACTIVE), GATE_PASS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_order), cmocka_unit_test(test_limits),
	        cmocka_unit_test(test_marks), cmocka_unit_test(test_many_marks),
	        cmocka_unit_test(test_modes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
