/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mcctl arena: what the shared memory of a guest says, live or dead.  Read-only, and without a
 * supervisor: the arena may be all that is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "../ipc/worker-bus.h"
#include "mcctl.h"
#include "text.h"

#define WHERE "/dev/shm"

static uint64_t load(const _Atomic uint64_t *w)
{
	return atomic_load_explicit(w, memory_order_acquire);
}

/* A string in shared memory may lack its end. */
static void print_text(const char *label, const char *s, size_t len)
{
	if (s[0])
		printf("  %-16s %.*s\n", label, (int)strnlen(s, len), s);
}

static void print_word(const char *label, uint64_t v)
{
	printf("  %-16s %llu\n", label, (unsigned long long)v);
}

/* How long ago, or until when, in words; 0 is never. */
static void print_when(const char *label, uint64_t ns, uint64_t now)
{
	if (!ns)
		printf("  %-16s -\n", label);
	else if (ns > now)
		printf("  %-16s in %.3f s\n", label, (double)(ns - now) / 1e9);
	else
		printf("  %-16s %.3f s ago\n", label, (double)(now - ns) / 1e9);
}

static void print_head(const struct mc_arena *a, const char *path)
{
	const struct mc_arena_params *p = &a->params;
	int len = (int)strnlen(a->config->guest, sizeof(a->config->guest));

	printf("%s: guest %.*s, %s, ABI %u, build %.*s\n", path, len ? len : 1,
	       len ? a->config->guest : "?", p->side == MC_SIDE_PRIMARY ? "primary" : "backup",
	       a->header->abi, (int)strnlen(a->header->build, sizeof(a->header->build)),
	       a->header->build);
	printf("  slab-size %llu, max-memory %llu, delta-cache %llu, %llu pages of RAM\n",
	       (unsigned long long)p->slab_size, (unsigned long long)p->max_memory,
	       (unsigned long long)p->delta_cache, (unsigned long long)p->ram_pages);
}

static void print_primary(const struct mc_control *c, uint64_t now)
{
	print_word("attached", load(&c->attached));
	print_word("paused", load(&c->paused));
	print_word("armed_epoch", load(&c->armed_epoch));
	print_word("barrier_req", load(&c->barrier_req));
	print_word("barrier_done", load(&c->barrier_done));
	print_word("gate_ready", load(&c->gate_ready));
	print_word("gate_error", 0 - load(&c->gate_error));
	print_word("sync_slabs", load(&c->sync_slabs));
	print_word("sync_compared", load(&c->sync_compared));
	print_word("peer_keeps", load(&c->peer_keeps));
	print_word("capture_ready", load(&c->capture_ready));
	print_word("end_acked", load(&c->end_acked));
	print_word("peer_taken", load(&c->peer_taken));
	print_when("lease_until", load(&c->lease_until), now);
	printf("  %-16s %s\n", "guest_end", mc_reason_name((enum mc_reason)load(&c->guest_end)));
	printf("  %-16s %s\n", "want_end", mc_reason_name((enum mc_reason)load(&c->want_end)));
	print_word("want_hold", load(&c->want_hold));
}

static void print_backup(const struct mc_control *c, uint64_t now)
{
	uint64_t w = load(&c->commit);

	printf("  %-16s term %llu, epoch %llu%s%s\n", "commit",
	       (unsigned long long)mc_commit_term(w), (unsigned long long)mc_commit_epoch(w),
	       w & MC_COMMIT_TAKEN ? ", taken over" : "",
	       w & MC_COMMIT_DISARMED ? ", disarmed" : "");
	print_word("applied", load(&c->applied));
	print_word("sync_received", load(&c->sync_received));
	print_word("sync_applied", load(&c->sync_applied));
	print_word("standby_ready", load(&c->standby_ready));
	print_word("ram_kept", load(&c->ram_kept));
	print_word("qemu_pid", load(&c->qemu_pid));
	print_word("nack_epoch", load(&c->nack_epoch));
	print_word("disarm_done", load(&c->disarm_done));
	printf("  %-16s %s\n", "want_takeover",
	       mc_reason_name((enum mc_reason)load(&c->want_takeover)));
	print_when("takeover_began", load(&c->takeover_began), now);
	print_when("took_over", load(&c->took_over), now);
	printf("  %-16s %llu, id %016llx\n", "peer_term",
	       (unsigned long long)load(&c->peer_term_number),
	       (unsigned long long)load(&c->peer_term_id));
}

