/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The device sections of a QEMU state, as names.  Format: docs/devel/migration in QEMU's
 * tree: magic, version, then sections "0x04, id (be32), name (length byte), instance (be32),
 * version (be32), data", each with a footer "0x7e, id (be32)".  The data's length isn't told;
 * a footer of the right id with a plausible header behind it ends a section.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "capture.h"

#define SECTION_FULL   4
#define SECTION_FOOTER 0x7e
#define STREAM_MAGIC   0x5145564dU

static uint32_t be32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return ntohl(v);
}

static bool plausible_header(const uint8_t *p, const uint8_t *end)
{
	if (end - p < 6 || *p != SECTION_FULL || !p[5] || end - p < 6 + p[5] + 8)
		return false;
	for (int i = 0; i < p[5]; i++)
		if (p[6 + i] < ' ' || p[6 + i] > '~')
			return false;
	return true;
}

/* Where the header after the section @id begins: behind its footer; NULL at the end. */
static const uint8_t *next_header(const uint8_t *p, const uint8_t *end, uint32_t id)
{
	while (end - p >= 10) {
		p = memchr(p, SECTION_FOOTER, (size_t)(end - p - 9));
		if (!p)
			return NULL;
		if (be32(p + 1) == id && plausible_header(p + 5, end))
			return p + 5;
		p++;
	}
	return NULL;
}

/* "name/instance/version\n" of every section, malloc'ed. */
static char *list_sections(const uint8_t *state, size_t len)
{
	const uint8_t *p = state + 8, *end = state + len;
	size_t size;
	char *text = NULL;
	FILE *f;

	if (len < 8 || be32(state) != STREAM_MAGIC)
		return NULL;
	f = open_memstream(&text, &size);
	while (f && p && end - p >= 6 && *p == SECTION_FULL) {
		uint32_t id = be32(p + 1);
		size_t name = p[5];

		if ((size_t)(end - p) < 6 + name + 8)
			break;
		fprintf(f, "%.*s/%u/%u\n", (int)name, p + 6, be32(p + 6 + name),
		        be32(p + 10 + name));
		p = next_header(p + 14 + name, end, id);
	}
	if (!f || fclose(f) != 0)
		return NULL;
	return text;
}

/* The first line of @now that isn't in @before, or of @before that isn't in @now. */
static void name_difference(const char *before, const char *now, char *what, size_t what_len)
{
	const char *const list[2] = {now, before}, *const other[2] = {before, now};

	for (int i = 0; i < 2; i++) {
		for (const char *p = list[i]; *p; p = strchr(p, '\n') + 1) {
			size_t n = strcspn(p, "\n") + 1;
			const char *hit = memmem(other[i], strlen(other[i]), p, n);

			if (hit)
				continue;
			snprintf(what, what_len, "%.*s was %s", (int)n - 1, p,
			         i ? "removed" : "added");
			return;
		}
	}
	snprintf(what, what_len, "the order of the devices changed");
}

int sections_changed(struct capture *c, const uint8_t *state, size_t len, char *what,
                     size_t what_len)
{
	char *now = list_sections(state, len);

	if (!now)
		return -EBADMSG;
	if (!c->sections) {
		uint64_t hash = XXH3_64bits(now, strlen(now)) | 1, first = 0;

		c->sections = now;
		if (atomic_compare_exchange_strong(&c->a->control->sections, &first, hash) ||
		    first == hash)
			return 0;
		snprintf(what, what_len,
		         "something was added or removed while mc-capture "
		         "was being replaced");
		return 1;
	}
	if (strcmp(c->sections, now) == 0) {
		free(now);
		return 0;
	}
	name_difference(c->sections, now, what, what_len);
	free(now);
	return 1;
}
