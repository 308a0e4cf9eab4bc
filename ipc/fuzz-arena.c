/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A damaged arena: words of a sound one are overwritten, or the file is garbage from its
 * first byte on; then a process attaches and does with rings, pools, journal, shadow and
 * control block what processes do.  Everything may fail; nothing may touch other memory or
 * go on for ever.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arena.h"
#include "fuzz.h"
#include "util.h"

#define UNIT    65536
#define WRITES  64
#define GARBAGE (4U << 20)

/* The parts that words can be written into. */
static uint8_t *part_of(const struct mc_arena *a, unsigned part, size_t *len)
{
	bool primary = a->params.side == MC_SIDE_PRIMARY;
	const struct {
		void *p;
		size_t len;
	} parts[] = {
	        {a->header, sizeof(*a->header)},
	        {a->control, sizeof(*a->control)},
	        {a->config, sizeof(*a->config)},
	        {a->proc, sizeof(*a->proc) * MC_ROLE_MAX},
	        {a->journal.shm, sizeof(*a->journal.shm)},
	        {a->metrics, sizeof(*a->metrics) * MC_ROLE_MAX},
	        {primary ? a->ring_stage[0] : a->ring_restore, mc_ring_size(a->ring_slots)},
	        {primary ? a->ring_transport[0] : a->ring_restore, mc_ring_size(a->ring_slots)},
	        {a->shadow.shm, a->shadow.shm ? sizeof(*a->shadow.shm) : 0},
	        {a->shadow.entry, a->shadow.sets * MC_SHADOW_WAYS * sizeof(*a->shadow.entry)},
	        {a->descs.shm, sizeof(*a->descs.shm)},
	        {a->descs.word, a->descs.max * 8},
	        {a->slabs.shm, sizeof(*a->slabs.shm)},
	        {a->slabs.word, a->slabs.max * 8},
	        {a->slabs.meta, a->slabs.max * sizeof(*a->slabs.meta)},
	};

	part %= MC_ARRAY_SIZE(parts);
	*len = parts[part].p ? parts[part].len : 0;
	return parts[part].p;
}

static void damage(const struct mc_arena *a, struct fuzz_input *in)
{
	unsigned n = fuzz_u8(in) % WRITES;

	while (n-- && in->left) {
		size_t len;
		uint8_t *p = part_of(a, fuzz_u8(in), &len);
		size_t at = (size_t)fuzz_u16(in) * 8;
		uint64_t v = fuzz_u64(in);

		if (len >= 8)
			memcpy(p + at % (len - 7), &v, sizeof(v));
	}
}

static bool always(void *ctx, mc_handle h)
{
	const struct mc_arena *a = ctx;

	return !a->ring_restore || !mc_ring_contains(a->ring_restore, a->ring_slots, h);
}

static void use_ring(struct mc_arena *a, struct mc_ring *ring, enum mc_role from)
{
	struct mc_ring_end in, out;
	uint64_t h[8];
	int n;

	(void)mc_ring_depth(ring);
	(void)mc_ring_contains(ring, a->ring_slots, 1ULL << 32);
	if (mc_ring_attach_producer(&out, ring, a->ring_slots) == 0)
		(void)mc_ring_push(&out, 1ULL << 32 | 1);
	if (mc_ring_attach_consumer(&in, ring, a->ring_slots) < 0)
		return;
	n = mc_ring_peek_burst(&in, h, MC_ARRAY_SIZE(h));
	FUZZ_CHECK(n <= (int)MC_ARRAY_SIZE(h));
	for (int i = 0; i < n; i++) {
		const uint8_t *data = mc_pool_data_any(&a->slabs, h[i]);

		FUZZ_CHECK(!data || (data >= (uint8_t *)a->map &&
		                     data + a->slabs.unit <= (uint8_t *)a->map + a->size));
		if (mc_pool_claim(&a->slabs, h[i], from) == 0 && mc_pool_meta(&a->slabs, h[i]))
			(void)mc_pool_free(&a->slabs, h[i]);
	}
	if (n > 0)
		mc_ring_advance(&in, (uint64_t)n);
	(void)mc_ring_peek(&in, 3, h);
}

static void use_pool(struct mc_arena *a, struct mc_pool *p)
{
	mc_handle h;

	if (mc_pool_alloc(p, 7, false, &h) == 0) {
		uint8_t *data = mc_pool_data(p, h);

		FUZZ_CHECK(data && mc_pool_meta(p, h));
		data[p->unit - 1] = 1;
	}
	(void)mc_pool_reserve(p, 3);
	(void)mc_pool_reclaim(p, always, a);
	mc_pool_set_strikes(p, 1, 1000);
	for (int i = 0; i < 3; i++)
		(void)mc_pool_epoch_done(p);
}

