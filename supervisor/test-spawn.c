/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whom the supervisor takes for a process of a guest. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../ipc/test-process.h"
#include "../ipc/worker-bus.h"
#include "supervisor.h"

struct world {
	struct manager m;
	struct guest g;
	struct proc stage;
};

static int setup(void **state)
{
	struct mc_arena_params p = {.slab_size = 65536,
	                            .max_memory = 4 * 65536,
	                            .ram_pages = 16,
	                            .side = MC_SIDE_PRIMARY};
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	assert_true(sd_event_new(&w->m.event) >= 0);
	w->g.m = &w->m;
	strcpy(w->g.name, "vm");
	assert_int_equal(mc_arena_create(&w->g.arena, NULL, &p), 0);
	strcpy(w->g.arena.config->guest, "vm");
	w->g.arena.config->side = MC_SIDE_PRIMARY;
	for (int i = 0; i < MC_ROLE_MAX; i++)
		w->g.child[i] = (struct child){.g = &w->g, .role = (enum mc_role)i, .pidfd = -1};
	proc_start(&w->stage, &w->g.arena, MC_ROLE_STAGE0);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	proc_kill(&w->stage);
	mc_arena_done(&w->g.arena);
	sd_event_unref(w->m.event);
	free(w);
	return procs_sweep(NULL);
}

static bool runs(void *ctx)
{
	const struct world *w = ctx;

	return atomic_load(&w->g.arena.proc[MC_ROLE_STAGE0].pid) == (uint64_t)w->stage.pid;
}

/* A guest's process writes another pid into the arena than its own: nobody is killed for it. */
static void test_only_workers_are_found(void **state)
{
	struct world *w = *state;
	struct child *stage = &w->g.child[MC_ROLE_STAGE0], *capture = &w->g.child[MC_ROLE_CAPTURE];
	pid_t self = getpid(), worker = w->stage.pid;

	assert_true(wait_until(&w->g.arena, runs, w));
	assert_int_equal(child_found(stage, self, mc_pid_start_time(self)), -ESRCH);
	assert_int_equal(stage->pid, 0);
	assert_int_equal(child_found(capture, worker, mc_pid_start_time(worker)), -ESRCH);
	assert_int_equal(child_found(stage, 1, mc_pid_start_time(1)), -ESRCH);
	assert_int_equal(child_found(stage, worker, mc_pid_start_time(worker) + 1), -ESRCH);
	assert_int_equal(child_found(stage, worker, mc_pid_start_time(worker)), 0);
	assert_int_equal(stage->pid, worker);
	child_forget(stage);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(test_only_workers_are_found, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
