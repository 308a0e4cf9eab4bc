/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What precedes the handshake, as either end may get it. */
#include "../ipc/fuzz.h"
#include "tls.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = {data, size};
	uint8_t mode = fuzz_u8(&in), buf[TLS_PREAMBLE_MAX];
	enum mc_side from = mode & 1 ? MC_SIDE_PRIMARY : MC_SIDE_BACKUP;
	char why[MC_WHY_MAX] = "";
	size_t len = in.left < sizeof(buf) ? in.left : sizeof(buf);
	struct mc_wire_header h;
	int r;

	memcpy(buf, in.p, len);
	if (mode & 2 && len >= sizeof(h)) { /* a checksum can't be guessed */
		memcpy(&h, buf, sizeof(h));
		h.magic = MC_WIRE_MAGIC;
		h.version = MC_WIRE_VERSION;
		if (h.length <= len - sizeof(h))
			h.checksum = mc_wire_checksum(&h, buf + sizeof(h), h.length, NULL, 0);
		memcpy(buf, &h, sizeof(h));
	}
	/* As it comes in: never more than what was asked for, and never without end. */
	for (size_t have = 0;; have += (size_t)r) {
		r = tls_preamble_check(from, "vm", buf, have, why, sizeof(why));
		if (r < 0)
			FUZZ_CHECK(why[0] && memchr(why, '\0', sizeof(why)));
		if (r <= 0 || have + (size_t)r > len)
			return 0;
	}
}
