/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mc-netgate with relay NICs as a process; the test plays QEMU, the world, and all other processes.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../ipc/test-process.h"

#define NICS 2

struct world {
	struct mc_arena sup, cap, sta, tra;
	struct proc gate;
	char dir[64];
	int qemu[NICS], out[NICS];
	uint64_t sent[NICS], seen[NICS]; /* numbered frames, per NIC */
	uint64_t epoch;                  /* newest barrier */
	unsigned seed;
};

/* A frame as the tests send it; what a gate must not look at. */
struct numbered {
	uint8_t dst[6], src[6];
	uint16_t ethertype;
	uint64_t number;
} __attribute__((packed));

static void address(struct world *w, struct sockaddr_un *a, const char *what, int nic)
{
	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(a->sun_path, sizeof(a->sun_path), "%s/%s%d", w->dir, what, nic);
}

static int bound(struct world *w, const char *what, int nic)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a;

	address(w, &a, what, nic);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static void set_nic(struct world *w, struct mc_nic *n, int i)
{
	n->kind = MC_GATE_RELAY;
	snprintf(n->netdev, sizeof(n->netdev), "n%d", i);
	snprintf(n->path, sizeof(n->path), "%s/relay%d", w->dir, i);
	snprintf(n->sock, sizeof(n->sock), "%s/world%d", w->dir, i);
	snprintf(n->sock_local, sizeof(n->sock_local), "%s/local%d", w->dir, i);
}

static bool is_ready(void *ctx)
{
	return atomic_load(&((struct world *)ctx)->sup.control->gate_ready);
}

static void gate_start(struct world *w)
{
	atomic_store(&w->sup.control->gate_ready, 0);
	proc_start(&w->gate, &w->sup, MC_ROLE_NETGATE);
	if (!wait_until(&w->cap, is_ready, w))
		fail_msg("the gate isn't ready: %s", w->sup.control->refusal);
}

static struct world *world_prepare(enum mc_side side)
{
	struct mc_arena_params p = {
	        .slab_size = 1 << 20, .max_memory = 4 << 20, .ram_pages = 4096, .side = side};
	struct world *w = calloc(1, sizeof(*w));
	struct mc_config *c;

	w->seed = 7;
	strcpy(w->dir, "/tmp/mc-test-XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	assert_int_equal(mc_arena_create(&w->sup, NULL, &p), 0);
	c = w->sup.config;
	c->side = side;
	strcpy(c->guest, "test");
	c->gate = MC_GATE_RELAY;
	c->nnics = NICS;
	for (int i = 0; i < NICS; i++) {
		set_nic(w, &c->nic[i], i);
		w->qemu[i] = bound(w, "qemu", i);
		w->out[i] = bound(w, "world", i);
	}
	arena_as(&w->cap, &w->sup, MC_ROLE_CAPTURE);
	arena_as(&w->sta, &w->sup, mc_role_stage(0));
	arena_as(&w->tra, &w->sup, MC_ROLE_TRANSPORT);
	assert_int_equal(
	        mc_state_move(w->sup.control, side, MC_ROLE_SUPERVISOR, MC_STATE_NONE,
	                      side == MC_SIDE_PRIMARY ? MC_STATE_SYNCING : MC_STATE_WAITING,
	                      MC_REASON_STARTED),
	        0);
	return w;
}

static struct world *world_new(enum mc_side side)
{
	struct world *w = world_prepare(side);

