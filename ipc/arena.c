/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "arena-private.h"
#include "util.h"

#define DESC_PER_SLAB(unit) ((unit) / MC_PAGE_SIZE)

const char *mc_build_id(void)
{
	return MC_BUILD_ID;
}

int mc_arena_params_check(const struct mc_arena_params *p, char *why, size_t why_len)
{
	const char *text = NULL;

	if (p->slab_size % PAGE || p->slab_size < 64 << 10 || p->slab_size > 1 << 30)
		text = "slab-size must be a multiple of 4096 between 64 KiB and 1 GiB";
	else if (p->max_memory / p->slab_size < 4)
		text = "max-memory must hold at least 4 slabs (slab-size each)";
	else if (p->max_memory / p->slab_size >= 1 << 20 || p->max_memory > 1ULL << 44)
		text = "max-memory is above 16 TiB or 2^20 slabs";
	else if (p->delta_cache > 1ULL << 40)
		text = "delta-cache must be at most 1 TiB";
	else if (!p->ram_pages || p->ram_pages > 1ULL << 32)
		text = "the guest's RAM must be between 4 KiB and 16 TiB";
	else if (p->side != MC_SIDE_PRIMARY && p->side != MC_SIDE_BACKUP)
		text = "side is neither primary nor backup";
	if (!text)
		return 0;
	snprintf(why, why_len, "%s", text);
	return -EINVAL;
}

static uint64_t power_of_two_from(uint64_t n)
{
	uint64_t p = 4;

	while (p < n)
		p *= 2;
	return p;
}

static uint64_t place(uint64_t *at, uint64_t bytes, uint64_t align)
{
	uint64_t here = MC_ALIGN_UP(*at, align);

	*at = here + bytes;
	return here;
}

static void place_heads(struct mc_arena_layout *l, uint64_t *at)
{
	l->control = place(at, sizeof(struct mc_control), PAGE);
	l->procs = place(at, sizeof(struct mc_proc) * MC_ROLE_MAX, PAGE);
	l->journal = place(at, sizeof(struct mc_journal_shm), PAGE);
	l->metrics = place(at, sizeof(struct mc_metrics_block) * MC_ROLE_MAX, PAGE);
	l->vector = place(at, sizeof(struct mc_region) * MC_VECTOR_REGIONS, PAGE);
	l->bitmaps = place(at, l->bitmap_words * 8 * MC_BITMAPS, PAGE);
	l->hashes = place(at, sizeof(struct mc_hash_box), PAGE);
}

void mc_arena_layout(const struct mc_arena_params *p, struct mc_arena_layout *l)
{
	bool primary = p->side == MC_SIDE_PRIMARY;
	uint64_t at = sizeof(struct mc_arena_header);

	memset(l, 0, sizeof(*l));
	l->nslabs = p->max_memory / p->slab_size;
	l->desc_unit = MC_ALIGN_UP(DESC_PER_SLAB(p->slab_size) * sizeof(struct mc_page_desc), PAGE);
	l->ring_slots = power_of_two_from(l->nslabs);
	l->ring_bytes = MC_ALIGN_UP(mc_ring_size(l->ring_slots), 64);
	l->bitmap_words = MC_ALIGN_UP((p->ram_pages + 63) / 64, 8);
	l->shadow_sets = primary ? mc_shadow_sets(p->delta_cache) : 0;
	place_heads(l, &at);
	l->ring_stage = place(&at, primary ? l->ring_bytes * MC_STAGES_MAX : 0, PAGE);
	l->ring_transport = place(&at, primary ? l->ring_bytes * MC_STAGES_MAX : 0, PAGE);
	l->ring_restore = place(&at, primary ? 0 : l->ring_bytes, PAGE);
	l->shadow_shm = place(&at, sizeof(struct mc_shadow_shm), PAGE);
	l->shadow_entries =
	        place(&at, l->shadow_sets * MC_SHADOW_WAYS * sizeof(struct mc_shadow_entry), PAGE);
	l->desc_shm = place(&at, sizeof(struct mc_pool_shm), PAGE);
	l->desc_words = place(&at, l->nslabs * 8, 64);
	l->desc_metas = place(&at, l->nslabs * sizeof(struct mc_slab_meta), 64);
	l->slab_shm = place(&at, sizeof(struct mc_pool_shm), PAGE);
	l->slab_words = place(&at, l->nslabs * 8, 64);
	l->slab_metas = place(&at, l->nslabs * sizeof(struct mc_slab_meta), 64);
	l->shadow_data = place(&at, l->shadow_sets * MC_SHADOW_WAYS * MC_PAGE_SIZE, PAGE);
	l->fixed = MC_ALIGN_UP(at, PAGE);
	at = l->fixed;
	l->descs = place(&at, l->nslabs * l->desc_unit, PAGE);
	l->slabs = place(&at, l->nslabs * p->slab_size, 2 << 20);
	l->total = at;
}