static void print_control(const struct mc_arena *a)
{
	const struct mc_control *c = a->control;
	uint64_t s = load(&c->state), now = mc_now_ns();

	printf("control%s\n", mc_arena_part_ok(a, MC_PART_CONFIG) ? "" : " (config damaged)");
	printf("  %-16s %s (%s)\n", "state", mc_state_name(mc_state_of(s)),
	       mc_reason_name(mc_state_reason(s)));
	printf("  %-16s %llu, id %016llx\n", "term", (unsigned long long)a->config->term.number,
	       (unsigned long long)a->config->term.id);
	printf("  %-16s %s\n", "link", load(&c->link) == MC_LINK_UP ? "up" : "down");
	print_when("link_closed", load(&c->link_closed), now);
	print_when("last_rx", load(&c->last_rx), now);
	printf("  %-16s %s\n", "peer_end", mc_reason_name((enum mc_reason)load(&c->peer_end)));
	if (a->params.side == MC_SIDE_PRIMARY)
		print_primary(c, now);
	else
		print_backup(c, now);
	print_text("message", c->refusal, sizeof(c->refusal));
}

/* The very process, and not yet a zombie. */
static bool is_alive(const struct mc_proc *p)
{
	uint64_t pid = load(&p->pid);
	int mc_autoclose fd = -1;
	struct pollfd pfd;

	if (!pid || pid > INT32_MAX || mc_pid_start_time((int)pid) != load(&p->start_time))
		return false;
	fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
	pfd = (struct pollfd){.fd = fd, .events = POLLIN};
	return fd >= 0 && poll(&pfd, 1, 0) == 0;
}

static void print_processes(const struct mc_arena *a)
{
	uint64_t now = mc_now_ns();

	printf("processes\n  %-12s %8s %6s %-6s %12s  %s\n", "ROLE", "PID", "STARTS", "ALIVE",
	       "HEARTBEAT", "LAST WORDS");
	for (int i = 1; i < MC_ROLE_MAX; i++) {
		const struct mc_proc *p = &a->proc[i];
		uint64_t pid = load(&p->pid), beat = load(&p->heartbeat);
		char role[32], words[sizeof(p->last_words) + 1];

		if (!load(&p->starts))
			continue;
		snprintf(role, sizeof(role), mc_role_is_stage((enum mc_role)i) ? "%s/%u" : "%s",
		         mc_role_name((enum mc_role)i), mc_role_index((enum mc_role)i));
		snprintf(words, sizeof(words), "%.*s", (int)sizeof(p->last_words), p->last_words);
		printf("  %-12s %8llu %6llu %-6s %10.3f s  %s\n", role, (unsigned long long)pid,
		       (unsigned long long)load(&p->starts), is_alive(p) ? "yes" : "no",
		       beat && beat < now ? (double)(now - beat) / 1e9 : 0.0,
		       text_clean(words, false));
	}
}

/* Milliseconds from the beginning of the epoch to @to; - when it wasn't reached. */
static void print_stamp(const struct mc_journal_record *r, enum mc_epoch_state to)
{
	uint64_t from = load(&r->stamp[MC_EPOCH_CAPTURING]), t = load(&r->stamp[to]);

	if (t && t >= from)
		printf(" %9.2f", (double)(t - from) / 1e6);
	else
		printf(" %9s", "-");
}

static void print_record(const struct mc_journal_record *r, uint64_t now)
{
	uint64_t w = load(&r->word);
	uint32_t reason = atomic_load(&r->reason);

	printf("  %10llu %-10s %6u %8llu %10llu %10llu %10llu", (unsigned long long)(w >> 8),
	       mc_epoch_state_name((enum mc_epoch_state)(w & 0xff)), atomic_load(&r->slabs),
	       (unsigned long long)load(&r->pages), (unsigned long long)load(&r->raw_bytes),
	       (unsigned long long)load(&r->wire_bytes), (unsigned long long)load(&r->base));
	for (int s = MC_EPOCH_CAPTURED; s <= MC_EPOCH_RELEASED; s++)
		print_stamp(r, (enum mc_epoch_state)s);
	printf(" %12.2f", (double)(now - load(&r->stamp[MC_EPOCH_CAPTURING])) / 1e6);
	printf("%s%s\n", reason ? "  " : "", reason ? strerror((int)reason) : "");
}

static void print_journal(const struct mc_arena *a)
{
	const struct mc_journal_shm *j = a->journal.shm;
	uint64_t last = load(&j->last_begun), now = mc_now_ns();

	printf("journal: begun %llu, committed %llu, released %llu, in flight %u\n",
	       (unsigned long long)last, (unsigned long long)load(&j->last_committed),
	       (unsigned long long)load(&j->last_released), mc_journal_in_flight(&a->journal));
	printf("  %10s %-10s %6s %8s %10s %10s %10s %9s %9s %9s %9s %9s %12s\n", "EPOCH", "STATE",
	       "SLABS", "PAGES", "RAW", "WIRE", "BASE", "CAPTURED", "STAGED", "SENT", "COMMITTED",
	       "REL. ms", "ms AGO");
	for (uint64_t n = last >= MC_JOURNAL_SLOTS ? last - MC_JOURNAL_SLOTS + 1 : 1; n <= last;
	     n++) {
		const struct mc_journal_record *r = mc_journal_get(&a->journal, n);

		if (r)
			print_record(r, now);
	}
}