	gate_start(w);
	return w;
}

static void world_end(struct world *w)
{
	static const char *const what[] = {"qemu", "world", "relay", "local"};
	struct sockaddr_un a;

	if (w->gate.pid)
		proc_end(&w->gate);
	for (int i = 0; i < NICS; i++) {
		close(w->qemu[i]);
		close(w->out[i]);
		for (size_t k = 0; k < MC_ARRAY_SIZE(what); k++) {
			address(w, &a, what[k], i);
			unlink(a.sun_path);
		}
	}
	rmdir(w->dir);
	mc_arena_done(&w->tra);
	mc_arena_done(&w->sta);
	mc_arena_done(&w->cap);
	mc_arena_done(&w->sup);
	free(w);
}

/* --- guest and world ------------------------------------------------------------------- */

/* The guest sends a frame of @len bytes; false: nobody takes it. */
static bool guest_sends(struct world *w, int nic, const void *frame, size_t len)
{
	struct sockaddr_un a;

	address(w, &a, "relay", nic);
	return sendto(w->qemu[nic], frame, len, MSG_NOSIGNAL, (struct sockaddr *)&a, sizeof(a)) ==
	       (ssize_t)len;
}

/* The next number, in a frame of a random protocol and size. */
static void guest_counts(struct world *w, int nic)
{
	static const uint16_t types[] = {0x0008, 0x0608, 0xdd86, 0x0081, 0xb588};
	uint8_t frame[1514] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2};
	struct numbered f = {.number = w->sent[nic] + 1};

	memcpy(f.dst, frame, sizeof(f.dst));
	f.ethertype = types[(uint32_t)rand_r(&w->seed) % MC_ARRAY_SIZE(types)];
	memcpy(frame, &f, sizeof(f));
	if (guest_sends(w, nic, frame, 60 + (size_t)rand_r(&w->seed) % 1400))
		w->sent[nic]++;
}

static ssize_t world_gets(struct world *w, int nic, void *buf, size_t len, int ms)
{
	struct pollfd p = {.fd = w->out[nic], .events = POLLIN};

	return poll(&p, 1, ms) == 1 ? recv(w->out[nic], buf, len, 0) : -1;
}

/* All that has come out; numbers must go up. */
static void world_reads(struct world *w, int nic)
{
	uint8_t buf[2048];
	struct numbered f;

	while (recv(w->out[nic], buf, sizeof(buf), MSG_DONTWAIT) > 0) {
		memcpy(&f, buf, sizeof(f));
		if (f.number <= w->seen[nic])
			fail_msg("frame %llu after %llu", (unsigned long long)f.number,
			         (unsigned long long)w->seen[nic]);
		w->seen[nic] = f.number;
	}
}

struct wanted {
	struct world *w;
	int nic;
	uint64_t number;
};

static bool has_seen(void *ctx)
{
	struct wanted *x = ctx;

	world_reads(x->w, x->nic);
	return x->w->seen[x->nic] >= x->number;
}

static void world_sees(struct world *w, int nic, uint64_t number)
{
	if (!wait_until(&w->cap, has_seen, &(struct wanted){w, nic, number}))
		fail_msg("NIC %d: frame %llu of %llu never came", nic, (unsigned long long)number,
		         (unsigned long long)w->sent[nic]);
	assert_int_equal(w->seen[nic], number);
}

/* --- capture, stage, transport ----------------------------------------------------------- */

static bool has_barrier(void *ctx)
{
	struct world *w = ctx;

	return atomic_load(&w->sup.control->barrier_done) >= w->epoch;
}

/* The guest stands still: all it sent belongs to the epoch. */
static void barrier(struct world *w)
{
	struct mc_control *c = w->sup.control;

	w->epoch++;
	if (w->epoch == 1)
		atomic_store(&c->armed_epoch, 1);
	assert_int_equal(mc_journal_begin(&w->cap.journal, w->epoch), 0);
	atomic_store(&c->barrier_req, w->epoch);
	mc_arena_ring(&w->cap, MC_ROLE_NETGATE);
	assert_true(wait_until(&w->cap, has_barrier, w));
}

static void lease(struct world *w, uint64_t ms)
{
	atomic_store(&w->sup.control->lease_until, mc_now_ns() + ms * MC_NS_PER_MS);
}

