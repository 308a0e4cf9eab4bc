/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long a sleeping peer takes to have what was pushed to it, between two pinned processes:
 * ring and doorbell as the workers use them, the same inside an sd-event loop, and the peer: a
 * bare eventfd with a blocking read.  Prints one JSON object of arrays: us, a median a run.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <systemd/sd-event.h>

#include "../../ipc/bell.h"
#include "../../ipc/ring.h"
#include "../../ipc/util.h"

#define SLOTS 64
#define WAKES 1000
#define RUNS  7

enum how { RING, LOOP, BARE, HOWS };
static const char *const names[HOWS] = {"ring", "loop", "bare"};

struct shared {
	struct mc_bell bell;
	_Atomic uint64_t stamp; /* ns when the peer was woken */
	_Atomic uint64_t took[WAKES];
	_Atomic uint64_t taken;   /* wakes so far */
	_Atomic uint32_t blocked; /* BARE: about to read */
};

struct peer {
	struct shared *s;
	struct mc_ring *ring;
	struct mc_ring_end end;
	int fd;
	sd_event *event;
};

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	(void)sched_setaffinity(0, sizeof(set), &set);
}

static void *shared(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE,
	               -1, 0);

	if (p == MAP_FAILED)
		abort();
	return p;
}

static void woken(struct shared *s)
{
	uint64_t n = atomic_load(&s->taken);

	s->took[n] = mc_now_ns() - atomic_load(&s->stamp);
	atomic_store(&s->taken, n + 1);
}

/* Takes what is in the ring: 1 when there was something. */
static int take(struct peer *p)
{
	uint64_t h;

	if (mc_ring_peek(&p->end, 0, &h) != 1)
		return 0;
	woken(p->s);
	if (h != atomic_load(&p->s->taken)) {
		fprintf(stderr, "wakeup: handle %lu is not the next one\n", h);
		_exit(1);
	}
	mc_ring_advance(&p->end, 1);
	return 1;
}

static void sleep_by_ring(struct peer *p)
{
	while (atomic_load(&p->s->taken) < WAKES) {
		struct pollfd pfd = {.fd = p->fd, .events = POLLIN};

		while (take(p))
			;
		mc_bell_sleep(&p->s->bell);
		if (!take(p) && atomic_load(&p->s->taken) < WAKES)
			(void)poll(&pfd, 1, -1);
		mc_bell_awake(&p->s->bell, p->fd);
	}
}

static int on_bell(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct peer *p = userdata;

	(void)s;
	(void)revents;
	mc_bell_awake(&p->s->bell, fd);
	return 0;
}

static int on_prepare(sd_event_source *s, void *userdata)
{
	struct peer *p = userdata;

	(void)s;
	while (take(p))
		;
	mc_bell_sleep(&p->s->bell);
	while (take(p))
		;
	return atomic_load(&p->s->taken) < WAKES ? 0 : sd_event_exit(p->event, 0);
}

static void sleep_in_loop(struct peer *p)
{
	sd_event_source *s = NULL;

	if (sd_event_new(&p->event) < 0 ||
	    sd_event_add_io(p->event, &s, p->fd, EPOLLIN, on_bell, p) < 0 ||
	    sd_event_source_set_prepare(s, on_prepare) < 0 || sd_event_loop(p->event) < 0)
		_exit(1);
}

static void sleep_bare(struct peer *p)
{
	uint64_t count;

	while (atomic_load(&p->s->taken) < WAKES) {
		atomic_store(&p->s->blocked, 1);
		if (read(p->fd, &count, sizeof(count)) != sizeof(count))
			_exit(1);
		atomic_store(&p->s->blocked, 0);
		woken(p->s);
	}
}

static bool asleep(const struct shared *s, enum how how)
{
	return how == BARE ? atomic_load(&s->blocked) : atomic_load(&s->bell.sleeping);
}

/* Wakes the peer once it has surely gone to sleep. */
static void wake_all(struct peer *p, enum how how)
{
	const uint64_t one = 1;

	for (uint64_t n = 0; n < WAKES; n++) {
		struct timespec ts = {.tv_nsec = 150000};

		while (atomic_load(&p->s->taken) < n || !asleep(p->s, how))
			nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
		nanosleep(&ts, NULL);
		atomic_store(&p->s->stamp, mc_now_ns());
		if (how == BARE) {
			if (write(p->fd, &one, sizeof(one)) != sizeof(one))
				exit(1);
		} else {
			(void)mc_ring_push(&p->end, n + 1);
			mc_bell_ring(&p->s->bell, p->fd);
		}
	}
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static double one_run(enum how how)
{
	struct peer p = {.s = shared(sizeof(struct shared)), .ring = shared(mc_ring_size(SLOTS))};
	static uint64_t took[WAKES];
	int status;
	pid_t pid;

	p.fd = eventfd(0, EFD_CLOEXEC | (how == BARE ? 0 : EFD_NONBLOCK));
	mc_ring_init(p.ring, SLOTS);
	pid = fork();
	if (pid == 0) {
		pin(1);
		mc_ring_attach_consumer(&p.end, p.ring, SLOTS);
		if (how == RING)
			sleep_by_ring(&p);
		else if (how == LOOP)
			sleep_in_loop(&p);
		else
			sleep_bare(&p);
		_exit(0);
	}
	pin(0);
	mc_ring_attach_producer(&p.end, p.ring, SLOTS);
	wake_all(&p, how);
	if (waitpid(pid, &status, 0) != pid || status)
		exit(1);
	for (int i = 0; i < WAKES; i++)
		took[i] = p.s->took[i];
	qsort(took, WAKES, sizeof(took[0]), compare);
	munmap(p.s, sizeof(*p.s));
	munmap(p.ring, mc_ring_size(SLOTS));
	close(p.fd);
	return (double)took[WAKES / 2] / 1e3;
}

int main(void)
{
	double us[HOWS][RUNS];

	for (int i = 0; i < RUNS; i++)
		for (int how = 0; how < HOWS; how++)
			us[how][i] = one_run((enum how)how);
	printf("{");
	for (int how = 0; how < HOWS; how++) {
		printf("%s\"%s\":[", how ? "," : "", names[how]);
		for (int i = 0; i < RUNS; i++)
			printf("%s%.3f", i ? "," : "", us[how][i]);
		printf("]");
	}
	printf("}\n");
	return 0;
}
