/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The scanner of QMP lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "../ipc/util.h"
#include "scan.h"

#define STAMP "\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}"

static void test_scan_kinds(void **state)
{
	static const struct {
		const char *line;
		int r;
		enum qmp_kind kind;
		const char *value;
	} t[] = {
	        {"{\"return\": {}}", 0, QMP_KIND_RETURN, "{}"},
	        {" {\"id\":1,\"return\" : [1, \"]\"] } \r", 0, QMP_KIND_RETURN, "[1, \"]\"]"},
	        {"{\"return\":{\"event\":\"STOP\",\"error\":{}}}", 0, QMP_KIND_RETURN,
	         "{\"event\":\"STOP\",\"error\":{}}"},
	        {"{\"return\":\"a\\\"}, \\\"event\\\": 1\"}", 0, QMP_KIND_RETURN,
	         "\"a\\\"}, \\\"event\\\": 1\""},
	        {"{\"return\":-1.5e+3}", 0, QMP_KIND_RETURN, "-1.5e+3"},
	        {"{" STAMP ",\"event\":\"STOP\",\"data\":{\"return\":1}}", 0, QMP_KIND_EVENT,
	         "\"STOP\""},
	        {"{\"error\":{\"class\":\"x\",\"desc\":\"return\"}}", 0, QMP_KIND_ERROR,
	         "{\"class\":\"x\",\"desc\":\"return\"}"},
	        {"{\"QMP\":{}}", 0, QMP_KIND_GREETING, "{}"},
	        {"", -EBADMSG, 0, NULL},
	        {"{}", -EBADMSG, 0, NULL},
	        {"{\"data\":{\"return\":1}}", -EBADMSG, 0, NULL},
	        {"{\"return\":1,\"event\":\"STOP\"}", -EBADMSG, 0, NULL},
	        {"{\"return\":1}x", -EBADMSG, 0, NULL},
	        {"{\"return\":1}{\"return\":1}", -EBADMSG, 0, NULL},
	        {"{\"return\":1", -EBADMSG, 0, NULL},
	        {"{\"return\":}", -EBADMSG, 0, NULL},
	        {"{\"return\"}", -EBADMSG, 0, NULL},
	        {"{return:1}", -EBADMSG, 0, NULL},
	        {"{\"return\":[}", -EBADMSG, 0, NULL},
	        {"{\"return\":[{]}}", -EBADMSG, 0, NULL},
	        {"{\"return\":\"x}", -EBADMSG, 0, NULL},
	        {"{\"return\":\"x\\", -EBADMSG, 0, NULL},
	        {"{\"return\":1 \"id\":2}", -EBADMSG, 0, NULL},
	        {"{\"return\":\"\x01\"}", -EBADMSG, 0, NULL},
	        {"[\"return\"]", -EBADMSG, 0, NULL},
	};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(t); i++) {
		enum qmp_kind kind = 99;
		struct qmp_span v = {NULL, 0};
		int r = qmp_scan(t[i].line, strlen(t[i].line), &kind, &v);

		if (r != t[i].r)
			fail_msg("%s: %d, not %d", t[i].line, r, t[i].r);
		if (r < 0)
			continue;
		assert_int_equal(kind, t[i].kind);
		assert_int_equal(v.len, strlen(t[i].value));
		assert_memory_equal(v.p, t[i].value, v.len);
	}
}

/* Every prefix of a line is refused, and no byte behind it is looked at. */
static void test_scan_truncated(void **state)
{
	static const char line[] = "{" STAMP ", \"event\": \"A\\u0041\", \"data\": [1, {\"x\": "
	                           "\"y\"}, true]}";
	struct qmp_span v;
	enum qmp_kind kind;

	(void)state;
	for (size_t n = 0; n < sizeof(line) - 1; n++) {
		char *exact = malloc(n ? n : 1);

		memcpy(exact, line, n);
		assert_int_equal(qmp_scan(exact, n, &kind, &v), -EBADMSG);
		free(exact);
	}
	assert_int_equal(qmp_scan(line, sizeof(line) - 1, &kind, &v), 0);
}

static void test_scan_depth(void **state)
{
	char line[2 * QMP_DEPTH_MAX + 64];
	struct qmp_span v;
	enum qmp_kind kind;

	(void)state;
	for (int depth = QMP_DEPTH_MAX; depth <= QMP_DEPTH_MAX + 1; depth++) {
		char *p = line + sprintf(line, "{\"return\":");

		memset(p, '[', (size_t)depth);
		memset(p + depth, ']', (size_t)depth);
		strcpy(p + 2 * depth, "}");
		assert_int_equal(qmp_scan(line, strlen(line), &kind, &v),
		                 depth > QMP_DEPTH_MAX ? -EBADMSG : 0);
	}
}

static void test_scan_text(void **state)
{
	static const char json[] =
	        "{\"class\":\"G\",\"desc\":\"a \\\"b\\\"\\n\\u0041\\u20ac\\\\ c\"}";
	struct qmp_span obj = {json, sizeof(json) - 1}, v;
	char buf[64];

	(void)state;
	assert_int_equal(qmp_scan_find(&obj, "none", &v), -ENOENT);
	assert_int_equal(qmp_scan_find(&obj, "desc", &v), 0);
	qmp_scan_text(&v, buf, sizeof(buf));
	assert_string_equal(buf, "a \"b\" A?\\ c");
	qmp_scan_text(&v, buf, 5);
	assert_string_equal(buf, "a \"b");
	assert_int_equal(qmp_scan_find(&v, "desc", &v), -EBADMSG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_scan_kinds),
	        cmocka_unit_test(test_scan_truncated),
	        cmocka_unit_test(test_scan_depth),
	        cmocka_unit_test(test_scan_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