static void commit(struct world *w, uint64_t n)
{
	if (!atomic_load(&w->sup.control->first_sent))
		atomic_store(&w->sup.control->first_sent, n);
	assert_int_equal(mc_journal_move(&w->cap.journal, n, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED),
	                 0);
	assert_int_equal(mc_journal_move(&w->sta.journal, n, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED),
	                 0);
	assert_int_equal(mc_journal_move(&w->tra.journal, n, MC_EPOCH_STAGED, MC_EPOCH_SENT), 0);
	assert_int_equal(mc_journal_move(&w->tra.journal, n, MC_EPOCH_SENT, MC_EPOCH_COMMITTED), 0);
	if (n == 1)
		assert_int_equal(mc_state_move(w->tra.control, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT,
		                               MC_STATE_SYNCING, MC_STATE_PROTECTED,
		                               MC_REASON_FIRST_COMMIT),
		                 0);
	mc_arena_ring_all(&w->tra);
}

static bool is_released(void *ctx)
{
	struct world *w = ctx;

	return mc_journal_state(&w->sup.journal, w->epoch) == MC_EPOCH_RELEASED;
}

/* Protected: the first epoch is committed and released. */
static struct world *world_protected(void)
{
	struct world *w = world_new(MC_SIDE_PRIMARY);

	barrier(w);
	lease(w, 60000);
	commit(w, 1);
	assert_true(wait_until(&w->cap, is_released, w));
	return w;
}

static void nothing_comes(struct world *w, int nic)
{
	uint8_t buf[64];

	assert_int_equal(world_gets(w, nic, buf, sizeof(buf), 50), -1);
}

/* --- tests ------------------------------------------------------------------------------- */

static void test_passes_before_it_is_armed(void **state)
{
	struct world *w = world_new(MC_SIDE_PRIMARY);
	static uint8_t frame[9000], back[9000];
	struct sockaddr_un a;
	struct pollfd p = {.fd = w->qemu[1], .events = POLLIN};

	(void)state;
	for (int nic = 0; nic < NICS; nic++) {
		guest_counts(w, nic);
		world_sees(w, nic, 1);
	}
	memset(frame, 0xa5, sizeof(frame));
	assert_true(guest_sends(w, 1, frame, sizeof(frame)));
	assert_int_equal(world_gets(w, 1, back, sizeof(back), 5000), sizeof(frame));
	assert_memory_equal(frame, back, sizeof(frame));
	/* The other way, to where the guest's frames came from. */
	address(w, &a, "local", 1);
	assert_int_equal(
	        sendto(w->out[1], frame, sizeof(frame), 0, (struct sockaddr *)&a, sizeof(a)),
	        sizeof(frame));
	assert_int_equal(poll(&p, 1, 5000), 1);
	assert_int_equal(recv(w->qemu[1], back, sizeof(back), 0), sizeof(frame));
	assert_memory_equal(frame, back, sizeof(frame));
	world_end(w);
}

/* What was sent before a barrier leaves with its epoch, what came after stays. */
static void test_released_by_epoch(void **state)
{
	struct world *w = world_protected();

	(void)state;
	for (int round = 0; round < 20; round++) {
		uint64_t before[NICS];

		for (int i = 0; i < 40; i++)
			guest_counts(w, (int)((uint32_t)rand_r(&w->seed) % NICS));
		barrier(w);
		memcpy(before, w->sent, sizeof(before));
		for (int i = 0; i < 5; i++)
			guest_counts(w, i % NICS);
		for (int nic = 0; nic < NICS; nic++)
			nothing_comes(w, nic);
		commit(w, w->epoch);
		for (int nic = 0; nic < NICS; nic++)
			world_sees(w, nic, before[nic]);
		assert_true(wait_until(&w->cap, is_released, w));
	}
	world_end(w);
}

