/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Two device states of a QEMU, one after the other: the first names the sections, the second
 * differs. */
#include "../ipc/fuzz.h"
#include "capture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct capture *c = calloc(1, sizeof(*c));
	struct mc_arena a = {.control = calloc(1, sizeof(*a.control))};
	struct fuzz_input in = {data, size};
	size_t first = fuzz_u16(&in);
	char what[256] = "";

	if (!c || !a.control)
		abort();
	c->a = &a;
	if (first > in.left)
		first = in.left;
	if (sections_changed(c, in.p, first, what, sizeof(what)) == 0 &&
	    sections_changed(c, in.p + first, in.left - first, what, sizeof(what)) == 1)
		FUZZ_CHECK(what[0] && memchr(what, '\0', sizeof(what)));
	free(a.control);
	free(c->sections);
	free(c);
	return 0;
}
