/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An encoded slab as a peer may send it: parsed, unpacked, every page verified. */
#include <xxhash.h>

#include "../ipc/fuzz.h"
#include "../ipc/pool.h"
#include "decode.h"

#define UNIT       65536
#define BLOCK_SIZE 65536

static uint8_t ram[2][BLOCK_SIZE], out[UNIT];

static int on_page(void *ctx, uint32_t block, uint64_t offset, const uint8_t *content)
{
	const struct mc_enc_limits *lim = ctx;

	FUZZ_CHECK(block < lim->nblocks);
	FUZZ_CHECK(offset % MC_PAGE_SIZE == 0 && offset + MC_PAGE_SIZE <= lim->block_size[block]);
	if (content)
		memcpy(out, content, MC_PAGE_SIZE);
	return 0;
}

/*
 * The hashes of pages can't be guessed: with the first byte's lowest bit the hash of every full
 * page that is stored plain is put right, so that what comes behind the check runs as well.
 */
static void mend_hashes(uint8_t *slab, size_t len)
{
	struct mc_enc_header h;
	size_t pages = sizeof(h), content;

	if (len < sizeof(h))
		return;
	memcpy(&h, slab, sizeof(h));
	if (h.of_kind != MC_KIND_PAGES || h.pages > 64 || h.chunks > 4)
		return;
	content = pages + h.pages * sizeof(struct mc_enc_page) +
	          h.chunks * sizeof(struct mc_enc_chunk);
	for (uint32_t i = 0; i < h.pages; i++) {
		struct mc_enc_page p;
		size_t at = pages + i * sizeof(p);

		if (at + sizeof(p) > len)
			return;
		memcpy(&p, slab + at, sizeof(p));
		if (content + p.length > len)
			return;
		if (p.method == MC_PAGE_FULL && p.length == MC_PAGE_SIZE)
			p.hash = XXH3_64bits(slab + content, MC_PAGE_SIZE);
		memcpy(slab + at, &p, sizeof(p));
		content += p.length;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint64_t sizes[2] = {BLOCK_SIZE, 2 * MC_PAGE_SIZE};
	static struct decoder *d; /* as in restore: one for all slabs */
	struct mc_enc_limits lim = {.unit = UNIT, .nblocks = 2, .block_size = sizes};
	struct fuzz_input in = {data, size};
	uint8_t *const blocks[2] = {ram[0], ram[1]};
	struct mc_enc_view v;
	uint8_t mode = fuzz_u8(&in);
	uint8_t *slab = malloc(in.left ? in.left : 1);

	if (!slab || (!d && decoder_new(&d, UNIT) < 0))
		abort();
	memcpy(slab, in.p, in.left);
	if (mode & 1)
		mend_hashes(slab, in.left);
	if (decoder_open(d, slab, in.left, &lim, &v) == 0) {
		if (v.h.of_kind == MC_KIND_STATE)
			(void)decode_state(d, &v, out);
		else
			(void)decode_pages(d, &v, blocks, on_page, &lim);
	}
	free(slab);
	return 0;
}
