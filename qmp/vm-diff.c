/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names what differs in two descriptions, of which one came over the network. */
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

#define SHOWN 200 /* bytes of a line that a sentence quotes */

/* A line of a description, fit for being printed. */
struct shown {
	char text[SHOWN + 1];
	size_t len; /* of the whole line */
};

static struct shown take(const char *s)
{
	struct shown r = {.len = strcspn(s, "\n")};

	for (size_t i = 0; i < r.len && i < SHOWN; i++)
		r.text[i] = (unsigned char)s[i] < 0x20 || s[i] == 0x7f ? '?' : s[i];
	return r;
}

static int order(const char *a, size_t a_len, const char *b, size_t b_len)
{
	int c = memcmp(a, b, mc_min_u64(a_len, b_len));

	return c ? c : (a_len > b_len) - (a_len < b_len);
}

/* Lines about the same thing, of which there is one: "Machine pc-q35-7.2". */
static bool same_thing(const char *a, const char *b)
{
	size_t n = strcspn(a, " :\n");

	return *a >= 'A' && *a <= 'Z' && n == strcspn(b, " :\n") && !memcmp(a, b, n);
}

int vm_description_diff(const char *ours, const char *theirs, char *why, size_t why_len)
{
	while (*ours || *theirs) {
		struct shown a = take(ours), b = take(theirs);
		int c = order(ours, a.len, theirs, b.len);

		if (c && *ours && *theirs && same_thing(ours, theirs)) {
			snprintf(why, why_len, "here '%s', there '%s'", a.text, b.text);
			return 1;
		}
		if (c && *ours && (c < 0 || !*theirs)) {
			snprintf(why, why_len, "'%s' is only here", a.text);
			return 1;
		}
		if (c) {
			snprintf(why, why_len, "'%s' is only there", b.text);
			return 1;
		}
		ours += a.len + (ours[a.len] == '\n');
		theirs += b.len + (theirs[b.len] == '\n');
	}
	return 0;
}
