/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a gate costs.  mc-netgate runs as a process of its own, on an arena in which this program
 * plays everybody else.
 *
 *   gate latency N DIR        relay between sockets in DIR: N epochs, one frame each.  Prints
 * arrays of us: barrier (asked for to confirmed), release (committed to the frame out) gate latency
 * N TAP OUT    the same with a plug on TAP; frames come out of OUT, on the same bridge gate hold
 * PATH QEMU SOCK MS  a relay from PATH (QEMU's address: QEMU) to SOCK: an epoch every MS, until
 * stdin ends gate rate TO AT SIZE MS   frames of SIZE bytes to socket TO; prints what came to
 * socket AT in the last MS of the run: packets and bits a second
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ipc/arena.h"
#include "../../ipc/util.h"

#define LIMIT_NS (5 * MC_NS_PER_S)
#define FRAME    60

struct gate {
	struct mc_arena sup, cap, sta, tra;
	pid_t pid;
	uint64_t epoch;
};

static void die(const char *what)
{
	fprintf(stderr, "gate: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* --- mc-netgate on an arena ---------------------------------------------------------------- */

static void view(struct mc_arena *v, const struct mc_arena *a, enum mc_role role)
{
	int bells[MC_ROLE_MAX];

	for (int i = 0; i < MC_ROLE_MAX; i++)
		bells[i] = fcntl(a->bell_fd[i], F_DUPFD_CLOEXEC, 3);
	if (mc_arena_attach(v, fcntl(a->fd, F_DUPFD_CLOEXEC, 3), mc_arena_config_reader(a), bells,
	                    MC_ROLE_MAX, role) < 0)
		die("arena");
}

static void become(const struct mc_arena *a)
{
	char path[512], config[8];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);
	int high[MC_ROLE_MAX + 2];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	path[n > 0 ? n : 0] = '\0';
	strcpy(strrchr(path, '/') + 1, "mc-netgate");
	high[0] = fcntl(a->fd, F_DUPFD, 200);
	for (int i = 0; i < MC_ROLE_MAX; i++)
		high[i + 1] = fcntl(a->bell_fd[i], F_DUPFD, 200);
	high[MC_ROLE_MAX + 1] = fcntl(mc_arena_config_reader(a), F_DUPFD, 200);
	for (int i = 0; i <= MC_ROLE_MAX + 1; i++)
		dup2(high[i], 3 + i);
	snprintf(config, sizeof(config), "%d", 4 + MC_ROLE_MAX);
	execl(path, path, "--guest", "bench", "--arena-fd", "3", "--bell-fd", "4", "--config-fd",
	      config, "--control", "/nowhere", NULL);
	_exit(127);
}

static void wait_word(const _Atomic uint64_t *w, uint64_t at_least, const char *what)
{
	uint64_t end = mc_now_ns() + LIMIT_NS;

	while (atomic_load_explicit(w, memory_order_acquire) < at_least)
		if (mc_now_ns() > end)
			die(what);
}

static void gate_start(struct gate *g, const struct mc_nic *nic)
{
	struct mc_arena_params p = {.slab_size = 1 << 20,
	                            .max_memory = 4 << 20,
	                            .ram_pages = 4096,
	                            .side = MC_SIDE_PRIMARY};

	memset(g, 0, sizeof(*g));
	if (mc_arena_create(&g->sup, NULL, &p) < 0)
		die("arena");
	g->sup.config->side = MC_SIDE_PRIMARY;
	strcpy(g->sup.config->guest, "bench");
	g->sup.config->gate = nic->kind;
	g->sup.config->nnics = 1;
	g->sup.config->nic[0] = *nic;
	view(&g->cap, &g->sup, MC_ROLE_CAPTURE);
	view(&g->sta, &g->sup, mc_role_stage(0));
	view(&g->tra, &g->sup, MC_ROLE_TRANSPORT);
	(void)mc_state_move(g->sup.control, MC_SIDE_PRIMARY, MC_ROLE_SUPERVISOR, MC_STATE_NONE,
	                    MC_STATE_SYNCING, MC_REASON_STARTED);
	g->pid = fork();
	if (!g->pid)
		become(&g->sup);
	wait_word(&g->sup.control->gate_ready, 1, g->sup.control->refusal);
	atomic_store(&g->sup.control->armed_epoch, 1);
}

static void gate_end(struct gate *g)
{
	atomic_store(&g->sup.control->want_undo, 1);
	kill(g->pid, SIGTERM);
	(void)waitpid(g->pid, NULL, 0);
}

/* As capture waits for its gate: asleep, woken by its bell. */
static void await(struct gate *g, const _Atomic uint64_t *w, const char *what)
{
	struct mc_bell *bell = &g->cap.proc[MC_ROLE_CAPTURE].bell;
	int fd = g->cap.bell_fd[MC_ROLE_CAPTURE];
	uint64_t end = mc_now_ns() + LIMIT_NS;

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};

		mc_bell_sleep(bell);
		if (atomic_load_explicit(w, memory_order_acquire) >= g->epoch)
			break;
		if (atomic_load(&g->sup.control->barrier_failed) >= g->epoch || mc_now_ns() > end)
			die(what);
		(void)poll(&p, 1, 100);
		mc_bell_awake(bell, fd);
	}
	mc_bell_awake(bell, fd);
}

