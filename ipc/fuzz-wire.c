/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Header, HELLO and reason as they come from a peer. */
#include "fuzz.h"
#include "wire.h"

static void check_hello(const uint8_t *payload, size_t len)
{
	static struct mc_hello h;
	static uint8_t again[MC_WIRE_HELLO_MAX];
	char why[128];

	if (mc_wire_hello_parse(payload, len, &h, why, sizeof(why)) < 0) {
		FUZZ_CHECK(memchr(why, '\0', sizeof(why)));
		return;
	}
	/* What was accepted packs to the same bytes: nothing was read beyond, nothing lost. */
	FUZZ_CHECK(mc_wire_hello_pack(&h, again) == len);
	FUZZ_CHECK(memcmp(again, payload, len) == 0);
	FUZZ_CHECK(mc_guest_name_check(h.h.guest) == 0);
}

static void check_reason(const uint8_t *payload, size_t len)
{
	char text[MC_WHY_MAX];
	uint32_t reason;

	if (mc_wire_reason_parse(payload, len, &reason, text) < 0)
		return;
	for (const char *c = text; *c; c++)
		FUZZ_CHECK(*c >= ' ' && *c < 127);
}

static void check_hashes(const uint8_t *payload, size_t len)
{
	static struct mc_hash_slot s;
	static uint8_t again[MC_WIRE_HASHES_MAX];

	if (mc_hashes_parse(payload, len, &s) < 0)
		return;
	FUZZ_CHECK(s.q.pages <= MC_HASH_PAGES);
	FUZZ_CHECK(mc_hashes_pack(&s, again) == len);
	FUZZ_CHECK(!s.known || memcmp(again, payload, len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = {data, size};
	struct mc_wire_limits lim = {.slab_size = 65536};
	struct mc_wire_header h;
	char why[128];
	uint8_t mode = fuzz_u8(&in);

	lim.from = mode & 1 ? MC_SIDE_PRIMARY : MC_SIDE_BACKUP;
	lim.have_term = mode >> 1 & 1;
	fuzz_take(&in, &h, sizeof(h));
	if (mode & 4) { /* past the first checks */
		h.magic = MC_WIRE_MAGIC;
		h.version = MC_WIRE_VERSION;
	}
	if (mc_wire_header_check(&h, &lim, why, sizeof(why)) == 0) {
		FUZZ_CHECK(h.length <= (h.type == MC_MSG_SLAB
		                                ? lim.slab_size + sizeof(struct mc_wire_slab)
		                                : MC_WIRE_HELLO_MAX));
		FUZZ_CHECK(h.epoch <= MC_EPOCH_MAX);
		(void)mc_wire_checksum(&h, in.p, in.left, NULL, 0);
	} else {
		FUZZ_CHECK(memchr(why, '\0', sizeof(why)));
	}
	(void)mc_msg_name(h.type);
	check_hello(in.p, in.left);
	check_reason(in.p, in.left);
	check_hashes(in.p, in.left);
	return 0;
}