/* A receiver that is slow to take what was released gets all of it. */
static void test_slow_receiver(void **state)
{
	struct world *w = world_protected();

	(void)state;
	/* More than a socket of the world's has room for (net.unix.max_dgram_qlen, 4096 at most).
	 */
	for (int i = 0; i < 5000; i++)
		guest_counts(w, 0);
	barrier(w);
	commit(w, w->epoch);
	assert_true(wait_until(&w->cap, is_released, w));
	world_sees(w, 0, 5000);
	assert_int_equal(mc_metric_get(&w->sup.metrics[MC_ROLE_NETGATE], MC_M_PURGED), 0);
	world_end(w);
}

/* Frames for a guest that stands still wait until it takes them. */
static void test_guest_stands_still(void **state)
{
	struct world *w = world_protected();
	struct numbered f = {.number = 0};
	struct sockaddr_un a;

	(void)state;
	guest_counts(w, 1); /* tells where it is */
	barrier(w);
	commit(w, w->epoch);
	world_sees(w, 1, 1);
	address(w, &a, "local", 1);
	/* Until nobody has taken anything for a while. */
	for (int idle = 0; idle < 20;) {
		assert_true(f.number < 100000); /* somebody throws them away */
		f.number++;
		if (sendto(w->out[1], &f, sizeof(f), MSG_DONTWAIT, (struct sockaddr *)&a,
		           sizeof(a)) == (ssize_t)sizeof(f)) {
			idle = 0;
			continue;
		}
		f.number--;
		idle++;
		usleep(10000);
	}
	assert_true(f.number > 20);
	for (uint64_t i = 1; i <= f.number; i++) {
		struct pollfd p = {.fd = w->qemu[1], .events = POLLIN};
		struct numbered got;

		assert_int_equal(poll(&p, 1, 5000), 1);
		assert_int_equal(recv(w->qemu[1], &got, sizeof(got), 0), sizeof(got));
		assert_int_equal(got.number, i);
	}
	assert_int_equal(mc_metric_get(&w->sup.metrics[MC_ROLE_NETGATE], MC_M_PURGED), 0);
	world_end(w);
}

/* Two epochs in flight, the first aborted: its frames leave with the second. */
static void test_aborted_epoch(void **state)
{
	struct world *w = world_protected();

	(void)state;
	guest_counts(w, 0);
	barrier(w);
	guest_counts(w, 0);
	assert_int_equal(mc_journal_abort_from(&w->cap.journal, w->epoch, -EIO), 1);
	mc_arena_ring_all(&w->cap);
	nothing_comes(w, 0);
	barrier(w);
	guest_counts(w, 0);
	commit(w, w->epoch);
	world_sees(w, 0, 2);
	nothing_comes(w, 0);
	world_end(w);
}

/* A commit that is heard of after the lease releases nothing until the lease is renewed. */
static void test_lease(void **state)
{
	struct world *w = world_protected();

	(void)state;
	guest_counts(w, 0);
	barrier(w);
	atomic_store(&w->sup.control->lease_until, mc_now_ns() - 1);
	commit(w, w->epoch);
	nothing_comes(w, 0);
	lease(w, 60000);
	mc_arena_ring_all(&w->tra);
	world_sees(w, 0, 1);
	world_end(w);
}

static void test_limit(void **state)
{
	struct world *w = world_protected();
	struct mc_metrics_block *m = &w->sup.metrics[MC_ROLE_NETGATE];
	uint8_t frame[1000] = {0};
	struct numbered f = {0};

	(void)state;
	atomic_store(&w->sup.config->gate_limit, 5500);
	mc_arena_ring_all(&w->sup);
	for (int i = 0; i < 9; i++) {
		f.number = ++w->sent[0];
		memcpy(frame, &f, sizeof(f));
		assert_true(guest_sends(w, 0, frame, sizeof(frame)));
	}
	barrier(w);
	assert_int_equal(mc_metric_get(m, MC_M_HELD_PACKETS), 5);
	assert_int_equal(mc_metric_get(m, MC_M_HELD_BYTES), 5000);
	assert_int_equal(mc_metric_get(m, MC_M_GATE_DROPS), 4);
	commit(w, w->epoch);
	world_sees(w, 0, 5);
	assert_true(wait_until(&w->cap, is_released, w));
	assert_int_equal(mc_metric_get(m, MC_M_HELD_PACKETS), 0);
	assert_int_equal(mc_metric_get(m, MC_M_LEAKS), 0);
	world_end(w);
}