/* us */
static double barrier(struct gate *g)
{
	struct mc_control *c = g->sup.control;
	uint64_t t;

	if (mc_journal_begin(&g->cap.journal, ++g->epoch) < 0)
		die("journal");
	t = mc_now_ns();
	atomic_store_explicit(&c->barrier_req, g->epoch, memory_order_release);
	mc_arena_ring(&g->cap, MC_ROLE_NETGATE);
	await(g, &c->barrier_done, "no barrier");
	return (double)(mc_now_ns() - t) / 1e3;
}

/* Returns when the last word was written, ns. */
static uint64_t commit(struct gate *g)
{
	uint64_t n = g->epoch;

	atomic_store(&g->sup.control->lease_until, mc_now_ns() + LIMIT_NS);
	if (mc_journal_move(&g->cap.journal, n, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED) < 0 ||
	    mc_journal_move(&g->sta.journal, n, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED) < 0 ||
	    mc_journal_move(&g->tra.journal, n, MC_EPOCH_STAGED, MC_EPOCH_SENT) < 0)
		die("journal");
	if (n == 1)
		(void)mc_state_move(g->tra.control, MC_SIDE_PRIMARY, MC_ROLE_TRANSPORT,
		                    MC_STATE_SYNCING, MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT);
	n = mc_now_ns();
	if (mc_journal_move(&g->tra.journal, g->epoch, MC_EPOCH_SENT, MC_EPOCH_COMMITTED) < 0)
		die("journal");
	mc_arena_ring(&g->tra, MC_ROLE_NETGATE);
	return n;
}

/* --- sockets and taps ---------------------------------------------------------------------- */

/* As the gate does: bursts must find room. */
static void queue_length(void)
{
	int fd = open("/proc/sys/net/unix/max_dgram_qlen", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "4096", 4) < 0)
		fprintf(stderr, "gate: max_dgram_qlen can't be raised\n");
	mc_closep(&fd);
}

static int unix_socket(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int size = 4 << 20;

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	(void)unlink(path);
	queue_length();
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		die(path);
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	return fd;
}

static int join(int fd, const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	uint64_t end = mc_now_ns() + LIMIT_NS;

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	while (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		if (mc_now_ns() > end)
			die(path);
	return fd;
}

static int open_tap(const char *name)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0)
		die(name);
	return fd;
}

/* --- latency ------------------------------------------------------------------------------- */

static void take_frame(int fd)
{
	uint8_t f[65536];
	struct pollfd p = {.fd = fd, .events = POLLIN};

	do {
		if (poll(&p, 1, 5000) != 1)
			die("the frame never came out");
	} while (read(fd, f, sizeof(f)) < FRAME || f[6] != 0x52);
}

static void print_array(const char *name, const double *v, int n, const char *after)
{
	printf("\"%s\": [", name);
	for (int i = 0; i < n; i++)
		printf("%s%.2f", i ? ", " : "", v[i]);
	printf("]%s", after);
}

static int latency(int n, const struct mc_nic *nic, int guest, int world)
{
	double *b = calloc((size_t)n, sizeof(*b)), *r = calloc((size_t)n, sizeof(*r));
	uint8_t frame[FRAME] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52,
	                        0x54, 0,    0,    0,    1,    0x88, 0xb5};
	struct timespec ms = {.tv_nsec = 1000000};
	struct gate g;

	gate_start(&g, nic);
	if (!b || !r)
		die("memory");
	(void)barrier(&g); /* shuts the gate */
	(void)commit(&g);
	if (nic->kind == MC_GATE_RELAY)
		join(guest, nic->path);
	for (int i = 0; i < n; i++) {
		uint64_t t;

		if (write(guest, frame, sizeof(frame)) != sizeof(frame))
			die("frame");
		/* An epoch is some milliseconds long: all are asleep. */
		(void)nanosleep(&ms, NULL);
		b[i] = barrier(&g);
		t = commit(&g);
		take_frame(world);
		r[i] = (double)(mc_now_ns() - t) / 1e3;
	}
	printf("{");
	print_array("barrier", b, n, ", ");
	print_array("release", r, n, "}\n");
	gate_end(&g);
	return 0;
}

