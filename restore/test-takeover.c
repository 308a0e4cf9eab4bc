/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Real takeovers: the RAM and device state of a QEMU that runs its firmware go through
 * mc-restore into another one, which must go on where the first one stood.
 */
#include <errno.h>

#include "test-standby.h"

#define GRACE_MS   60
#define SILENCE_MS 300
#define TICKS      0x46c /* the firmware counts its timer interrupts here */

/* What was taken from a stopped guest. */
struct primary {
	uint8_t *ram, *state;
	size_t len;
};

static struct primary q35, pc;

static uint32_t ticks(const uint8_t *ram)
{
	uint32_t v;

	memcpy(&v, ram + TICKS, sizeof(v));
	return v;
}

static void save_state(struct guest *g, struct primary *p)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "%s/state", g->dir);
	assert_int_equal(qmp_command(g->q, "xen-save-devices-state",
	                             json_pack("{s:s, s:b}", "filename", path, "live", 0), LIMIT_MS,
	                             NULL),
	                 0);
	f = fopen(path, "re");
	assert_non_null(f);
	p->state = malloc(UNIT);
	p->len = fread(p->state, 1, UNIT, f);
	fclose(f);
	unlink(path);
	assert_in_range(p->len, 1000, mc_copyset_state_max(UNIT));
}

/* Lets the firmware run for a while and stops it. */
static void primary_new(struct primary *p, const char *machine)
{
	uint64_t end = mc_now_ns() + 10 * MC_NS_PER_S;
	struct guest g;
	int fd;

	guest_start(&g, machine);
	fd = open(g.ram, O_RDONLY | O_CLOEXEC);
	p->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_true(p->ram != MAP_FAILED);
	while (ticks(p->ram) < 5) {
		assert_true(mc_now_ns() < end);
		(void)poll(NULL, 0, 10);
	}
	assert_int_equal(qmp_command(g.q, "stop", NULL, LIMIT_MS, NULL), 0);
	munmap(p->ram, RAM_SIZE);
	p->ram = calloc(1, RAM_SIZE);
	assert_int_equal(pread(fd, p->ram, RAM_SIZE, 0), RAM_SIZE);
	close(fd);
	save_state(&g, p);
	guest_end(&g);
}

static int primaries(void **state)
{
	(void)state;
	primary_new(&q35, STANDBY "q35,memory-backend=ram");
	primary_new(&pc, STANDBY "pc,memory-backend=ram");
	return 0;
}

static int clean_up(void **state)
{
	free(q35.ram);
	free(q35.state);
	free(pc.ram);
	free(pc.state);
	return sweep(state);
}

/* Pages of @p that aren't zero, all of which are new to the standby; slabs pushed. */
static uint32_t push_ram(struct world *w, const struct primary *p, uint64_t epoch, uint32_t seq)
{
	static const uint8_t zero[MC_PAGE_SIZE];
	uint32_t max = (uint32_t)mc_copyset_pages_max(UNIT), n = 0;
	mc_autofree struct test_page *page = calloc(max, sizeof(*page));

	for (uint64_t at = 0; at <= RAM_SIZE; at += MC_PAGE_SIZE) {
		bool last = at == RAM_SIZE;
		mc_handle h;
		uint8_t *to;

		if (n == max || (last && n)) {
			to = landing(w, epoch, &h);
			push_slab(w, h, epoch, seq, test_pages(to, epoch, 0, seq, page, n, true));
			seq++;
			n = 0;
		}
		if (!last && memcmp(p->ram + at, zero, MC_PAGE_SIZE) != 0)
			page[n++] = (struct test_page){
			        .method = MC_PAGE_FULL, .offset = at, .content = p->ram + at};
	}
	return seq;
}

static void push_epoch(struct world *w, const struct primary *p, uint64_t n, uint64_t base)
{
	begin_epoch(w, n, base, 1);
	push_state(w, n, p->state, p->len);
	end_epoch(w, n);
}

