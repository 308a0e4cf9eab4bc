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
 *   hold, go                backup: restore stops taking slabs, goes on
 *   take                    backup: restore takes over
 *   kill                    kill -9 of mc-transport, which is started again
 *   down MS, pid            waits for the link to be down; pid of mc-transport
 *   stats                   counters
 *   quit
 */
#include <stdarg.h>

static unsigned long unit = 1UL << 20, slabs = 64;
#define UNIT  unit
#define SLABS slabs
#include "../../transport/test-link.h"

#include <sys/resource.h>

#include "../../ipc/log.h"

struct end {
	struct world *w;
	struct mc_arena gate; /* the arena as netgate */
	struct mc_ring_end ring;
	const char *peer;
	bool sparse, hold, insecure;
	unsigned long timeout;
	const char *transport;
	bool poll;
	/* primary */
	uint64_t last, released; /* epochs begun, released */
	uint64_t sync;
	/* backup */
	uint32_t have; /* slabs of the epoch that is being collected */
	uint64_t sync_checked, bad;
};

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

/* --- content --------------------------------------------------------------------------- */

static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static uint64_t seed(uint64_t epoch, uint32_t seq)
{
	return (epoch + 1) * 0x9e3779b97f4a7c15ULL ^ (seq + 1) * 0xc2b2ae3d27d4eb4fULL;
}

/* Fills, or compares: words of 8 bytes (one in 64 bytes when sparse), the last bytes as they come.
 */
static bool content(const struct end *e, uint8_t *p, uint64_t n, uint64_t epoch, uint32_t seq,
                    bool check)
{
	uint64_t s = seed(epoch, seq), step = e->sparse ? 64 : 8, i;

	for (i = 0; i + 8 <= n; i += step) {
		uint64_t v = next(&s), have;

		memcpy(&have, p + i, 8);
		if (!check)
			memcpy(p + i, &v, 8);
		else if (have != v)
			return false;
	}
	for (i = n / 8 * 8; i < n; i++) {
		uint8_t v = (uint8_t)next(&s);

		if (!check)
			p[i] = v;
		else if (p[i] != v)
			return false;
	}
	return true;
}

/* --- backup: restore ------------------------------------------------------------------- */

static uint64_t committed(const struct end *e)
{
	return mc_commit_epoch(atomic_load(&e->w->sup.control->commit));
}

static void drop(struct end *e, uint32_t n)
{
	struct mc_arena *a = &e->w->res;
	mc_handle h;

	while (n-- && mc_ring_peek(&e->ring, 0, &h) == 1) {
		if (mc_pool_claim(&a->slabs, h, MC_ROLE_TRANSPORT) == 0)
			(void)mc_pool_free(&a->slabs, h);
		mc_ring_advance(&e->ring, 1);
	}
	mc_arena_ring(a, MC_ROLE_TRANSPORT);
}

static void check_slab(struct end *e, mc_handle h, const struct mc_slab_meta *m)
{
	if (content(e, mc_pool_data(&e->w->res.slabs, h), m->used, m->epoch, m->seq, true))
		return;
	e->bad++;
	fprintf(stderr, "slab %u of epoch %llu isn't what was sent\n", m->seq,
	        (unsigned long long)m->epoch);
}

static void commit(struct end *e, uint64_t epoch)
{
	struct mc_arena *a = &e->w->res;
	struct mc_control *c = a->control;
	bool first = !committed(e);

	if (first)
		assert_int_equal(mc_commit_reset(c, atomic_load(&c->peer_term_number)), 0);
	assert_int_equal(mc_journal_move(&a->journal, epoch, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED),
	                 0);
	assert_int_equal(mc_commit_advance(c, atomic_load(&c->peer_term_number), epoch), 0);
	(void)mc_journal_move(&a->journal, epoch, MC_EPOCH_STAGED, MC_EPOCH_COMMITTED);
	if (first)
		(void)mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_SYNCING,
		                    MC_STATE_PROTECTED, MC_REASON_FIRST_COMMIT);
	atomic_store(&c->applied, epoch);
	(void)mc_journal_move(&a->journal, epoch, MC_EPOCH_COMMITTED, MC_EPOCH_RELEASED);
	drop(e, e->have);
	e->have = 0;
	(void)mc_pool_epoch_done(&a->slabs);
}