/*
 * Killed at any moment, again and again: no frame beyond the newest committed barrier ever
 * comes out, in order, and a successor goes on releasing.
 */
static void test_killed(void **state)
{
	struct world *w = world_protected();
	uint64_t marked[NICS];

	(void)state;
	for (int round = 0; round < 40; round++) {
		bool kill_now = rand_r(&w->seed) % 2, kill_later = rand_r(&w->seed) % 2;

		for (int i = 0; i < 30; i++)
			guest_counts(w, i % NICS);
		if (kill_now) {
			proc_kill(&w->gate);
			gate_start(w);
		}
		for (int i = 0; i < 10; i++)
			guest_counts(w, i % NICS);
		barrier(w);
		memcpy(marked, w->sent, sizeof(marked));
		for (int i = 0; i < 10; i++)
			guest_counts(w, i % NICS);
		if (kill_later)
			proc_kill(&w->gate);
		commit(w, w->epoch);
		if (kill_later)
			gate_start(w);
		assert_true(wait_until(&w->cap, is_released, w));
		for (int nic = 0; nic < NICS; nic++) {
			world_reads(w, nic);
			if (w->seen[nic] > marked[nic])
				fail_msg("NIC %d: frame %llu is out, the barrier was at %llu", nic,
				         (unsigned long long)w->seen[nic],
				         (unsigned long long)marked[nic]);
		}
	}
	for (int nic = 0; nic < NICS; nic++)
		assert_true(w->seen[nic] > 100);
	world_end(w);
}

/* Commits that no gate saw: none may stay COMMITTED, or its slot is never free again. */
static void test_away_for_long(void **state)
{
	struct world *w = world_protected();

	(void)state;
	proc_kill(&w->gate);
	for (int i = 0; i < 40; i++) {
		assert_int_equal(mc_journal_begin(&w->cap.journal, ++w->epoch), 0);
		commit(w, w->epoch);
	}
	gate_start(w);
	assert_true(wait_until(&w->cap, is_released, w));
	for (uint64_t n = 1; n <= w->epoch; n++)
		assert_int_equal(mc_journal_state(&w->sup.journal, n), MC_EPOCH_RELEASED);
	world_end(w);
}

static void move(struct world *w, enum mc_role role, enum mc_state from, enum mc_state to)
{
	assert_int_equal(mc_state_move(w->sup.control, w->sup.config->side, role, from, to,
	                               MC_REASON_RESOLVED),
	                 0);
	mc_arena_ring_all(&w->sup);
}

/* HELD holds; DEGRADED lets everything out, held frames first. */
static void test_degraded(void **state)
{
	struct world *w = world_protected();

	(void)state;
	guest_counts(w, 0);
	barrier(w);
	guest_counts(w, 0);
	move(w, MC_ROLE_CAPTURE, MC_STATE_PROTECTED, MC_STATE_HELD);
	nothing_comes(w, 0);
	move(w, MC_ROLE_SUPERVISOR, MC_STATE_HELD, MC_STATE_DEGRADED);
	world_sees(w, 0, 2);
	guest_counts(w, 0);
	world_sees(w, 0, 3);
	world_end(w);
}

/* The backup took over: what this guest held, and whatever it still says, is discarded. */
static void test_taken_over(void **state)
{
	struct world *w = world_protected();

	(void)state;
	guest_counts(w, 0);
	barrier(w);
	guest_counts(w, 0);
	atomic_store(&w->sup.control->peer_taken, 1);
	move(w, MC_ROLE_TRANSPORT, MC_STATE_PROTECTED, MC_STATE_STOPPED);
	nothing_comes(w, 0);
	guest_counts(w, 0);
	nothing_comes(w, 0);
	proc_kill(&w->gate);
	gate_start(w);
	guest_counts(w, 0);
	nothing_comes(w, 0);
	world_end(w);
}