/* First copy and first epoch; armed with what @p had. */
static struct world *armed(const struct primary *p, const char *args)
{
	struct world *w = world_new(args);

	atomic_store(&w->sup.config->restart_grace_ms, GRACE_MS);
	admit(w, TERM);
	memcpy(w->want, p->ram, RAM_SIZE);
	atomic_store(&w->tra.control->sync_received, push_ram(w, p, 0, 0));
	push_epoch(w, p, 1, 0);
	check_applied(w);
	return w;
}

/* It runs, it is the same guest, and it goes on. */
static void check_runs(struct world *w, const struct primary *p, enum mc_reason why)
{
	uint64_t end = mc_now_ns() + 10 * MC_NS_PER_S, began, differ = 0;

	if (!wait_until(&w->tra, is_active, w) || state_now(w) != MC_STATE_ACTIVE)
		fail_msg("no takeover: %s, %s", mc_state_name(state_now(w)),
		         w->sup.control->refusal);
	assert_int_equal(mc_state_reason(atomic_load(&w->sup.control->state)), why);
	assert_true(atomic_load(&w->sup.control->commit) & MC_COMMIT_TAKEN);
	began = atomic_load(&w->sup.control->takeover_began);
	assert_in_range(atomic_load(&w->sup.control->took_over) - began, 1, 3 * MC_NS_PER_S);
	while (ticks(w->ram) < ticks(p->ram) + 3) {
		assert_true(mc_now_ns() < end);
		(void)poll(NULL, 0, 10);
	}
	assert_true(ticks(w->ram) < ticks(p->ram) + 2000);
	for (uint64_t at = 0; at < RAM_SIZE; at += MC_PAGE_SIZE)
		differ += memcmp(w->ram + at, p->ram + at, MC_PAGE_SIZE) != 0;
	if (differ > 200) /* its data area and stacks, of thousands */
		fail_msg("%d pages differ", (int)differ);
}

/* Milliseconds from @since to the running standby. */
static double took_ms(const struct world *w, uint64_t since)
{
	return (double)(int64_t)(atomic_load(&w->sup.control->took_over) - since) / 1e6;
}

static void say_died(struct world *w)
{
	atomic_store(&w->tra.control->peer_end, MC_REASON_GUEST_DIED);
	mc_arena_ring(&w->tra, MC_ROLE_RESTORE);
}

/* With and without the configuration section, with and without -S. */
static void test_command_lines(void **state)
{
	static const struct {
		struct primary *from;
		const char *args;
	} t[] = {
	        {&q35, STANDBY "q35,memory-backend=ram" OLD_WAY},
	        {&q35, STANDBY "q35,memory-backend=ram -incoming defer"},
	        {&q35, STANDBY "q35,memory-backend=ram -S -incoming defer"},
	        {&pc, STANDBY "pc,memory-backend=ram -incoming defer"},
	        {&pc, STANDBY "pc,memory-backend=ram -S" OLD_WAY},
	};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(t); i++) {
		struct world *w = armed(t[i].from, t[i].args);

		say_died(w);
		check_runs(w, t[i].from, MC_REASON_GUEST_DIED);
		world_end(w);
	}
}

static void test_link_closed(void **state)
{
	struct world *w = armed(&q35, STANDBY "q35,memory-backend=ram" OLD_WAY);
	uint64_t t;

	(void)state;
	/* A transport that comes back in time is no death. */
	link_down(w);
	(void)poll(NULL, 0, GRACE_MS / 2);
	link_up(w);
	(void)poll(NULL, 0, GRACE_MS * 2);
	assert_int_equal(state_now(w), MC_STATE_PROTECTED);
	t = mc_now_ns();
	link_down(w);
	check_runs(w, &q35, MC_REASON_LINK_CLOSED);
	assert_true(took_ms(w, t) >= GRACE_MS);
	assert_true(took_ms(w, t) < GRACE_MS + 200);
	world_end(w);
}

