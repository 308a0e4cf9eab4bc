/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "scan.h"

struct cursor {
	const char *p, *end;
};

static void skip_blanks(struct cursor *c)
{
	while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\r' || *c->p == '\n'))
		c->p++;
}

static bool take(struct cursor *c, char want)
{
	skip_blanks(c);
	if (c->p == c->end || *c->p != want)
		return false;
	c->p++;
	return true;
}

/* From the opening quote to behind the closing one. */
static int skip_string(struct cursor *c)
{
	for (c->p++; c->p < c->end; c->p++) {
		if (*c->p == '"') {
			c->p++;
			return 0;
		}
		if ((unsigned char)*c->p < 0x20)
			return -EBADMSG;
		if (*c->p == '\\' && ++c->p == c->end)
			return -EBADMSG;
	}
	return -EBADMSG;
}

/* A number, true, false, null: what they may consist of; jansson checks what is used. */
static int skip_word(struct cursor *c)
{
	const char *start = c->p;

	while (c->p < c->end && ((*c->p >= '0' && *c->p <= '9') || (*c->p >= 'a' && *c->p <= 'z') ||
	                         *c->p == '-' || *c->p == '+' || *c->p == '.' || *c->p == 'E'))
		c->p++;
	return c->p == start ? -EBADMSG : 0;
}

/*
 * Skips an object or array by its brackets; a bit per level remembers which kind was
 * opened, so that the depth of the input costs no stack.
 */
static int skip_nested(struct cursor *c)
{
	uint64_t is_array[QMP_DEPTH_MAX / 64] = {0};
	unsigned depth = 0;

	while (c->p < c->end) {
		char ch = *c->p;
		bool array = ch == '[' || ch == ']';

		if (ch == '"') {
			if (skip_string(c) < 0)
				return -EBADMSG;
			continue;
		}
		if (ch == '{' || ch == '[') {
			if (depth == QMP_DEPTH_MAX)
				return -EBADMSG;
			is_array[depth / 64] &= ~(1ULL << depth % 64);
			is_array[depth / 64] |= (uint64_t)array << depth % 64;
			depth++;
		} else if (ch == '}' || ch == ']') {
			depth--;
			if ((is_array[depth / 64] >> depth % 64 & 1) != array)
				return -EBADMSG;
		} else if ((unsigned char)ch < 0x20 && ch != '\t' && ch != '\r' && ch != '\n') {
			return -EBADMSG;
		}
		c->p++;
		if (!depth)
			return 0;
	}
	return -EBADMSG;
}

static int skip_value(struct cursor *c, struct qmp_span *value)
{
	int r;

	skip_blanks(c);
	if (c->p == c->end)
		return -EBADMSG;
	value->p = c->p;
	if (*c->p == '"')
		r = skip_string(c);
	else if (*c->p == '{' || *c->p == '[')
		r = skip_nested(c);
	else
		r = skip_word(c);
	value->len = (size_t)(c->p - value->p);
	return r;
}

/*
 * Next member of the object that the cursor is in. 1 with key (without its quotes) and value, 0 at
 * the closing bracket, -EBADMSG.
 */
static int next_member(struct cursor *c, bool first, struct qmp_span *key, struct qmp_span *value)
{
	if (take(c, '}'))
		return 0;
	if (!first && !take(c, ','))
		return -EBADMSG;
	skip_blanks(c);
	if (c->p == c->end || *c->p != '"')
		return -EBADMSG;
	key->p = c->p + 1;
	if (skip_string(c) < 0)
		return -EBADMSG;
	key->len = (size_t)(c->p - 1 - key->p);
	if (!take(c, ':') || skip_value(c, value) < 0)
		return -EBADMSG;
	return 1;
}

static bool key_is(const struct qmp_span *key, const char *name)
{
	return key->len == strlen(name) && !memcmp(key->p, name, key->len);
}

int qmp_scan(const char *line, size_t len, enum qmp_kind *kind, struct qmp_span *value)
{
	static const struct {
		const char *key;
		enum qmp_kind kind;
	} table[] = {
	        {"return", QMP_KIND_RETURN},
	        {"error", QMP_KIND_ERROR},
	        {"event", QMP_KIND_EVENT},
	        {"QMP", QMP_KIND_GREETING},
	};
	struct cursor c = {line, line + len};
	struct qmp_span key, v;
	unsigned found = 0;
	int r;

	if (!take(&c, '{'))
		return -EBADMSG;
	for (bool first = true; (r = next_member(&c, first, &key, &v)) > 0; first = false) {
		for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
			if (!key_is(&key, table[i].key))
				continue;
			*kind = table[i].kind;
			*value = v;
			found++;
		}
	}
	skip_blanks(&c);
	return r < 0 || found != 1 || c.p != c.end ? -EBADMSG : 0;
}

int qmp_scan_find(const struct qmp_span *obj, const char *key, struct qmp_span *value)
{
	struct cursor c = {obj->p, obj->p + obj->len};
	struct qmp_span k;
	int r;

	if (!take(&c, '{'))
		return -EBADMSG;
	for (bool first = true; (r = next_member(&c, first, &k, value)) > 0; first = false)
		if (key_is(&k, key))
			return 0;
	return r < 0 ? r : -ENOENT;
}

/* The character meant by the escape at @p ("\n", "\u0041"); *used: bytes that it takes. */
static char unescape(const char *p, const char *end, size_t *used)
{
	char hex[5] = {0};
	unsigned long v;

	*used = 2;
	if (p[1] == 'n' || p[1] == 't' || p[1] == 'r' || p[1] == 'b' || p[1] == 'f')
		return ' ';
	if (p[1] != 'u')
		return p[1];
	if (end - p < 6) {
		*used = (size_t)(end - p);
		return '?';
	}
	memcpy(hex, p + 2, 4);
	*used = 6;
	v = strtoul(hex, NULL, 16);
	return v >= 0x20 && v < 0x7f ? (char)v : '?';
}

void qmp_scan_text(const struct qmp_span *s, char *buf, size_t size)
{
	const char *p, *end;
	size_t n = 0, used;

	buf[0] = '\0';
	if (s->len < 2 || s->p[0] != '"')
		return;
	p = s->p + 1;
	end = s->p + s->len - 1;
	while (p < end && n + 1 < size) {
		used = 1;
		if (*p == '\\' && end - p >= 2)
			buf[n++] = unescape(p, end, &used);
		else
			buf[n++] = (unsigned char)*p < 0x20 ? ' ' : *p;
		p += used;
	}
	buf[n] = '\0';
}