static void use_journal(struct mc_arena *a, uint64_t epoch)
{
	struct mc_journal *j = &a->journal;
	struct mc_journal_record *rec;

	(void)mc_journal_in_flight(j);
	(void)mc_journal_begin(j, epoch);
	(void)mc_journal_rebegin(j, epoch);
	rec = mc_journal_get(j, epoch);
	if (rec) {
		(void)mc_journal_mark(rec, (uint32_t)epoch);
		(void)mc_journal_complete(rec);
	}
	for (int s = 0; s < MC_EPOCH_STATES; s++) {
		enum mc_epoch_state now = mc_journal_state(j, epoch);

		(void)mc_epoch_state_name(now);
		(void)mc_journal_move(j, epoch, now, (enum mc_epoch_state)s);
	}
	(void)mc_journal_abort_from(j, epoch, -EIO);
}

static void use_shadow(struct mc_arena *a, uint64_t key)
{
	struct mc_shadow_entry *e;
	bool base;
	uint8_t *page = mc_shadow_open(&a->shadow, key, 9, &base, &e);

	if (page) {
		mc_shadow_begin_write(e);
		page[MC_PAGE_SIZE - 1] = 1;
		mc_shadow_close(&a->shadow, e, 9);
	}
	mc_shadow_drop(&a->shadow, key);
	mc_shadow_unlock(&a->shadow);
}

static void use_control(struct mc_arena *a, struct fuzz_input *in)
{
	struct mc_control *c = a->control;
	uint64_t state = atomic_load(&c->state);

	FUZZ_CHECK(strlen(mc_state_name(mc_state_of(state))) > 0);
	FUZZ_CHECK(strlen(mc_reason_name(mc_state_reason(state))) > 0);
	(void)mc_state_move(c, (enum mc_side)a->params.side, a->role, mc_state_of(state),
	                    (enum mc_state)fuzz_u8(in), MC_REASON_ERROR);
	(void)mc_commit_advance(c, mc_commit_term(atomic_load(&c->commit)), fuzz_u64(in));
	(void)mc_commit_disarm(c);
	(void)mc_commit_take(c);
	(void)mc_commit_reset(c, 3);
	mc_control_refuse(c, "%s", "a sentence");
	FUZZ_CHECK(mc_config_interval_ns(a->config) >= MC_NS_PER_MS);
	for (int r = 0; r < MC_ROLE_MAX; r++)
		for (int h = 0; h < MC_HISTOGRAMS; h++)
			(void)mc_histogram_quantile(&a->metrics[r].hist[h], 0.99);
}

static void use(struct mc_arena *a, struct fuzz_input *in)
{
	uint64_t epoch = fuzz_u64(in);

	for (int i = 0; a->ring_stage[0] && i < MC_STAGES_MAX; i += 7) {
		use_ring(a, a->ring_stage[i], MC_ROLE_CAPTURE);
		use_ring(a, a->ring_transport[i], mc_role_stage((unsigned)i));
	}
	if (a->ring_restore)
		use_ring(a, a->ring_restore, MC_ROLE_TRANSPORT);
	use_pool(a, &a->slabs);
	use_pool(a, &a->descs);
	use_journal(a, epoch);
	use_shadow(a, epoch);
	use_control(a, in);
	mc_arena_ring_all(a);
}

static void attach_and_use(int fd, const struct mc_arena *sound, struct fuzz_input *in)
{
	enum mc_role role = (enum mc_role)(fuzz_u8(in) % MC_ROLE_MAX);
	int bells[MC_ROLE_MAX], dup_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3),
	                        config = fcntl(sound->config_fd, F_DUPFD_CLOEXEC, 3);
	struct mc_arena a;

	for (int i = 0; i < MC_ROLE_MAX; i++)
		bells[i] = fcntl(sound->bell_fd[i], F_DUPFD_CLOEXEC, 3);
	if (mc_arena_attach(&a, dup_fd, config, bells, MC_ROLE_MAX, role) == 0) {
		use(&a, in);
		mc_arena_done(&a);
		return;
	}
	close(dup_fd);
	close(config);
	for (int i = 0; i < MC_ROLE_MAX; i++)
		close(bells[i]);
}

/* The file is what the input says. */
static void garbage(const struct mc_arena *sound, struct fuzz_input *in)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);
	uint32_t size = fuzz_u32(in) % GARBAGE;

	if (fd < 0 || pwrite(fd, in->p, in->left, 0) != (ssize_t)in->left ||
	    ftruncate(fd, size) < 0)
		abort();
	attach_and_use(fd, sound, in);
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = {data, size};
	uint8_t mode = fuzz_u8(&in);
	struct mc_arena_params p = {.slab_size = UNIT,
	                            .max_memory = 6 * UNIT,
	                            .delta_cache = mode & 2 ? 65536 : 0,
	                            .ram_pages = 1024,
	                            .side = mode & 1 ? MC_SIDE_PRIMARY : MC_SIDE_BACKUP};
	struct mc_arena a;

	if (mc_arena_create(&a, NULL, &p) < 0)
		abort();
	a.config->side = (uint32_t)p.side;
	strcpy(a.config->guest, "vm");
	if (mode & 4) {
		garbage(&a, &in);
	} else {
		damage(&a, &in);
		attach_and_use(a.fd, &a, &in);
	}
	mc_arena_done(&a);
	return 0;
}