static void test_silence(void **state)
{
	struct world *w = armed(&q35, STANDBY "q35,memory-backend=ram" OLD_WAY);
	uint64_t t;

	(void)state;
	alive(w);
	atomic_store(&w->sup.config->failure_timeout_ms, SILENCE_MS);
	mc_arena_ring_all(&w->tra);
	for (int i = 0; i < 8; i++) {
		(void)poll(NULL, 0, SILENCE_MS / 4);
		alive(w); /* nobody is woken for it */
	}
	assert_int_equal(state_now(w), MC_STATE_PROTECTED);
	t = atomic_load(&w->sup.control->last_rx);
	check_runs(w, &q35, MC_REASON_SILENCE);
	assert_true(took_ms(w, t) >= SILENCE_MS);
	assert_true(took_ms(w, t) < SILENCE_MS + 200);
	world_end(w);
}

static void test_asked_for(void **state)
{
	struct world *w = armed(&q35, STANDBY "q35,memory-backend=ram" OLD_WAY);

	(void)state;
	atomic_store(&w->sup.control->want_takeover, MC_REASON_FAILOVER);
	mc_arena_ring(&w->sup, MC_ROLE_RESTORE);
	check_runs(w, &q35, MC_REASON_FAILOVER);
	world_end(w);
}

/* What has come as a whole counts, what came in part doesn't. */
static void test_what_had_arrived(void **state)
{
	struct world *w = armed(&q35, STANDBY "q35,memory-backend=ram" OLD_WAY);

	(void)state;
	kill(w->restore.pid, SIGSTOP);
	push_epoch(w, &q35, 2, 1);
	begin_epoch(w, 3, 2, 2);
	push_state(w, 3, q35.state, q35.len);
	say_died(w);
	kill(w->restore.pid, SIGCONT);
	check_runs(w, &q35, MC_REASON_GUEST_DIED);
	assert_int_equal(committed(w), 2);
	assert_int_equal(atomic_load(&w->sup.control->applied), 2);
	world_end(w);
}

static bool is_ended(void *ctx)
{
	return is_in_state(ctx, MC_STATE_ENDED);
}

static void test_no_commit_afterwards(void **state)
{
	struct world *w = armed(&q35, STANDBY "q35,memory-backend=ram" OLD_WAY);
	uint64_t word;

	(void)state;
	say_died(w);
	check_runs(w, &q35, MC_REASON_GUEST_DIED);
	word = atomic_load(&w->sup.control->commit);
	push_epoch(w, &q35, 2, 1);
	(void)poll(NULL, 0, 100);
	proc_kill(&w->restore);
	restore_start(w);
	(void)poll(NULL, 0, 300);
	assert_int_equal(atomic_load(&w->sup.control->commit), word);
	assert_int_equal(mc_commit_advance(w->sup.control, TERM, 2), -EPERM);
	assert_int_equal(mc_commit_disarm(w->sup.control), -EPERM);
	assert_int_equal(state_now(w), MC_STATE_ACTIVE);
	/* The guest's own end is no lost standby. */
	guest_kill(&w->qemu);
	assert_true(wait_until(&w->tra, is_ended, w));
	world_end(w);
}

static bool takes_over(void *ctx)
{
	struct world *w = ctx;

	return atomic_load(&w->sup.control->commit) & MC_COMMIT_TAKEN;
}

/* Killed on the way: one load, and it runs. */
static void test_killed_on_the_way(void **state)
{
	(void)state;
	for (int i = 0; i < 6; i++) {
		struct world *w = armed(&q35, STANDBY "q35,memory-backend=ram -incoming defer");

		say_died(w);
		for (uint64_t end = mc_now_ns() + PROC_LIMIT_NS; !takes_over(w);)
			assert_true(mc_now_ns() < end);
		for (uint64_t t = mc_now_ns() + (uint64_t)i * MC_NS_PER_MS; mc_now_ns() < t;)
			;
		proc_kill(&w->restore);
		restore_start(w);
		check_runs(w, &q35, MC_REASON_GUEST_DIED);
		world_end(w);
	}
}

