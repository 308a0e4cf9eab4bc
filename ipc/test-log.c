/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What an error line says: what failed, why, and what to do. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "log.h"

static char words[120];

static void test_remedies(void **state)
{
	(void)state;
	mc_log_set_words(words, sizeof(words));
	assert_int_equal(mc_log_errno(-ENOSPC, "can't write %s", "/x"), -ENOSPC);
	assert_string_equal(words, "can't write /x: No space left on device; free some room there");
	/* One of its own counts, and is the only one. */
	assert_int_equal(mc_log_errno(EACCES, "can't open /y; make it readable"), -EACCES);
	assert_string_equal(words, "can't open /y; make it readable: Permission denied");
	(void)mc_log_errno(-ENOENT, "can't open /y (is it mounted?)");
	assert_string_equal(words, "can't open /y (is it mounted?): No such file or directory");
	mc_log_set_words(NULL, 0);
}

/* Whatever the error, there is something to do. */
static void test_every_error(void **state)
{
	(void)state;
	for (int e = 0; e < 200; e++) {
		assert_true(strlen(mc_remedy(e)) > 10);
		assert_string_equal(mc_remedy(e), mc_remedy(-e));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_remedies),
	        cmocka_unit_test(test_every_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