/* A standby's gate is shut both ways until it runs the guest. */
static void test_backup(void **state)
{
	struct world *w = world_new(MC_SIDE_BACKUP);
	struct mc_control *c = w->sup.control;
	struct pollfd p = {.fd = w->qemu[0], .events = POLLIN};
	struct sockaddr_un a;

	(void)state;
	guest_counts(w, 0);
	nothing_comes(w, 0);
	address(w, &a, "local", 0);
	assert_int_equal(sendto(w->out[0], "in", 2, 0, (struct sockaddr *)&a, sizeof(a)), 2);
	assert_int_equal(poll(&p, 1, 50), 0);
	move(w, MC_ROLE_TRANSPORT, MC_STATE_WAITING, MC_STATE_SYNCING);
	assert_int_equal(mc_commit_reset(c, 3), 0);
	assert_int_equal(mc_commit_advance(c, 3, 1), 0);
	move(w, MC_ROLE_RESTORE, MC_STATE_SYNCING, MC_STATE_PROTECTED);
	move(w, MC_ROLE_RESTORE, MC_STATE_PROTECTED, MC_STATE_TAKING_OVER);
	guest_counts(w, 0);
	nothing_comes(w, 0);
	assert_int_equal(mc_commit_take(c), 0);
	move(w, MC_ROLE_RESTORE, MC_STATE_TAKING_OVER, MC_STATE_ACTIVE);
	/* The bell says when: a frame of before may still be read, and is discarded. */
	for (int i = 0; i < 100 && !w->seen[0]; i++) {
		guest_counts(w, 0);
		(void)poll(NULL, 0, 10);
		world_reads(w, 0);
	}
	assert_true(w->seen[0] > 2);
	assert_int_equal(sendto(w->out[0], "in", 2, 0, (struct sockaddr *)&a, sizeof(a)), 2);
	assert_int_equal(poll(&p, 1, 5000), 1);
	world_end(w);
}

static bool is_stopped(void *ctx)
{
	return mc_state_of(atomic_load(&((struct world *)ctx)->sup.control->state)) ==
	       MC_STATE_STOPPED;
}

/* A NIC that can't be opened: refused by name, nothing is armed. */
static void test_cant_open(void **state)
{
	struct world *w = world_prepare(MC_SIDE_PRIMARY);
	struct mc_control *c = w->sup.control;

	(void)state;
	snprintf(w->sup.config->nic[1].path, sizeof(w->sup.config->nic[1].path),
	         "%s/no/such/folder", w->dir);
	proc_start(&w->gate, &w->sup, MC_ROLE_NETGATE);
	assert_true(wait_until(&w->cap, is_stopped, w));
	assert_false(is_ready(w));
	assert_non_null(strstr(c->refusal, "n1"));
	assert_non_null(strstr(c->refusal, "no/such/folder"));
	world_end(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_passes_before_it_is_armed),
	        cmocka_unit_test(test_released_by_epoch),
	        cmocka_unit_test(test_slow_receiver),
	        cmocka_unit_test(test_guest_stands_still),
	        cmocka_unit_test(test_aborted_epoch),
	        cmocka_unit_test(test_lease),
	        cmocka_unit_test(test_limit),
	        cmocka_unit_test(test_killed),
	        cmocka_unit_test(test_away_for_long),
	        cmocka_unit_test(test_degraded),
	        cmocka_unit_test(test_taken_over),
	        cmocka_unit_test(test_backup),
	        cmocka_unit_test(test_cant_open),
	};

	return cmocka_run_group_tests(tests, NULL, procs_sweep);
}
