/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Credentials on their way to the transport. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "creds.h"

static struct mc_creds some(void)
{
	return (struct mc_creds){.part = {[MC_CREDS_CA] = "ca", [MC_CREDS_KEY] = "secret"},
	                         .len = {[MC_CREDS_CA] = 2, [MC_CREDS_KEY] = 6}};
}

static void test_there_and_back(void **state)
{
	struct mc_creds in = some(), out;
	int fd = mc_creds_pack(&in);

	(void)state;
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(mc_creds_unpack(fd, &out), 0);
	assert_string_equal(out.part[MC_CREDS_CA], "ca");
	assert_string_equal(out.part[MC_CREDS_KEY], "secret");
	assert_null(out.part[MC_CREDS_CRL]);
	/* Nobody can change it any more. */
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_int_equal(ftruncate(fd, 0), -1);
	mc_creds_done(&out);
	assert_null(out.part[MC_CREDS_KEY]);
	mc_creds_done(&out);
	close(fd);
}

static void test_others_are_refused(void **state)
{
	struct mc_creds in = some(), out;
	int good = mc_creds_pack(&in), fd;
	uint8_t buf[256];
	ssize_t n = pread(good, buf, sizeof(buf), 0);

	(void)state;
	assert_true(n > 0);
	assert_int_equal(mc_creds_unpack(-1, &out), -EBADMSG);
	for (int i = 0; i < 4; i++) {
		fd = memfd_create("t", MFD_ALLOW_SEALING);
		buf[0] ^= i == 1;  /* no magic */
		buf[8] += i == 2;  /* a length that doesn't fit */
		buf[11] ^= i == 3; /* one beyond all bounds */
		assert_int_equal(write(fd, buf, (size_t)n), n);
		if (i) /* 0: the same, but not sealed */
			fcntl(fd, F_ADD_SEALS,
			      F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
		assert_int_equal(mc_creds_unpack(fd, &out), -EBADMSG);
		close(fd);
		assert_int_equal(pread(good, buf, sizeof(buf), 0), n);
	}
	in.len[MC_CREDS_CA] = MC_CREDS_PART_MAX + 1;
	assert_int_equal(mc_creds_pack(&in), -EFBIG);
	close(good);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_there_and_back),
	        cmocka_unit_test(test_others_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