static void print_ring(const char *name, int index, const struct mc_ring *ring)
{
	uint64_t head = load(&ring->head), tail = load(&ring->tail);
	bool damaged = head - tail > ring->nslots && tail - head > ring->nslots;

	if (!head && !tail)
		return;
	printf("  %-12s %3d %12llu %12llu %8llu%s\n", name, index, (unsigned long long)head,
	       (unsigned long long)tail, (unsigned long long)mc_ring_depth(ring),
	       damaged ? "  DAMAGED" : "");
}

static void print_rings(const struct mc_arena *a)
{
	printf("rings: %llu slots each; those ever used\n  %-12s %3s %12s %12s %8s\n",
	       (unsigned long long)a->ring_slots, "TO", "", "HEAD", "TAIL", "DEPTH");
	for (int i = 0; a->ring_stage[0] && i < MC_STAGES_MAX; i++) {
		print_ring("stage", i, a->ring_stage[i]);
		print_ring("transport", i, a->ring_transport[i]);
	}
	if (a->ring_restore)
		print_ring("restore", 0, a->ring_restore);
}

/* Slabs of one owner and kind. */
struct tally {
	uint64_t n, bytes, first, last;
};

#define KINDS 5 /* enum mc_slab_kind */

static void print_owned(struct tally t[MC_ROLE_MAX][KINDS + 1])
{
	static const char *const kinds[] = {"none", "state", "pages", "encoded", "desc", "?"};

	for (int r = 0; r < MC_ROLE_MAX; r++)
		for (int k = 0; k <= KINDS; k++)
			if (t[r][k].n)
				printf("  %-10s/%-2u %-8s %6llu slabs, %12llu bytes used, epochs "
				       "%llu..%llu\n",
				       mc_role_name((enum mc_role)r),
				       mc_role_index((enum mc_role)r), kinds[k],
				       (unsigned long long)t[r][k].n,
				       (unsigned long long)t[r][k].bytes,
				       (unsigned long long)t[r][k].first,
				       (unsigned long long)t[r][k].last);
}

static void count_owned(struct tally t[MC_ROLE_MAX][KINDS + 1], uint64_t word,
                        const struct mc_slab_meta *m)
{
	unsigned r = mc_slab_word_owner(word);
	struct tally *c = &t[r < MC_ROLE_MAX ? r : 0][m->kind < KINDS ? m->kind : KINDS];

	c->first = c->n ? mc_min_u64(c->first, m->epoch) : m->epoch;
	c->last = mc_max_u64(c->last, m->epoch);
	c->bytes += m->used;
	c->n++;
}

static void print_pool(const char *name, const struct mc_pool *p, bool ok)
{
	static const char *const states[] = {"absent", "growing", "free", "owned", "shrinking"};
	struct tally t[MC_ROLE_MAX][KINDS + 1] = {0};
	uint64_t n[MC_ARRAY_SIZE(states)] = {0}, bad = 0;
	const struct mc_pool_shm *s = p->shm;

	printf("%s: %llu of %llu bytes each%s\n", name, (unsigned long long)p->max,
	       (unsigned long long)p->unit, ok ? "" : " (pool head DAMAGED)");
	for (uint64_t i = 0; i < p->max; i++) {
		uint64_t w = load(&p->word[i]);
		unsigned state = mc_slab_word_state(w);

		if (state >= MC_ARRAY_SIZE(states)) {
			bad++;
			continue;
		}
		n[state]++;
		if (state == MC_SLAB_OWNED)
			count_owned(t, w, &p->meta[i]);
	}
	printf(" ");
	for (size_t i = 0; i < MC_ARRAY_SIZE(states); i++)
		printf(" %s %llu", states[i], (unsigned long long)n[i]);
	if (bad)
		printf(" DAMAGED %llu", (unsigned long long)bad);
	printf("\n  held %llu, in use %llu, strikes %llu of %llu, grown %llu (in a pause %llu), "
	       "shrunk %llu, refused %llu\n",
	       (unsigned long long)load(&s->held), (unsigned long long)load(&s->in_use),
	       (unsigned long long)load(&s->strikes), (unsigned long long)load(&s->strikes_max),
	       (unsigned long long)load(&s->grown), (unsigned long long)load(&s->grown_in_pause),
	       (unsigned long long)load(&s->shrunk), (unsigned long long)load(&s->failed));
	print_owned(t);
}

