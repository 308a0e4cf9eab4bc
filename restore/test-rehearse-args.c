/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a throw-away QEMU is started with: nothing of it may reach out. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "rehearse.h"

#define ARGS_MAX 64

static const struct rehearse_ram ram[] = {
        {"ram0", 4096, "/proc/7/fd/8"},
        {"ram1", 8192, "/proc/7/fd/9"},
};

/* Arguments separated by blanks; what comes out, joined again. */
static int rewrite(const char *in, char *out, size_t len, char *why)
{
	char text[2048], *argv[ARGS_MAX] = {0}, *save, **result = NULL;
	size_t n = 0;
	int e;

	snprintf(text, sizeof(text), "%s", in);
	for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save))
		argv[n++] = w;
	out[0] = why[0] = '\0';
	e = rehearse_args(argv, ram, 2, 3, &result, why, 256);
	for (char **p = result; p && *p; p++)
		snprintf(out + strlen(out), len - strlen(out), "%s%s", p == result ? "" : " ", *p);
	rehearse_args_free(result);
	return e;
}

#define TAIL                                                                                       \
	" -S -incoming defer -display none -monitor none -chardev socket,id=mc-rehearse,fd=3 "     \
	"-mon "                                                                                    \
	"chardev=mc-rehearse,mode=control"

static void check(const char *in, const char *want)
{
	char out[4096], why[256], full[4096];

	assert_int_equal(rewrite(in, out, sizeof(out), why), 0);
	snprintf(full, sizeof(full), "%s%s", want, TAIL);
	assert_string_equal(out, full);
}

static void check_refused(const char *in, const char *word)
{
	char out[4096], why[256];

	assert_int_equal(rewrite(in, out, sizeof(out), why), -EPERM);
	assert_non_null(strstr(why, word));
}

static void test_what_is_replaced(void **state)
{
	(void)state;
	check("qemu -m 1G -incoming defer -S --daemonize -pidfile /run/x", "qemu -m 1G");
	check("qemu -qmp unix:/a,server=on -monitor stdio -mon chardev=c -vnc :1 -D log", "qemu");
	check("qemu -serial file:/var/log/x -serial chardev:c -serial none",
	      "qemu -serial null -serial chardev:c -serial none");
	check("qemu -chardev socket,path=/a,id=c0 -chardev {\"backend\":\"pty\",\"id\":\"c1\"}",
	      "qemu -chardev null,id=c0 -chardev null,id=c1");
	check("qemu -netdev dgram,id=n0,local.type=unix -netdev {\"type\":\"user\",\"id\":\"n1\"}",
	      "qemu -netdev hubport,id=n0,hubid=0 -netdev hubport,id=n1,hubid=1");
	check("qemu -netdev tap,id=n0,ifname=tap0 -netdev {\"type\":\"tap\",\"id\":\"n1\"}",
	      "qemu -netdev tap,id=n0,ifname=rehearse0,script=no,downscript=no -netdev "
	      "tap,id=n1,ifname=rehearse1,script=no,downscript=no");
	check("qemu -object memory-backend-file,id=ram0,size=4K,mem-path=/dev/shm/x,share=on "
	      "-object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"ram1\"} -object "
	      "rng-random,id=r -object filter-dump,id=f,netdev=n0",
	      "qemu -object memory-backend-file,id=ram0,size=4096,mem-path=/proc/7/fd/8,share=off "
	      "-object memory-backend-file,id=ram1,size=8192,mem-path=/proc/7/fd/9,share=off "
	      "-object rng-random,id=r");
}

static void test_what_stays(void **state)
{
	(void)state;
	check("qemu -append -S -name -incoming -device virtio-net-pci,netdev=n0",
	      "qemu -append -S -name -incoming -device virtio-net-pci,netdev=n0");
	check("qemu -drive file=/x,readonly=on -blockdev {\"driver\":\"file\",\"read-only\":true} "
	      "-drive media=cdrom,file=/y -net none",
	      "qemu -drive file=/x,readonly=on -blockdev {\"driver\":\"file\",\"read-only\":true} "
	      "-drive media=cdrom,file=/y -net none");
}

static void test_what_is_refused(void **state)
{
	(void)state;
	check_refused("qemu -drive file=/x", "file=/x");
	check_refused("qemu -drive file=/x,readonly=off", "-drive");
	check_refused("qemu -blockdev {\"driver\":\"file\"}", "-blockdev");
	check_refused("qemu -object memory-backend-ram,id=other", "other");
	check_refused("qemu -hda x", "-hda");
	check_refused("qemu -nic user", "-nic");
	check_refused("qemu -virtfs local,path=/", "-virtfs");
	check_refused("qemu -netdev", "without a value");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_what_is_replaced),
	        cmocka_unit_test(test_what_stays),
	        cmocka_unit_test(test_what_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
