/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The codec on pages that a redis guest wrote (tests/bench/trace, fixed by its hash) and on random
 * pages: one encoder, one decoder, in memory, every decoded page compared.  The peer is zstd at
 * level -1 on the same raw pages in chunks of the same size.
 *
 *   stage TRACE
 *
 * Prints one JSON object: bytes, and GB/s of raw pages of each run, by CPU time.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "../../ipc/shadow.h"
#include "../../ipc/util.h"
#include "../../restore/decode.h"
#include "../../stage/encode.h"

#define TRACE_HASH  0xd99bd6db2341e8f0ULL /* XXH3 of the file */
#define TRACE_MAGIC 0x5254434d            /* "MCTR" */
#define UNIT        (5UL << 20)
#define DELTA_CACHE (64UL << 20)
#define RUNS        7
#define REPEAT      4 /* times through the trace a run: some 50 ms */
#define LEVEL       (-1)
#define RANDOM      2048 /* pages */

/* An epoch of the trace: page numbers, then their contents. */
struct epoch {
	uint32_t pages;
	const uint32_t *number;
	const uint8_t *content;
};

struct trace {
	uint32_t epochs, ram_pages;
	struct epoch *epoch;
	uint64_t bytes; /* of the pages of all but the first epoch */
};

struct bench {
	struct trace t;
	struct encoder *encoder;
	struct decoder *decoder;
	struct mc_shadow shadow;
	uint8_t *raw, *out, *ram;
	struct mc_page_desc *desc;
	const struct epoch *now; /* what the decoder must give */
	uint32_t at;
	uint64_t wire;
	uint64_t encode_ns, decode_ns;
};

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "stage: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* CPU time of this thread: what else the machine does must not count. */
static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * MC_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void *get(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
	               -1, 0);

	if (p == MAP_FAILED)
		fail("memory");
	return p;
}

static uint8_t *read_trace(const char *path, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	unsigned long long size;
	struct stat st;
	uint8_t *packed, *plain;

	if (fd < 0 || fstat(fd, &st) < 0)
		fail(path);
	packed = get((size_t)st.st_size);
	if (read(fd, packed, (size_t)st.st_size) != st.st_size)
		fail(path);
	close(fd);
	if (XXH3_64bits(packed, (size_t)st.st_size) != TRACE_HASH) {
		fprintf(stderr,
		        "stage: %s isn't the trace that results are compared by: its hash is "
		        "%#llx\n",
		        path, (unsigned long long)XXH3_64bits(packed, (size_t)st.st_size));
		exit(1);
	}
	size = ZSTD_getFrameContentSize(packed, (size_t)st.st_size);
	plain = get(size);
	*len = ZSTD_decompress(plain, size, packed, (size_t)st.st_size);
	munmap(packed, (size_t)st.st_size);
	if (*len != size)
		fail("trace");
	return plain;
}

/* Header: magic, epochs, RAM pages; an epoch: pages, numbers, contents. */
static void load_trace(struct trace *t, const char *path)
{
	size_t len;
	const uint8_t *p = read_trace(path, &len), *end = p + len;
	uint32_t head[3];

	memcpy(head, p, sizeof(head));
	p += sizeof(head);
	if (head[0] != TRACE_MAGIC || !head[1] || head[1] > 1000)
		fail("not a trace");
	t->epochs = head[1];
	t->ram_pages = head[2];
	t->epoch = calloc(t->epochs, sizeof(*t->epoch));
	for (uint32_t i = 0; t->epoch && i < t->epochs; i++) {
		struct epoch *e = &t->epoch[i];

		memcpy(&e->pages, p, 4);
		e->number = (const uint32_t *)(p + 4);
		e->content = p + 4 + e->pages * 4UL;
		p = e->content + e->pages * MC_PAGE_SIZE;
		if (p > end)
			fail("the trace is cut off");
		t->bytes += i ? e->pages * MC_PAGE_SIZE : 0;
	}
}

