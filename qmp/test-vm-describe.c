/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What real QEMUs are described as, and the command lines of their standbys. */
#include "test-guest.h"

/* --- description ------------------------------------------------------------------------ */

#define MANY                                                                                       \
	" -smp 2 -cpu qemu64,+avx -device qemu-xhci,id=usb -device usb-tablet -device "            \
	"virtio-rng-pci "                                                                          \
	"-device pcie-root-port,id=rp -device virtio-scsi-pci,id=s0,bus=rp "                       \
	"-drive file.driver=null-co,read-only=on,if=none,id=d0 -device scsi-cd,drive=d0,bus=s0.0 " \
	"-device virtio-net-pci,mac=52:54:00:00:00:07 -serial null -device virtio-serial-pci "
#define MANY_PC                                                                                    \
	" -smp 2 -device piix3-usb-uhci -device usb-tablet -device virtio-rng-pci,addr=9 "         \
	"-device e1000,mac=52:54:00:00:00:07 -serial null "

/* Lets the firmware run until it has set up the devices. */
static void run_firmware(struct guest *g)
{
	uint64_t end = mc_now_ns() + 20000 * MC_NS_PER_MS;
	bool mapped = false;

	assert_int_equal(qmp_command(g->q, "cont", NULL, LIMIT_MS, NULL), 0);
	while (!mapped) {
		mc_autofree char *text = NULL;

		assert_true(mc_now_ns() < end);
		poll(NULL, 0, 20);
		assert_int_equal(qmp_hmp(g->q, "info pci", LIMIT_MS, &text), 0);
		mapped = strstr(text, "at 0xfe") != NULL;
	}
}

/* A standby that waits must look like the running guest, whatever paths it was given. */
static void check_same(const char *machine, const char *devices)
{
	struct guest primary, standby;
	struct vm_info i, j;
	char args[2048], why[512] = "";

	snprintf(args, sizeof(args), RAM_FILE "%s,memory-backend=ram %s", "%s", machine, devices);
	guest_start(&primary, args);
	run_firmware(&primary);
	snprintf(args + strlen(args), sizeof(args) - strlen(args),
	         " -incoming defer -global migration.send-configuration=off");
	guest_start(&standby, args);
	guest_inspect(&primary, &i);
	guest_inspect(&standby, &j);
	if (vm_description_diff(i.description, j.description, why, sizeof(why)))
		fail_msg("%s", why);
	assert_string_equal(i.description, j.description);
	assert_null(strstr(i.description, primary.dir));
	assert_true(strlen(i.description) < 8192);
	vm_info_done(&i);
	vm_info_done(&j);
	guest_end(&primary);
	guest_end(&standby);
}

static void test_same_q35(void **state)
{
	(void)state;
	check_same("q35", MANY);
}

static void test_same_pc(void **state)
{
	(void)state;
	check_same("pc", MANY_PC);
}

/* The description of a QEMU started with @args. */
static char *description_of(const char *args)
{
	struct vm_info i;
	struct guest g;
	char *text;

	guest_start(&g, args);
	guest_inspect(&g, &i);
	text = mc_take_ptr(i.description);
	vm_info_done(&i);
	guest_end(&g);
	return text;
}

static void test_differences(void **state)
{
#define BASE "-S -object memory-backend-memfd,id=ram,share=on,size=64M -m 64 "
#define Q35  "-machine q35,memory-backend=ram "
	static const struct {
		const char *args, *word, *also;
	} t[] = {
	        {"-S -object memory-backend-memfd,id=ram,share=on,size=80M -m 80 " Q35, "RAM",
	         "83886080"},
	        {BASE "-machine pc,memory-backend=ram", "Machine pc-i440fx", "Machine pc-q35"},
	        {BASE Q35 "-cpu Nehalem", "CPU model Nehalem", "qemu64"},
	        {BASE Q35 "-cpu qemu64,+avx", "CPU-features 1.0.ECX", ""},
	        {BASE Q35 "-smp 2", "CPU", ""},
	        {BASE Q35 "-device virtio-rng-pci",
	         "device virtio-rng-pci on q35-pcihost addr=01.0", "only there"},
	        {BASE "-machine q35,memory-backend=ram,smm=off", "smm=off", "smm=auto"},
	        {BASE Q35 "-device e1000,mac=52:54:00:00:00:01", "device e1000",
	         "52:54:00:00:00:01"},
	        {"-S -object memory-backend-memfd,id=mem,share=on,size=64M -m 64 "
	         "-machine q35,memory-backend=mem",
	         "RAM", ""},
	};
	mc_autofree char *ours = description_of(BASE Q35);
	char why[512] = "";

	(void)state;
	assert_int_equal(vm_description_diff(ours, ours, why, sizeof(why)), 0);
	assert_non_null(strstr(ours, "QEMU version "));
	for (size_t i = 0; i < MC_ARRAY_SIZE(t); i++) {
		mc_autofree char *theirs = description_of(t[i].args);

		assert_int_equal(vm_description_diff(ours, theirs, why, sizeof(why)), 1);
		if (!strstr(why, t[i].word) || !strstr(why, t[i].also))
			fail_msg("'%s' names neither '%s' nor '%s'", why, t[i].word, t[i].also);
	}
}