uint64_t mc_arena_total(const struct mc_arena_params *p)
{
	struct mc_arena_layout l;

	mc_arena_layout(p, &l);
	return l.total;
}

uint64_t mc_arena_fixed(const struct mc_arena_params *p)
{
	struct mc_arena_layout l;

	mc_arena_layout(p, &l);
	return l.fixed;
}

static void set_pool(struct mc_arena *a, struct mc_pool *p, uint64_t shm, uint64_t words,
                     uint64_t metas, uint64_t data, uint64_t unit, uint64_t max)
{
	uint8_t *base = a->map;

	*p = (struct mc_pool){
	        .shm = (struct mc_pool_shm *)(base + shm),
	        .word = (_Atomic uint64_t *)(base + words),
	        .meta = (struct mc_slab_meta *)(base + metas),
	        .data = base + data,
	        .fd = a->fd,
	        .data_off = data,
	        .unit = unit,
	        .max = max,
	        .role = a->role,
	};
}

/* Points the view at the parts; reads nothing from shared memory. */
static void set_pointers(struct mc_arena *a, const struct mc_arena_layout *l)
{
	uint8_t *base = a->map;

	a->header = a->map;
	a->control = (struct mc_control *)(base + l->control);
	a->proc = (struct mc_proc *)(base + l->procs);
	a->journal = (struct mc_journal){.shm = (struct mc_journal_shm *)(base + l->journal),
	                                 .side = (enum mc_side)a->params.side,
	                                 .role = a->role};
	a->metrics = (struct mc_metrics_block *)(base + l->metrics);
	a->vector = (struct mc_region *)(base + l->vector);
	a->bitmap_words = l->bitmap_words;
	for (int i = 0; i < MC_BITMAPS; i++)
		a->bitmap[i] =
		        (_Atomic uint64_t *)(base + l->bitmaps) + (uint64_t)i * l->bitmap_words;
	a->hashes = (struct mc_hash_box *)(base + l->hashes);
	a->ring_slots = l->ring_slots;
	if (a->params.side == MC_SIDE_BACKUP)
		a->ring_restore = (struct mc_ring *)(base + l->ring_restore);
	for (uint64_t i = 0; a->params.side == MC_SIDE_PRIMARY && i < MC_STAGES_MAX; i++) {
		a->ring_stage[i] = (struct mc_ring *)(base + l->ring_stage + i * l->ring_bytes);
		a->ring_transport[i] =
		        (struct mc_ring *)(base + l->ring_transport + i * l->ring_bytes);
	}
	if (l->shadow_sets)
		a->shadow = (struct mc_shadow){
		        .shm = (struct mc_shadow_shm *)(base + l->shadow_shm),
		        .entry = (struct mc_shadow_entry *)(base + l->shadow_entries),
		        .data = base + l->shadow_data,
		        .sets = l->shadow_sets,
		        .role = a->role,
		};
	set_pool(a, &a->descs, l->desc_shm, l->desc_words, l->desc_metas, l->descs, l->desc_unit,
	         l->nslabs);
	set_pool(a, &a->slabs, l->slab_shm, l->slab_words, l->slab_metas, l->slabs,
	         a->params.slab_size, l->nslabs);
}

int mc_arena_map(struct mc_arena *a, const struct mc_arena_layout *l, int prot)
{
	void *m = mmap(NULL, l->total, prot, MAP_SHARED | MAP_NORESERVE, a->fd, 0);

	if (m == MAP_FAILED)
		return -errno;
	a->map = m;
	a->size = l->total;
	set_pointers(a, l);
	return 0;
}