static void new_shadow(struct mc_shadow *s)
{
	uint64_t sets = mc_shadow_sets(DELTA_CACHE);

	s->shm = get(sizeof(*s->shm));
	s->sets = sets;
	s->role = MC_ROLE_STAGE0;
	s->entry = get(sets * MC_SHADOW_WAYS * sizeof(*s->entry));
	s->data = get(sets * MC_SHADOW_WAYS * MC_PAGE_SIZE);
	if (mc_shadow_init(s->shm, sets) < 0)
		fail("shadow");
}

static int check_page(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content)
{
	static const uint8_t zero[MC_PAGE_SIZE];
	struct bench *b = ctx;
	uint32_t i = b->at++;

	if (block || offset != b->now->number[i] * MC_PAGE_SIZE ||
	    memcmp(content ? content : zero, b->now->content + i * MC_PAGE_SIZE, MC_PAGE_SIZE) !=
	            0) {
		fprintf(stderr, "stage: page %u was not decoded to what was encoded\n", i);
		exit(1);
	}
	memcpy(b->ram + offset, content ? content : zero, MC_PAGE_SIZE);
	return 0;
}

/* Encodes an epoch slab by slab as capture would fill them, decodes and compares. */
static void one_epoch(struct bench *b, const struct epoch *e, uint64_t number, bool delta)
{
	uint64_t max = mc_copyset_pages_max(UNIT), size = b->t.ram_pages * MC_PAGE_SIZE;
	const struct mc_enc_limits lim = {.unit = UNIT, .nblocks = 1, .block_size = &size};
	uint8_t *const ram[1] = {b->ram};

	b->now = e;
	b->at = 0;
	for (uint32_t from = 0, seq = 0; from < e->pages; from += (uint32_t)max, seq++) {
		uint32_t n = (uint32_t)mc_min_u64(max, e->pages - from);
		struct mc_slab_meta meta = {.epoch = number,
		                            .seq = seq,
		                            .kind = MC_KIND_PAGES,
		                            .pages = n,
		                            .used = n * MC_PAGE_SIZE};
		struct encode_job job = {.meta = &meta,
		                         .raw = b->raw,
		                         .desc = b->desc,
		                         .nblocks = 1,
		                         .shadow = delta ? &b->shadow : NULL,
		                         .base = number - 1,
		                         .level = LEVEL};
		struct encode_stats st = {0};
		struct mc_enc_view v;
		uint64_t t;
		int64_t len;

		memcpy(b->raw, e->content + from * MC_PAGE_SIZE, n * MC_PAGE_SIZE);
		for (uint32_t i = 0; i < n; i++)
			b->desc[i] =
			        (struct mc_page_desc){.offset = e->number[from + i] * MC_PAGE_SIZE};
		t = cpu_ns();
		len = encode_slab(b->encoder, &job, b->out, &st);
		b->encode_ns += cpu_ns() - t;
		if (len <= 0)
			fail("encode_slab");
		b->wire += (uint64_t)len;
		t = cpu_ns();
		if (decoder_open(b->decoder, b->out, (uint64_t)len, &lim, &v) < 0 ||
		    decode_pages(b->decoder, &v, ram, check_page, b) < 0)
			fail("decode");
		b->decode_ns += cpu_ns() - t;
	}
}

/* The trace, each time on an empty shadow that the first epoch fills. */
static void run_trace(struct bench *b, double *encode, double *decode)
{
	uint64_t spent[2] = {0};

	for (int k = 0; k < REPEAT; k++) {
		mc_shadow_clear(&b->shadow);
		one_epoch(b, &b->t.epoch[0], 1, true);
		b->wire = b->encode_ns = b->decode_ns = 0;
		for (uint32_t i = 1; i < b->t.epochs; i++)
			one_epoch(b, &b->t.epoch[i], i + 1, true);
		spent[0] += b->encode_ns;
		spent[1] += b->decode_ns;
	}
	*encode = (double)(b->t.bytes * REPEAT) / (double)spent[0];
	*decode = (double)(b->t.bytes * REPEAT) / (double)spent[1];
}