static void test_diff_text(void **state)
{
	static const struct {
		const char *ours, *theirs, *why;
	} t[] = {
	        {"", "", NULL},
	        {"a\nb\n", "a\nb\n", NULL},
	        {"a\nb\n", "a\nb", NULL},
	        {"a\nc\n", "a\nb\nc\n", "'b' is only there"},
	        {"a\nb\nc\n", "a\nc\n", "'b' is only here"},
	        {"a\n", "a\nb\n", "'b' is only there"},
	        {"a\nb\n", "a\n", "'b' is only here"},
	        {"CPU model x\n", "CPU model y\n", "here 'CPU model x', there 'CPU model y'"},
	        {"CPU model x\n", "Machine y\n", "'CPU model x' is only here"},
	        {"", "\x1b[2J\x7f\n", "'?[2J?' is only there"},
	        {"abc\n", "ab\n", "'ab' is only there"},
	};
	char why[512], small[16];

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_SIZE(t); i++) {
		int r = vm_description_diff(t[i].ours, t[i].theirs, why, sizeof(why));

		assert_int_equal(r, t[i].why ? 1 : 0);
		if (r)
			assert_string_equal(why, t[i].why);
	}
	assert_int_equal(vm_description_diff("a\n", "a long line\n", small, sizeof(small)), 1);
	assert_true(strlen(small) < sizeof(small));
}

/* --- standby's command line --------------------------------------------------------------- */

/* What a shell makes of @command: its arguments, each ended by '|'. */
static char *shell_words(const char *command)
{
	mc_autofree char *script = NULL;
	char buf[4096];
	size_t n;
	FILE *f;

	assert_true(asprintf(&script, "printf '%%s|' %s", command) > 0);
	f = popen(script, "r");
	assert_non_null(f);
	n = fread(buf, 1, sizeof(buf) - 1, f);
	buf[n] = '\0';
	assert_int_equal(pclose(f), 0);
	return strdup(buf);
}

static char *standby_args(struct guest *g)
{
	struct vm_info i;
	char *text = NULL;

	guest_inspect(g, &i);
	assert_int_equal(vm_standby_args(g->q, &i, &text), 0);
	vm_info_done(&i);
	return text;
}

/* The arguments that QEMU was started with, without those in @skip, and with the standby's. */
static char *expected_words(const struct guest *g, const char *skip)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	for (size_t n = 0; g->argv[n]; n++)
		if (strcmp(g->argv[n], skip) != 0)
			fprintf(f, "%s|", g->argv[n]);
	fprintf(f, "-incoming|defer|-global|migration.send-configuration=off|");
	fclose(f);
	return text;
}

static void test_standby_args(void **state)
{
	mc_autofree char *args = NULL, *words = NULL, *want = NULL;
	struct guest g;

	(void)state;
	guest_start(&g, RAM_FILE "q35,memory-backend=ram -name it's~\"a\"~$HOME~\\ "
	                         "-fw_cfg name=opt/x,string=a;b");
	args = standby_args(&g);
	words = shell_words(args);
	want = expected_words(&g, "-S");
	assert_string_equal(words, want);
	assert_null(strchr(args, '\n'));
	guest_end(&g);
}

/* A survivor was a standby itself; its standby's arguments don't grow. */
static void test_standby_args_again(void **state)
{
	mc_autofree char *args = NULL, *words = NULL, *want = NULL;
	struct guest g, h;
	char g_suffix[8];

	(void)state;
	guest_start(&g, RAM_FILE "q35,memory-backend=ram --incoming defer -name x,debug-threads=on "
	                         "-global migration.send-configuration=off --S");
	args = standby_args(&g);
	words = shell_words(args);
	strcpy(g_suffix, g.dir + strlen(g.dir) - 6);
	guest_end(&g);
	guest_start(&h, RAM_FILE "q35,memory-backend=ram -name x,debug-threads=on");
	want = expected_words(&h, "-S");
	/* but for the paths, which are each guest's own */
	for (char *p = words; (p = strstr(p, g_suffix));)
		memcpy(p, h.dir + strlen(h.dir) - 6, 6);
	assert_string_equal(words, want);
	guest_end(&h);
}

static void test_hotplug(void **state)
{
	mc_autofree char *args = NULL, *before = NULL;
	char why[512] = "";
	struct vm_info i;
	struct guest g;

	(void)state;
	guest_start(&g, RAM_FILE "q35,memory-backend=ram -device pcie-root-port,id=rp0");
	guest_inspect(&g, &i);
	before = mc_take_ptr(i.description);
	vm_info_done(&i);
	assert_int_equal(qmp_command(g.q, "device_add",
	                             json_pack("{s:s, s:s, s:s}", "driver", "virtio-rng-pci", "bus",
	                                       "rp0", "id", "hot0"),
	                             LIMIT_MS, NULL),
	                 0);
	guest_inspect(&g, &i);
	assert_int_equal(vm_description_diff(before, i.description, why, sizeof(why)), 1);
	assert_non_null(strstr(i.description, "device virtio-rng-pci id=hot0 on rp0 addr=00.0"));
	vm_info_done(&i);
	args = standby_args(&g);
	assert_non_null(strstr(args, "# plugged in later, add: -device virtio-rng-pci,id=hot0"));
	guest_end(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_same_q35),     cmocka_unit_test(test_same_pc),
	        cmocka_unit_test(test_differences),  cmocka_unit_test(test_diff_text),
	        cmocka_unit_test(test_standby_args), cmocka_unit_test(test_standby_args_again),
	        cmocka_unit_test(test_hotplug),
	};

	return cmocka_run_group_tests(tests, NULL, guests_sweep);
}
