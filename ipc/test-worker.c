/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the supervisor sees of a worker's long operations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "util.h"
#include "worker.h"

/*
 * The end of an announced operation is a sign of life: the loop has not turned since before it,
 * which may be longer ago than any limit.
 */
static void busy_is_a_sign_of_life(void **state)
{
	static struct mc_proc procs[MC_ROLE_MAX + 1];
	struct mc_worker w = {.role = MC_ROLE_CAPTURE, .arena.proc = procs};
	struct mc_proc *p = &procs[MC_ROLE_CAPTURE];
	uint64_t began = mc_now_ns();

	(void)state;
	mc_worker_busy(&w, MC_NS_PER_S);
	assert_true(atomic_load(&p->heartbeat) >= began);
	assert_true(atomic_load(&p->busy_until) >= began + MC_NS_PER_S);
	atomic_store(&p->heartbeat, began - 10 * MC_NS_PER_S);
	mc_worker_busy(&w, 0);
	assert_int_equal(atomic_load(&p->busy_until), 0);
	assert_true(atomic_load(&p->heartbeat) >= began);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(busy_is_a_sign_of_life),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
