/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One end of a replication without guests: a real mc-transport, and this program in the place of
 * its supervisor, of capture and stage on the primary, of restore on the backup.  What the
 * primary sends is made from epoch and sequence, so that the backup can tell whether it is the
 * same.
 *
 *   transport-end backup  LISTEN PORT OPTION...
 *   transport-end primary PEER   PORT OPTION...
 *
 * OPTION: transport=tcp|rdma|auto unit=BYTES slabs=N timeout=MS (failure_timeout) poll sparse
 * secure trace. It takes commands, one a line, and answers each with one line:
 *
 *   up                      waits for the link
 *   sync N BYTES            primary: N slabs of the first copy
 *   epochs N SLABS BYTES [FLIGHT]   primary: sends N epochs and waits for their commits
 *   begin SLABS BYTES       primary: sends one and doesn't wait
 *   committed N             waits until epoch N is committed
 *   shrink                  the pool gives back what isn't in use
 *   stopped                 waits for state STOPPED
 *   aborted N               primary: waits until epoch N is given up
 *   hold, go                backup: restore stops taking slabs, goes on
 *   hog, unhog              backup: restore has all slabs that are free, gives them back
 *   take                    backup: restore takes over
 *   kill                    kill -9 of mc-transport, which is started again
 *   down MS, pid            waits for the link to be down; pid of mc-transport
 *   stats                   counters
 *   quit
 */
#include <stdarg.h>

#include "transport-roles.h"