static void print_shadow(const struct mc_arena *a)
{
	const struct mc_shadow *s = &a->shadow;
	uint64_t held = 0, busy = 0;

	if (!s->shm)
		return;
	for (uint64_t i = 0; i < s->sets * MC_SHADOW_WAYS; i++) {
		uint64_t w = load(&s->entry[i].word);

		held += w >> 8 && load(&s->entry[i].tag);
		busy += (w & 0xff) != 0;
	}
	printf("shadow%s: %llu of %llu pages, %llu busy, hits %llu, misses %llu, evictions %llu\n",
	       mc_arena_part_ok(a, MC_PART_SHADOW) ? "" : " (DAMAGED)", (unsigned long long)held,
	       (unsigned long long)(s->sets * MC_SHADOW_WAYS), (unsigned long long)busy,
	       (unsigned long long)load(&s->shm->hits), (unsigned long long)load(&s->shm->misses),
	       (unsigned long long)load(&s->shm->evictions));
}

static void print_hashes(const struct mc_arena *a)
{
	uint64_t asked = load(&a->hashes->asked), answered = load(&a->hashes->answered);

	printf("page hashes: %llu questions, %llu answered%s\n", (unsigned long long)asked,
	       (unsigned long long)answered, asked - answered > MC_HASH_SLOTS ? "  DAMAGED" : "");
}

/* The arena of a guest, by name; several supervisors may have one each. */
static int find(const char *name, char *path, size_t len)
{
	char pattern[256];
	glob_t g;
	int r;

	if (mc_guest_name_check(name) < 0) {
		fprintf(stderr,
		        "mcctl: '%.63s' isn't the name of a guest; mcctl status lists them\n",
		        name);
		return -EINVAL;
	}
	snprintf(pattern, sizeof(pattern),
	         WHERE "/microcheckpoint-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]"
	               "[0-9a-f]-%s",
	         name);
	r = glob(pattern, 0, NULL, &g);
	if (r == 0 && g.gl_pathc == 1)
		snprintf(path, len, "%s", g.gl_pathv[0]);
	else if (r == 0)
		for (size_t i = 0; i < g.gl_pathc; i++)
			fprintf(stderr, "mcctl: which one? mcctl arena --file %s\n", g.gl_pathv[i]);
	else
		fprintf(stderr,
		        "mcctl: guest %s has no arena under " WHERE
		        "; for a copy elsewhere: mcctl arena --file PATH\n",
		        name);
	r = r == 0 && g.gl_pathc == 1 ? 0 : -ENOENT;
	globfree(&g);
	return r;
}

static int open_arena(struct mc_arena *a, const char *path)
{
	char config[600];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), config_fd, r;

	snprintf(config, sizeof(config), "%s:config", path);
	config_fd = open(config, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	r = fd < 0 ? -errno : mc_arena_view(a, fd, config_fd);

	if (r < 0)
		fprintf(stderr, "mcctl: %s: %s\n", path,
		        r == -EBADMSG ? "not an arena, or its head is damaged; a guest's is "
		                        "/dev/shm/microcheckpoint-*-NAME"
		        : r == -EPROTONOSUPPORT ? "an arena of another version; use its mcctl"
		                                : strerror(-r));
	if (r < 0) {
		mc_closep(&fd);
		mc_closep(&config_fd);
	}
	return r;
}

int cmd_arena(struct ctl *c, int argc, char **argv)
{
	struct mc_arena a;
	char path[512] = "";

	(void)c;
	if (argc == 3 && strcmp(argv[1], "--file") == 0)
		snprintf(path, sizeof(path), "%s", argv[2]);
	else if (argc != 2 || argv[1][0] == '-') {
		fprintf(stderr, "usage: mcctl arena NAME | --file PATH\n");
		return 2;
	} else if (find(argv[1], path, sizeof(path)) < 0) {
		return 1;
	}
	if (open_arena(&a, path) < 0)
		return 1;
	print_head(&a, path);
	print_control(&a);
	print_processes(&a);
	if (mc_arena_part_ok(&a, MC_PART_JOURNAL))
		print_journal(&a);
	else
		printf("journal: DAMAGED\n");
	if (mc_arena_part_ok(&a, MC_PART_RINGS))
		print_rings(&a);
	else
		printf("rings: DAMAGED\n");
	print_pool("slabs", &a.slabs, mc_arena_part_ok(&a, MC_PART_SLABS));
	print_pool("descriptors", &a.descs, mc_arena_part_ok(&a, MC_PART_DESCS));
	print_shadow(&a);
	print_hashes(&a);
	mc_arena_done(&a);
	return 0;
}
