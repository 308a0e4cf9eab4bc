/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is around a mc-netgate with relayed NICs in its tests: guest, world, capture, transport. */
#ifndef MC_NETGATE_TEST_WORLD_H
#define MC_NETGATE_TEST_WORLD_H

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

#endif