static double run_random(struct bench *b, uint64_t *wire)
{
	static uint32_t number[RANDOM];
	uint64_t *content = get(RANDOM * MC_PAGE_SIZE);
	struct epoch e = {.pages = RANDOM, .number = number, .content = (uint8_t *)content};

	srand48(7);
	for (uint64_t i = 0; i < RANDOM * MC_PAGE_SIZE / 8; i++)
		content[i] = (uint64_t)mrand48() << 32 ^ (uint64_t)mrand48();
	for (uint32_t i = 0; i < RANDOM; i++)
		number[i] = i;
	b->wire = b->encode_ns = 0;
	one_epoch(b, &e, 0, false);
	*wire = b->wire;
	munmap(content, RANDOM * MC_PAGE_SIZE);
	return (double)(RANDOM * MC_PAGE_SIZE) / (double)b->encode_ns;
}

static double run_zstd(const struct bench *b, ZSTD_CCtx *c, uint64_t *wire)
{
	uint64_t ns = 0;

	for (int k = 0; k < REPEAT; k++) {
		*wire = 0;
		for (uint32_t i = 1; i < b->t.epochs; i++) {
			const struct epoch *e = &b->t.epoch[i];
			uint64_t all = e->pages * MC_PAGE_SIZE;

			for (uint64_t at = 0; at < all; at += MC_CHUNK_MAX) {
				uint64_t t = cpu_ns();
				size_t n = ZSTD_compressCCtx(c, b->out, UNIT, e->content + at,
				                             mc_min_u64(MC_CHUNK_MAX, all - at),
				                             LEVEL);

				ns += cpu_ns() - t;
				if (ZSTD_isError(n))
					fail("zstd");
				*wire += n;
			}
		}
	}
	return (double)(b->t.bytes * REPEAT) / (double)ns;
}

static void print_runs(const char *name, const double *v)
{
	printf("\"%s\":[", name);
	for (int i = 0; i < RUNS; i++)
		printf("%s%.4f", i ? "," : "", v[i]);
	printf("],");
}

int main(int argc, char **argv)
{
	static struct bench b;
	double encode[RUNS], decode[RUNS], zstd[RUNS], random[RUNS];
	uint64_t wire = 0, zstd_wire = 0, random_wire = 0;
	ZSTD_CCtx *c = ZSTD_createCCtx();

	if (argc != 2 || !c) {
		fprintf(stderr, "usage: %s TRACE\n", argv[0]);
		return 2;
	}
	load_trace(&b.t, argv[1]);
	b.raw = get(UNIT);
	b.out = get(UNIT);
	b.desc = get(UNIT / MC_PAGE_SIZE * sizeof(*b.desc));
	b.ram = get(b.t.ram_pages * MC_PAGE_SIZE);
	new_shadow(&b.shadow);
	if (encoder_new(&b.encoder, UNIT) < 0 || decoder_new(&b.decoder, UNIT) < 0)
		fail("codec");
	for (int i = 0; i < RUNS; i++) {
		run_trace(&b, &encode[i], &decode[i]);
		wire = b.wire;
		zstd[i] = run_zstd(&b, c, &zstd_wire);
		random[i] = run_random(&b, &random_wire);
	}
	printf("{");
	print_runs("encode", encode);
	print_runs("decode", decode);
	print_runs("zstd", zstd);
	print_runs("random", random);
	printf("\"raw_bytes\":%llu,\"wire\":%llu,\"zstd_wire\":%llu,\"random_bytes\":%llu,"
	       "\"random_wire\":%llu}\n",
	       (unsigned long long)b.t.bytes, (unsigned long long)wire,
	       (unsigned long long)zstd_wire, RANDOM * MC_PAGE_SIZE,
	       (unsigned long long)random_wire);
	return 0;
}