static void answer(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void answer(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void do_epochs(struct end *e, unsigned long n, unsigned long k, unsigned long bytes,
                      unsigned long flight)
{
	uint64_t *took = calloc(n, sizeof(*took)), *at = calloc(n, sizeof(*at));
	uint64_t first = e->last + 1, began = mc_now_ns(), seen = e->last, ns;

	for (unsigned long i = 0; i < n || seen < e->last;) {
		if (i < n && e->last - seen < flight) {
			at[i] = mc_now_ns();
			begin_epoch(e, (uint32_t)k, bytes);
			i++;
		} else {
			turn(e, 1);
		}
		for (; seen < e->last && is_committed(e, seen + 1); seen++)
			took[seen + 1 - first] = mc_now_ns() - at[seen + 1 - first];
	}
	ns = mc_now_ns() - began;
	qsort(took, n, sizeof(*took), by_size);
	answer("ok epochs=%lu last=%llu bytes=%llu ns=%llu p50=%llu p99=%llu", n,
	       (unsigned long long)e->last, (unsigned long long)n * k * bytes,
	       (unsigned long long)ns, (unsigned long long)took[n / 2],
	       (unsigned long long)took[n * 99 / 100]);
	free(took);
	free(at);
}

static void do_sync(struct end *e, unsigned long n, unsigned long bytes)
{
	struct mc_control *c = e->w->cap.control;
	uint64_t began = mc_now_ns();

	for (unsigned long i = 0; i < n; i++) {
		push(e, new_slab(e, 0, (uint32_t)e->sync, bytes));
		atomic_store(&c->sync_slabs, ++e->sync);
	}
	while (pool_owned(&e->w->sup.slabs))
		turn(e, 1);
	answer("ok slabs=%lu ns=%llu", n, (unsigned long long)(mc_now_ns() - began));
}

/* --- the loop -------------------------------------------------------------------------- */

static void start_transport(struct end *e)
{
	struct world *w = e->w;

	w->bus = sd_bus_close_unref(w->bus);
	w->registered = false;
	world_start(w);
}

static void pass_connection(struct end *e)
{
	int fd = accept4(e->w->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	uint8_t buf[MC_WIRE_HEADER + MC_NAME_MAX];

	if (fd < 0)
		return;
	for (int i = 0; i < 1000 && recv(fd, buf, sizeof(buf), MSG_PEEK) < (ssize_t)sizeof(buf);
	     i++)
		wait_readable(fd);
	(void)sd_bus_call_method(e->w->bus, NULL, MC_WORKER_PATH, MC_WORKER_IFACE, "Connection",
	                         NULL, NULL, "h", fd);
	close(fd);
}

/* One turn: what the others would do meanwhile. Waits at most @ms for something to happen. */
static void turn(struct end *e, int ms)
{
	struct mc_arena *a = e->w->side == MC_SIDE_BACKUP ? &e->w->res : &e->w->sta;
	struct mc_bell *bell = &a->proc[a->role].bell;
	struct pollfd p[3] = {
	        {.fd = a->bell_fd[a->role], .events = POLLIN},
	        {.fd = e->w->side == MC_SIDE_BACKUP ? e->w->listener : -1, .events = POLLIN},
	        {.fd = sd_bus_get_fd(e->w->bus), .events = POLLIN}};
	int status;

	mc_bell_sleep(bell);
	if (e->w->side == MC_SIDE_BACKUP) {
		while (restore_step(e))
			ms = 0;
		begin_anew(e);
	} else {
		release(e);
	}
	(void)poll(p, MC_ARRAY_SIZE(p), ms);
	mc_bell_awake(bell, p[0].fd);
	if (p[1].revents)
		pass_connection(e);
	while (sd_bus_process(e->w->bus, NULL) > 0)
		;
	if (waitpid(e->w->transport.pid, &status, WNOHANG) == e->w->transport.pid) {
		fprintf(stderr, "mc-transport ended with status %#x\n", status);
		e->w->transport.pid = 0;
		start_transport(e);
	}
}

static uint64_t metric(const struct end *e, enum mc_metric m)
{
	return mc_metric_get(&e->w->sup.metrics[MC_ROLE_TRANSPORT], m);
}

static void do_stats(struct end *e)
{
	struct mc_pool_shm *p = e->w->sup.slabs.shm;

	answer("ok state=%s committed=%llu bad=%llu sync=%llu pinned=%llu copied=%llu waits=%llu "
	       "reconnects=%llu held=%llu used=%llu grown=%llu shrunk=%llu sent=%llu received=%llu "
	       "refusal=%s",
	       mc_state_name(state_now(e->w)),
	       (unsigned long long)(e->w->side == MC_SIDE_BACKUP
	                                    ? committed(e)
	                                    : atomic_load(&e->w->cap.journal.shm->last_committed)),
	       (unsigned long long)e->bad, (unsigned long long)e->sync_checked,
	       (unsigned long long)metric(e, MC_M_PINNED),
	       (unsigned long long)metric(e, MC_M_SLAB_BYTES_COPIED),
	       (unsigned long long)metric(e, MC_M_CREDIT_WAITS),
	       (unsigned long long)metric(e, MC_M_RECONNECTS),
	       (unsigned long long)atomic_load(&p->held),
	       (unsigned long long)atomic_load(&p->in_use),
	       (unsigned long long)atomic_load(&p->grown),
	       (unsigned long long)atomic_load(&p->shrunk),
	       (unsigned long long)metric(e, MC_M_BYTES_XFER),
	       (unsigned long long)metric(e, MC_M_BYTES_RECEIVED), e->w->sup.control->refusal);
}

static void wait_for(struct end *e, bool (*fn)(struct end *e, unsigned long v), unsigned long v)
{
	uint64_t end = mc_now_ns() + 60 * MC_NS_PER_S;

	while (!fn(e, v)) {
		if (mc_now_ns() > end) {
			answer("error not within a minute");
			return;
		}
		turn(e, 5);
	}
	answer("ok");
}

static bool link_is(struct end *e, unsigned long up)
{
	return atomic_load(&e->w->sup.control->link) == (up ? MC_LINK_UP : MC_LINK_DOWN);
}

static bool has_committed(struct end *e, unsigned long n)
{
	return e->w->side == MC_SIDE_BACKUP ? committed(e) >= n : is_committed(e, n);
}

static bool has_aborted(struct end *e, unsigned long n)
{
	return mc_journal_state(&e->w->cap.journal, n) == MC_EPOCH_ABORTED;
}

static void do_hog(struct end *e, bool take)
{
	struct mc_pool *p = &e->w->res.slabs;

	while (take && e->hogs < HOGS_MAX && mc_pool_alloc(p, 0, false, &e->hog[e->hogs]) == 0)
		e->hogs++;
	while (!take && e->hogs)
		assert_int_equal(mc_pool_free(p, e->hog[--e->hogs]), 0);
	mc_arena_ring(&e->w->res, MC_ROLE_TRANSPORT);
	answer("ok hogs=%u", e->hogs);
}

static bool has_stopped(struct end *e, unsigned long v)
{
	(void)v;
	return state_now(e->w) == MC_STATE_STOPPED;
}

static void do_kill(struct end *e)
{
	kill(e->w->transport.pid, SIGKILL);
	(void)proc_reap(&e->w->transport);
	start_transport(e);
	answer("ok");
}

static void do_take(struct end *e)
{
	struct mc_control *c = e->w->res.control;

	assert_int_equal(mc_commit_take(c), 0);
	mc_arena_ring_all(&e->w->res);
	answer("ok");
}

static void do_shrink(struct end *e)
{
	struct mc_arena *a = &e->w->cap;
	uint64_t was = atomic_load(&a->slabs.shm->shrunk);

	atomic_store(&a->slabs.shm->strikes_max, 1);
	for (int i = 0; i < 20; i++)
		(void)mc_pool_epoch_done(&a->slabs);
	mc_arena_ring(a, MC_ROLE_TRANSPORT);
	answer("ok shrunk=%llu", (unsigned long long)(atomic_load(&a->slabs.shm->shrunk) - was));
}

static bool command(struct end *e, const char *line)
{
	unsigned long v[4] = {0, 0, 0, 1};
	char name[32] = "";
	int n = sscanf(line, "%31s %lu %lu %lu %lu", name, &v[0], &v[1], &v[2], &v[3]);

	if (strcmp(name, "quit") == 0)
		return false;
	if (strcmp(name, "up") == 0)
		wait_for(e, link_is, 1);
	else if (strcmp(name, "down") == 0)
		wait_for(e, link_is, 0);
	else if (strcmp(name, "stopped") == 0)
		wait_for(e, has_stopped, 0);
	else if (strcmp(name, "committed") == 0 && n > 1)
		wait_for(e, has_committed, v[0]);
	else if (strcmp(name, "sync") == 0 && n > 2)
		do_sync(e, v[0], v[1]);
	else if (strcmp(name, "epochs") == 0 && n > 3)
		do_epochs(e, v[0], v[1], v[2], n > 4 ? v[3] : 2);
	else if (strcmp(name, "aborted") == 0 && n > 1)
		wait_for(e, has_aborted, v[0]);
	else if (strcmp(name, "hog") == 0 || strcmp(name, "unhog") == 0)
		do_hog(e, name[0] == 'h');
	else if (strcmp(name, "begin") == 0 && n > 2)
		begin_epoch(e, (uint32_t)v[0], v[1]),
		        answer("ok last=%llu", (unsigned long long)e->last);
	else if (strcmp(name, "hold") == 0 || strcmp(name, "go") == 0)
		e->hold = name[0] == 'h', answer("ok");
	else if (strcmp(name, "pid") == 0)
		answer("ok pid=%d", (int)e->w->transport.pid);
	else if (strcmp(name, "take") == 0)
		do_take(e);
	else if (strcmp(name, "shrink") == 0)
		do_shrink(e);
	else if (strcmp(name, "kill") == 0)
		do_kill(e);
	else if (strcmp(name, "stats") == 0)
		do_stats(e);
	else
		answer("error no such command: %s", line);
	return true;
}

static void loop(struct end *e)
{
	struct pollfd in = {.fd = 0, .events = POLLIN};
	char line[256];
	size_t have = 0;

	for (;;) {
		turn(e, 5);
		if (poll(&in, 1, 0) != 1)
			continue;
		if (read(0, line + have, 1) != 1)
			return;
		while (line[have] != '\n' && have < sizeof(line) - 1)
			if (read(0, line + ++have, 1) != 1)
				return;
		line[have] = '\0';
		have = 0;
		if (!command(e, line))
			return;
	}
}

/* --- start ----------------------------------------------------------------------------- */

static bool drop_privileges(unsigned long memlock)
{
	struct rlimit l = {.rlim_cur = memlock, .rlim_max = memlock};

	return setrlimit(RLIMIT_MEMLOCK, &l) == 0 && setresgid(65534, 65534, 65534) == 0 &&
	       setresuid(65534, 65534, 65534) == 0;
}

static bool take_option(struct end *e, const char *o)
{
	const char *v = strchr(o, '=');

	if (strncmp(o, "transport=", 10) == 0)
		e->transport = v + 1;
	else if (strncmp(o, "unit=", 5) == 0)
		unit = strtoul(v + 1, NULL, 10);
	else if (strncmp(o, "slabs=", 6) == 0)
		slabs = strtoul(v + 1, NULL, 10);
	else if (strncmp(o, "timeout=", 8) == 0)
		e->timeout = strtoul(v + 1, NULL, 10);
	else if (strncmp(o, "memlock=", 8) == 0)
		return drop_privileges(strtoul(v + 1, NULL, 10));
	else if (strcmp(o, "poll") == 0)
		e->poll = true;
	else if (strcmp(o, "sparse") == 0)
		e->sparse = true;
	else if (strcmp(o, "secure") == 0)
		e->insecure = false;
	else
		return false;
	return true;
}

static void listen_on(struct world *w, const char *addr, int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int one = 1;

	close(w->listener);
	w->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(inet_pton(AF_INET, addr, &a.sin_addr), 1);
	(void)setsockopt(w->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	assert_int_equal(bind(w->listener, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(w->listener, 8), 0);
}

int main(int argc, char **argv)
{
	struct end e = {.transport = "rdma", .insecure = true, .timeout = 5000};
	struct mc_config *c;
	bool backup;

	setenv("MC_TEST_VERBOSE", "1", 1);
	if (argc < 4)
		return 2;
	for (int i = 4; i < argc; i++)
		if (!take_option(&e, argv[i]))
			return 2;
	backup = strcmp(argv[1], "backup") == 0;
	e.w = world_new(backup ? MC_SIDE_BACKUP : MC_SIDE_PRIMARY);
	c = e.w->sup.config;
	c->insecure = e.insecure;
	c->poll = e.poll;
	snprintf(c->transport, sizeof(c->transport), "%s", e.transport);
	snprintf(c->peer, sizeof(c->peer), "%s:%s", argv[2], argv[3]);
	c->instance = (struct mc_instance){{1, backup ? 3 : 2}};
	atomic_store(&c->failure_timeout_ms, (uint32_t)e.timeout);
	arena_as(&e.gate, &e.w->sup, MC_ROLE_NETGATE);
	if (backup) {
		listen_on(e.w, argv[2], atoi(argv[3]));
		assert_int_equal(mc_ring_attach_consumer(&e.ring, e.w->res.ring_restore,
		                                         e.w->res.ring_slots),
		                 0);
	} else {
		assert_int_equal(mc_ring_attach_producer(&e.ring, e.w->sta.ring_transport[0],
		                                         e.w->sta.ring_slots),
		                 0);
	}
	start_transport(&e);
	answer("ready end=%d", (int)getpid());
	loop(&e);
	world_end(e.w);
	return e.bad ? 1 : 0;
}