int mc_arena_map_config(struct mc_arena *a, int fd, int prot)
{
	struct stat st;
	void *m;

	if (fd >= 0 && fstat(fd, &st) < 0)
		return -errno;
	if (fd >= 0 && (!S_ISREG(st.st_mode) || st.st_size != (off_t)MC_CONFIG_BYTES))
		return -EBADMSG;
	m = mmap(NULL, MC_CONFIG_BYTES, prot, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd,
	         0);
	if (m == MAP_FAILED)
		return -errno;
	a->config = m;
	return 0;
}

void mc_arena_empty(struct mc_arena *a)
{
	memset(a, 0, sizeof(*a));
	a->fd = a->config_fd = -1;
	for (int i = 0; i < MC_ROLE_MAX; i++)
		a->bell_fd[i] = -1;
}

/* Header and size, read before anything is mapped. */
static int read_header(int fd, struct mc_arena_header *h, struct mc_arena_layout *l)
{
	struct stat st;
	char why[128];

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || pread(fd, h, sizeof(*h), 0) != (ssize_t)sizeof(*h) ||
	    h->magic != MC_ARENA_MAGIC)
		return -EBADMSG;
	if (h->abi != MC_ABI_VERSION || h->header_size != sizeof(*h))
		return -EPROTONOSUPPORT;
	if (mc_arena_params_check(&h->params, why, sizeof(why)) < 0 || !atomic_load(&h->ready))
		return -EBADMSG;
	mc_arena_layout(&h->params, l);
	return h->total == l->total && st.st_size == (off_t)l->total ? 0 : -EBADMSG;
}

/* The kernel describes an eventfd's link as anon_inode:[eventfd]. */
static int check_eventfd(int fd)
{
	char path[64], text[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, text, sizeof(text) - 1);
	if (n < 0)
		return -errno;
	text[n] = '\0';
	return strcmp(text, "anon_inode:[eventfd]") == 0 ? 0 : -EBADMSG;
}

static bool ring_ok(struct mc_ring *ring, uint64_t slots)
{
	struct mc_ring_end e;

	return mc_ring_attach_consumer(&e, ring, slots) == 0;
}

static bool rings_ok(const struct mc_arena *a)
{
	for (int i = 0; a->ring_stage[0] && i < MC_STAGES_MAX; i++)
		if (!ring_ok(a->ring_stage[i], a->ring_slots) ||
		    !ring_ok(a->ring_transport[i], a->ring_slots))
			return false;
	return !a->ring_restore || ring_ok(a->ring_restore, a->ring_slots);
}

static bool pool_ok(const struct mc_pool *p)
{
	return p->shm->magic == MC_POOL_MAGIC && p->shm->unit == p->unit && p->shm->max == p->max;
}

bool mc_arena_part_ok(const struct mc_arena *a, enum mc_arena_part part)
{
	char why[128];

	switch (part) {
	case MC_PART_JOURNAL:
		return a->journal.shm->magic == MC_JOURNAL_MAGIC &&
		       a->journal.shm->side == a->params.side;
	case MC_PART_SLABS:
		return pool_ok(&a->slabs);
	case MC_PART_DESCS:
		return pool_ok(&a->descs);
	case MC_PART_SHADOW:
		return !a->shadow.shm || (a->shadow.shm->magic == MC_SHADOW_MAGIC &&
		                          a->shadow.shm->sets == a->shadow.sets);
	case MC_PART_RINGS:
		return rings_ok(a);
	case MC_PART_CONFIG:
		return mc_config_validate(a->config, why, sizeof(why)) == 0 &&
		       a->config->side == a->params.side;
	default:
		return false;
	}
}

static int check_parts(const struct mc_arena *a)
{
	for (int i = 0; i < MC_PARTS; i++)
		/* The supervisor fills the config in after creation; workers find it complete. */
		if (!(i == MC_PART_CONFIG && a->role == MC_ROLE_SUPERVISOR) &&
		    !mc_arena_part_ok(a, (enum mc_arena_part)i))
			return -EBADMSG;
	return 0;
}