/* The word said taken, the state not yet, and the primary speaks again: no way back. */
static void test_taken_before_the_state(void **state)
{
	struct world *w = armed(&q35, STANDBY "q35,memory-backend=ram" OLD_WAY);

	(void)state;
	proc_kill(&w->restore);
	assert_int_equal(mc_commit_take(w->sup.control), 0);
	link_up(w);
	restore_start(w);
	check_runs(w, &q35, MC_REASON_SILENCE);
	world_end(w);
}

static void test_state_that_does_not_load(void **state)
{
	struct world *w = world_new(STANDBY "q35,memory-backend=ram" OLD_WAY);

	(void)state;
	arm(w); /* with nonsense for a device state */
	say_died(w);
	assert_true(wait_until(&w->tra, is_stopped, w));
	assert_true(takes_over(w));
	assert_non_null(strstr(w->sup.control->refusal, "takeover failed"));
	assert_int_equal(atomic_load(&w->sup.control->took_over), 0);
	world_end(w);
}

/* Of another machine type: refused by the standby, and said so. */
static void test_state_of_another_machine(void **state)
{
	struct world *w = armed(&pc, STANDBY "q35,memory-backend=ram -incoming defer");

	(void)state;
	say_died(w);
	assert_true(wait_until(&w->tra, is_stopped, w));
	assert_non_null(strstr(w->sup.control->refusal, "takeover failed"));
	world_end(w);
}

/* A standby that somebody else starts is none any more. */
static void test_started_by_somebody_else(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	char second[160], text[400];
	struct qmp *q = NULL;
	FILE *f;

	(void)state;
	w->want = calloc(1, RAM_SIZE);
	snprintf(second, sizeof(second), "/tmp/test-vm-second-%d", (int)getpid());
	snprintf(text, sizeof(text),
	         STANDBY "q35,memory-backend=ram" OLD_WAY " -qmp unix:%s,server=on,wait=off", "%s",
	         second);
	standby_start(w, text);
	arena_new(w);
	restore_start(w);
	assert_true(wait_until(&w->tra, is_ready, w));
	arm(w);
	snprintf(text, sizeof(text), "%s/state", w->qemu.dir);
	f = fopen(text, "we");
	assert_int_equal(fwrite(q35.state, 1, q35.len, f), q35.len);
	fclose(f);
	assert_int_equal(qmp_connect(&q, second, LIMIT_MS), 0);
	snprintf(text, sizeof(text), "exec:cat %s/state", w->qemu.dir);
	assert_int_equal(
	        qmp_command(q, "migrate-incoming", json_pack("{s:s}", "uri", text), LIMIT_MS, NULL),
	        0);
	assert_true(wait_until(&w->tra, is_stopped, w));
	assert_int_equal(mc_state_reason(atomic_load(&w->sup.control->state)), MC_REASON_FOREIGN);
	assert_false(takes_over(w));
	q = qmp_free(q);
	snprintf(text, sizeof(text), "%s/state", w->qemu.dir);
	unlink(text);
	unlink(second);
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_command_lines),
	        cmocka_unit_test(test_link_closed),
	        cmocka_unit_test(test_silence),
	        cmocka_unit_test(test_asked_for),
	        cmocka_unit_test(test_what_had_arrived),
	        cmocka_unit_test(test_no_commit_afterwards),
	        cmocka_unit_test(test_killed_on_the_way),
	        cmocka_unit_test(test_taken_before_the_state),
	        cmocka_unit_test(test_state_that_does_not_load),
	        cmocka_unit_test(test_state_of_another_machine),
	        cmocka_unit_test(test_started_by_somebody_else),
	};

	return cmocka_run_group_tests(tests, primaries, clean_up);
}