static int relay_latency(int n, const char *dir)
{
	struct mc_nic nic = {.kind = MC_GATE_RELAY, .netdev = "n0"};
	char path[128];
	int guest, world;

	snprintf(nic.path, sizeof(nic.path), "%.80s/relay", dir);
	snprintf(nic.sock, sizeof(nic.sock), "%.80s/world", dir);
	snprintf(nic.sock_local, sizeof(nic.sock_local), "%.80s/local", dir);
	snprintf(path, sizeof(path), "%.80s/qemu", dir);
	guest = unix_socket(path);
	world = unix_socket(nic.sock);
	return latency(n, &nic, guest, world);
}

static int plug_latency(int n, const char *tap, const char *out)
{
	struct mc_nic nic = {.kind = MC_GATE_PLUG};

	snprintf(nic.tap, sizeof(nic.tap), "%s", tap);
	return latency(n, &nic, open_tap(tap), open_tap(out));
}

/* --- rate ---------------------------------------------------------------------------------- */

static int hold(const char *path, const char *qemu, const char *sock, int ms)
{
	struct mc_nic nic = {.kind = MC_GATE_RELAY, .netdev = "n0"};
	struct pollfd p = {.fd = 0, .events = POLLIN};
	struct gate g;

	snprintf(nic.path, sizeof(nic.path), "%s", path);
	snprintf(nic.qemu_path, sizeof(nic.qemu_path), "%s", qemu);
	snprintf(nic.sock, sizeof(nic.sock), "%s", sock);
	gate_start(&g, &nic);
	printf("up\n");
	fflush(stdout);
	while (poll(&p, 1, ms) == 0) {
		(void)barrier(&g);
		(void)commit(&g);
		await(&g, &g.sup.journal.shm->last_released, "no release");
	}
	gate_end(&g);
	return 0;
}

static void send_for_ever(const char *to, size_t size)
{
	static uint8_t frame[65536] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52,
	                               0x54, 0,    0,    0,    1,    0x88, 0xb5};
	struct mmsghdr m[64];
	struct iovec v = {frame, size};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	join(fd, to);
	memset(m, 0, sizeof(m));
	for (size_t i = 0; i < MC_ARRAY_SIZE(m); i++) {
		m[i].msg_hdr.msg_iov = &v;
		m[i].msg_hdr.msg_iovlen = 1;
	}
	/* Waits where the queue is full: what QEMU takes is what is measured. */
	while (sendmmsg(fd, m, MC_ARRAY_SIZE(m), 0) > 0)
		;
	_exit(1);
}

static int rate(const char *to, const char *at, int size, int ms)
{
	enum { N = 64 };
	static uint8_t buf[N][2048];
	struct mmsghdr m[N];
	struct iovec v[N];
	uint64_t packets = 0, bytes = 0, start, end;
	int fd = unix_socket(at);
	pid_t pid = fork();

	if (!pid)
		send_for_ever(to, (size_t)size);
	memset(m, 0, sizeof(m));
	for (int i = 0; i < N; i++) {
		v[i] = (struct iovec){buf[i], sizeof(buf[i])};
		m[i].msg_hdr.msg_iov = &v[i];
		m[i].msg_hdr.msg_iovlen = 1;
	}
	/* The first part of the run only warms up. */
	start = mc_now_ns() + (uint64_t)ms * MC_NS_PER_MS / 4;
	end = start + (uint64_t)ms * MC_NS_PER_MS;
	while (mc_now_ns() < end) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		int n = poll(&p, 1, 100) == 1 ? recvmmsg(fd, m, N, MSG_DONTWAIT, NULL) : 0;

		if (mc_now_ns() < start)
			continue;
		for (int i = 0; i < n; i++)
			bytes += m[i].msg_len;
		packets += n > 0 ? (uint64_t)n : 0;
	}
	kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	printf("{\"packets\": %.0f, \"bits\": %.0f}\n", (double)packets * 1000 / ms,
	       (double)bytes * 8000 / ms);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "latency"))
		return relay_latency(atoi(argv[2]), argv[3]);
	if (argc == 5 && !strcmp(argv[1], "latency"))
		return plug_latency(atoi(argv[2]), argv[3], argv[4]);
	if (argc == 6 && !strcmp(argv[1], "hold"))
		return hold(argv[2], argv[3], argv[4], atoi(argv[5]));
	if (argc == 6 && !strcmp(argv[1], "rate"))
		return rate(argv[2], argv[3], atoi(argv[4]), atoi(argv[5]));
	fprintf(stderr, "usage: see the head of tests/bench/gate.c\n");
	return 2;
}