int mc_arena_view(struct mc_arena *a, int fd, int config_fd)
{
	struct mc_arena_header h;
	struct mc_arena_layout l;
	int r;

	mc_arena_empty(a);
	r = read_header(fd, &h, &l);
	if (r < 0)
		return r;
	a->params = h.params;
	a->fd = fd;
	r = mc_arena_map(a, &l, PROT_READ);
	if (r == 0)
		r = mc_arena_map_config(a, config_fd, PROT_READ);
	if (r < 0) {
		a->fd = -1; /* stays the caller's */
		mc_arena_done(a);
		return r;
	}
	a->config_fd = config_fd;
	return 0;
}

int mc_arena_attach(struct mc_arena *a, int fd, int config_fd, const int *bells, unsigned nbells,
                    enum mc_role role)
{
	int config_prot = role == MC_ROLE_SUPERVISOR ? PROT_READ | PROT_WRITE : PROT_READ;
	struct mc_arena_header h;
	struct mc_arena_layout l;
	int r;

	mc_arena_empty(a);
	if (nbells != MC_ROLE_MAX || (unsigned)role >= MC_ROLE_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < nbells; i++) {
		r = check_eventfd(bells[i]);
		if (r < 0)
			return r;
	}
	r = read_header(fd, &h, &l);
	if (r < 0)
		return r;
	a->params = h.params;
	a->role = role;
	a->fd = fd;
	r = mc_arena_map(a, &l, PROT_READ | PROT_WRITE);
	if (r == 0)
		r = mc_arena_map_config(a, config_fd, config_prot);
	if (r == 0)
		r = check_parts(a);
	if (r < 0) {
		a->fd = -1; /* stays the caller's */
		mc_arena_done(a);
		return r;
	}
	a->config_fd = config_fd;
	memcpy(a->bell_fd, bells, sizeof(a->bell_fd));
	return 0;
}

int mc_arena_config_reader(const struct mc_arena *a)
{
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", a->config_fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int mc_arena_take_place(struct mc_arena *a, int *ret)
{
	struct flock l = {.l_type = F_WRLCK, .l_start = a->role, .l_len = 1};
	char path[40];
	int fd;

	/* The inherited description is the same in all processes: it would exclude nobody. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", a->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fcntl(fd, F_OFD_SETLK, &l) < 0) {
		int r = errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;

		close(fd);
		return r;
	}
	*ret = fd;
	return 0;
}

bool mc_arena_place_taken(const struct mc_arena *a, enum mc_role role)
{
	struct flock l = {.l_type = F_WRLCK, .l_start = role, .l_len = 1};

	return fcntl(a->fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

void mc_arena_done(struct mc_arena *a)
{
	if (!a->map && !a->size && !a->params.slab_size)
		return; /* zeroed, or done already */
	if (a->map)
		munmap(a->map, a->size);
	if (a->config)
		munmap(a->config, MC_CONFIG_BYTES);
	mc_closep(&a->fd);
	mc_closep(&a->config_fd);
	for (int i = 0; i < MC_ROLE_MAX; i++)
		mc_closep(&a->bell_fd[i]);
	mc_arena_empty(a);
}

void mc_arena_alive(struct mc_arena *a, enum mc_role role)
{
	atomic_store_explicit(&a->proc[role].heartbeat, mc_now_ns(), memory_order_relaxed);
}

void mc_arena_busy(struct mc_arena *a, enum mc_role role, uint64_t ns)
{
	mc_arena_alive(a, role);
	atomic_store_explicit(&a->proc[role].busy_until, ns ? mc_now_ns() + ns : 0,
	                      memory_order_release);
}

void mc_arena_ring(struct mc_arena *a, enum mc_role role)
{
	if ((unsigned)role < MC_ROLE_MAX)
		mc_bell_ring(&a->proc[role].bell, a->bell_fd[role]);
}

void mc_arena_ring_all(struct mc_arena *a)
{
	for (int i = 1; i < MC_ROLE_MAX; i++)
		if (i != (int)a->role)
			mc_arena_ring(a, (enum mc_role)i);
}

void mc_arena_ring_freed(struct mc_arena *a)
{
	atomic_thread_fence(memory_order_seq_cst);
	mc_arena_ring(a, MC_ROLE_CAPTURE);
	for (unsigned i = 0; i < MC_STAGES_MAX; i++)
		if (mc_ring_depth(a->ring_stage[i]))
			mc_arena_ring(a, mc_role_stage(i));
}