/* Looks at the next slab. True: did something. */
static bool restore_step(struct end *e)
{
	struct mc_arena *a = &e->w->res;
	struct mc_slab_meta *m;
	enum mc_epoch_state st;
	mc_handle h;

	if (e->hold)
		return false;
	if (e->have) {
		uint64_t epoch = committed(e) + 1;
		const struct mc_journal_record *rec = mc_journal_get(&a->journal, epoch);

		st = mc_journal_state(&a->journal, epoch);
		if (st == MC_EPOCH_CAPTURED && rec && e->have == atomic_load(&rec->slabs)) {
			commit(e, epoch);
			return true;
		}
	}
	if (mc_ring_peek(&e->ring, e->have, &h) != 1)
		return false;
	if (mc_pool_claim(&a->slabs, h, MC_ROLE_TRANSPORT) < 0 ||
	    !(m = mc_pool_meta(&a->slabs, h))) {
		fprintf(stderr, "a slab in the ring is nobody's\n");
		e->bad++;
		drop(e, 1);
		return true;
	}
	if (!m->epoch) {
		check_slab(e, h, m);
		e->bad += m->seq != (uint32_t)e->sync_checked++;
		atomic_fetch_add(&a->control->sync_applied, 1);
		drop(e, 1);
		return true;
	}
	st = mc_journal_state(&a->journal, m->epoch);
	if (m->epoch <= committed(e) || (st != MC_EPOCH_CAPTURING && st != MC_EPOCH_CAPTURED)) {
		drop(e, e->have + 1);
		e->have = 0;
		return true;
	}
	if (m->seq == 0 && e->have) {
		drop(e, e->have); /* sent again */
		e->have = 0;
		return true;
	}
	if (m->seq != e->have || m->epoch != committed(e) + 1) {
		/* What an aborted try left, or the next epoch: its turn comes after the commit. */
		if (m->epoch == committed(e) + 1 && !e->have) {
			drop(e, 1);
			return true;
		}
		return false;
	}
	check_slab(e, h, m);
	e->have++;
	return true;
}

/* A first copy that broke off: restore clears up and waits for another primary. */
static void begin_anew(struct end *e)
{
	struct mc_control *c = e->w->res.control;

	if (e->hold || state_now(e->w) != MC_STATE_SYNCING || atomic_load(&c->link) != MC_LINK_DOWN)
		return;
	drop(e, UINT32_MAX);
	e->have = 0;
	e->sync_checked = 0;
	atomic_store(&c->sync_applied, 0);
	atomic_store(&c->sync_received, 0);
	(void)mc_state_move(c, MC_SIDE_BACKUP, MC_ROLE_RESTORE, MC_STATE_SYNCING, MC_STATE_WAITING,
	                    MC_REASON_PEER_LOST);
	mc_arena_ring(&e->w->res, MC_ROLE_TRANSPORT);
}

/* --- primary: capture, stage, netgate -------------------------------------------------- */

static void release(struct end *e)
{
	while (e->released < e->last &&
	       mc_journal_state(&e->w->cap.journal, e->released + 1) == MC_EPOCH_COMMITTED) {
		e->released++;
		assert_int_equal(mc_journal_move(&e->gate.journal, e->released, MC_EPOCH_COMMITTED,
		                                 MC_EPOCH_RELEASED),
		                 0);
	}
}

static void turn(struct end *e, int ms);

static mc_handle new_slab(struct end *e, uint64_t epoch, uint32_t seq, uint64_t bytes)
{
	struct mc_arena *a = &e->w->sta;
	struct mc_slab_meta *m;
	mc_handle h;

	while (mc_pool_alloc(&a->slabs, epoch, false, &h) < 0)
		turn(e, 1);
	m = mc_pool_meta(&a->slabs, h);
	*m = (struct mc_slab_meta){.epoch = epoch,
	                           .seq = seq,
	                           .kind = MC_KIND_ENCODED,
	                           .of_kind = seq ? MC_KIND_PAGES : MC_KIND_STATE,
	                           .used = bytes,
	                           .raw = bytes};
	(void)content(e, mc_pool_data(&a->slabs, h), bytes, epoch, seq, false);
	return h;
}

static void push(struct end *e, mc_handle h)
{
	assert_int_equal(mc_ring_push(&e->ring, h), 0);
	mc_arena_ring(&e->w->sta, MC_ROLE_TRANSPORT);
}

static void begin_epoch(struct end *e, uint32_t n, uint64_t bytes)
{
	struct world *w = e->w;
	uint64_t epoch = e->last + 1;
	struct mc_journal_record *rec;

	if (epoch == 1)
		atomic_store(&w->sup.control->armed_epoch, 1);
	while (mc_journal_begin(&w->cap.journal, epoch) < 0)
		turn(e, 1);
	e->last = epoch;
	rec = mc_journal_get(&w->cap.journal, epoch);
	atomic_store(&rec->base, epoch - 1);
	atomic_store(&rec->raw_bytes, n * bytes);
	atomic_store(&rec->slabs, n);
	assert_int_equal(
	        mc_journal_move(&w->cap.journal, epoch, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED), 0);
	for (uint32_t i = 0; i < n; i++)
		push(e, new_slab(e, epoch, i, bytes));
	assert_int_equal(
	        mc_journal_move(&w->sta.journal, epoch, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED), 0);
	mc_arena_ring(&w->sta, MC_ROLE_TRANSPORT);
}

static bool is_committed(const struct end *e, uint64_t epoch)
{
	return atomic_load(&e->w->cap.journal.shm->last_committed) >= epoch;
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
