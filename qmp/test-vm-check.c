/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What real QEMUs are refused for, and what overrides it. */
#include "test-guest.h"

#define RAM    RAM_FILE "q35,memory-backend=ram "
#define ROOT   "-device pcie-root-port,id=rp0 "
#define REMEDY "--accept"

struct check {
	const char *args, *accept, *gated;
	const char *word[3]; /* in the first refusal; none: allowed */
};

static int run_check(struct guest *g, const char *accept, const char *gated, char *why,
                     size_t why_len, char **all)
{
	struct vm_info i;
	int r;

	guest_inspect(g, &i);
	r = vm_check(g->q, &i, accept, gated, why, why_len, all);
	vm_info_done(&i);
	return r;
}

static void check_one(struct guest *g, const struct check *c)
{
	mc_autofree char *all = NULL;
	char why[512] = "";
	int r = run_check(g, c->accept, c->gated, why, sizeof(why), &all);

	assert_non_null(all);
	if (!c->word[0]) {
		if (r != 0)
			fail_msg("%s (accept %s, gated %s): refused: %s", c->args,
			         c->accept ? c->accept : "-", c->gated ? c->gated : "-", all);
		assert_string_equal(all, "");
		return;
	}
	if (r != -EPERM)
		fail_msg("%s (accept %s, gated %s): %d, not refused: %s", c->args,
		         c->accept ? c->accept : "-", c->gated ? c->gated : "-", r, why);
	for (size_t n = 0; n < MC_ARRAY_SIZE(c->word) && c->word[n]; n++)
		if (!strstr(why, c->word[n]))
			fail_msg("%s: '%s' isn't in: %s", c->args, c->word[n], why);
	assert_true(!strncmp(all, why, strlen(why)));
	assert_null(strchr(why, '\n'));
}

/* One QEMU for each run of equal arguments. */
static void check_table(const struct check *t, size_t n)
{
	struct guest g = {0};

	for (size_t i = 0; i < n; i++) {
		if (i && strcmp(t[i].args, t[i - 1].args) != 0)
			guest_end(&g);
		if (!i || strcmp(t[i].args, t[i - 1].args) != 0)
			guest_start(&g, t[i].args);
		check_one(&g, &t[i]);
	}
	guest_end(&g);
}

static void test_plain(void **state)
{
	static const struct check t[] = {
	        {RAM, NULL, NULL, {0}},
	        {RAM, "", "", {0}},
	        {RAM_FILE "pc,memory-backend=ram", NULL, NULL, {0}},
	        {RAM "-smp 2 -incoming defer", NULL, NULL, {0}},
	        {RAM ROOT
	         "-device qemu-xhci,id=u -device usb-tablet -device virtio-rng-pci -device "
	         "virtio-scsi-pci -device scsi-cd -device ide-cd -device e1000e -device "
	         "virtio-serial-pci -device i6300esb -device pvpanic -device vmcoreinfo",
	         NULL,
	         NULL,
	         {0}},
	};

	(void)state;
	check_table(t, MC_ARRAY_SIZE(t));
}

static void test_ram(void **state)
{
	static const struct check t[] = {
	        {"-S -m 64 -machine q35", NULL, NULL, {"pc.ram", "private", "share=on"}},
	        {"-S -m 64 -machine q35", "pc.ram,ram", NULL, {"share=on"}},
	        {"-S -m 64 -machine q35,memory-backend=m -object "
	         "memory-backend-memfd,id=m,size=64M,share=off",
	         NULL,
	         NULL,
	         {"share=on"}},
	        {"-S -m 64 -machine q35,memory-backend=m -object "
	         "memory-backend-ram,id=m,size=64M,share=on",
	         NULL,
	         NULL,
	         {0}},
	};

	(void)state;
	check_table(t, MC_ARRAY_SIZE(t));
}

static void test_devices(void **state)
{
	static const struct check t[] = {
	        {RAM "-device VGA,id=v0", NULL, NULL, {"device VGA v0", REMEDY " VGA"}},
	        {RAM "-device VGA,id=v0", "VGA", NULL, {"vga.vram", "-vga none", REMEDY}},
	        {RAM "-device VGA,id=v0", "vga.vram", NULL, {"VGA"}},
	        {RAM "-device VGA,id=v0", "x, VGA,vga.vram", NULL, {0}},
	        {RAM "-device VGA,id=v0", "VG,VGAA,vga.vram", NULL, {"VGA"}},
	        {RAM "-device virtio-balloon-pci", NULL, NULL, {"virtio-balloon-pci", REMEDY}},
	        {RAM "-device virtio-balloon-pci", "virtio-balloon-pci", NULL, {0}},
	        {RAM "-device virtio-gpu-pci", NULL, NULL, {"virtio-gpu-pci"}},
	        {RAM "-device nvme,serial=x", NULL, NULL, {"nvme"}},
	};

	(void)state;
	check_table(t, MC_ARRAY_SIZE(t));
}

/* Memory that the guest gives back is invisible to tracking. */
static void test_virtio_mem(void **state)
{
	static const struct check t[] = {
	        {"-m 64,maxmem=128M -S -object memory-backend-memfd,id=ram,size=64M,share=on "
	         "-machine "
	         "q35,memory-backend=ram -object memory-backend-memfd,id=vm,size=64M,share=on "
	         "-device virtio-mem-pci,memdev=vm,requested-size=64M",
	         NULL,
	         NULL,
	         {"virtio-mem-pci"}},
	};

	(void)state;
	check_table(t, MC_ARRAY_SIZE(t));
}

static void test_output(void **state)
{
	static const struct check t[] = {
	        {RAM "-serial file:/dev/null", NULL, NULL, {"isa-serial", "serial0", REMEDY}},
	        {RAM "-serial file:/dev/null", "isa-serial", NULL, {0}},
	        {RAM "-serial null", NULL, NULL, {0}},
	        {RAM "-serial mon:null", NULL, NULL, {"isa-serial"}},
	        {RAM "-device virtio-serial-pci -chardev file,id=c,path=/dev/null -device "
	             "virtconsole,chardev=c",
	         NULL,
	         NULL,
	         {"virtconsole"}},
	        {RAM "-chardev null,id=c -device isa-debugcon,chardev=c", NULL, NULL, {0}},
	        {RAM
	         "-object filter-dump,id=f,netdev=n,file=/dev/null -netdev hubport,id=n,hubid=0",
	         NULL,
	         NULL,
	         {"filter-dump"}},
	};

	(void)state;
	check_table(t, MC_ARRAY_SIZE(t));
}

static void test_disks(void **state)
{
#define DISK(more) RAM "-drive file.driver=null-co,file.size=1048576,if=none,id=d0" more " "
	static const struct check t[] = {
	        {DISK("") "-device virtio-blk-pci,drive=d0",
	         NULL,
	         NULL,
	         {"disk d0", "writable", REMEDY}},
	        {DISK("") "-device virtio-blk-pci,drive=d0", "disk", NULL, {0}},
	        {DISK("") "-device virtio-blk-pci,drive=d0", "d0", NULL, {0}},
	        {DISK(",read-only=on") "-device virtio-blk-pci,drive=d0", NULL, NULL, {0}},
	        {DISK("") "-device ide-hd,drive=d0", NULL, NULL, {"disk d0"}},
	        {DISK("") "-device virtio-scsi-pci -device scsi-hd,drive=d0",
	         NULL,
	         NULL,
	         {"disk d0"}},
	        {DISK(""), NULL, NULL, {0}},
	        {RAM "-blockdev null-co,node-name=b0,size=1048576 -device "
	             "virtio-blk-pci,drive=b0,id=vb",
	         NULL,
	         NULL,
	         {"/machine/peripheral/vb", "writable"}},
	};

	(void)state;
	check_table(t, MC_ARRAY_SIZE(t));
}

static void test_network(void **state)
{
#define NET(backend) RAM "-netdev " backend ",id=n0 -device virtio-net-pci,netdev=n0,romfile= "
#define DG                                                                                         \
	"dgram,local.type=inet,local.host=127.0.0.1,local.port=0,remote.type=inet,remote.host="    \
	"127.0.0.1,remote.port=9"
	static const struct check t[] = {
	        {NET("user"), NULL, NULL, {"n0", "type user", REMEDY " user"}},
	        {NET("user"), NULL, "n0", {"n0", "type user"}},
	        {NET("user"), "user", NULL, {0}},
	        {NET(DG), NULL, NULL, {0}},
	        {NET(DG), NULL, "n0", {0}},
	        {NET(DG), NULL, "n1,n0", {"n1", "no network back end"}},
	        {NET(DG), NULL, "n9", {"n0", "--relay n0=", "--gate none"}},
	        {NET(DG), NULL, "", {"n0"}},
	        {NET(DG), "dgram", "", {0}},
	        {NET("socket,udp=127.0.0.1:9,localaddr=127.0.0.1:0"),
	         NULL,
	         "n0",
	         {"n0", "type socket"}},
	        {NET("socket,udp=127.0.0.1:9,localaddr=127.0.0.1:0"), NULL, NULL, {0}},
	        {RAM "-netdev user,id=u -netdev hubport,id=h,hubid=0,netdev=u -netdev "
	             "hubport,id=n0,hubid=0 -device e1000,netdev=n0",
	         NULL,
	         "n0",
	         {"hub"}},
	};

	(void)state;
	check_table(t, MC_ARRAY_SIZE(t));
}

/* A tap is named by its interface, which is what `--nic` takes. */
static void test_tap(void **state)
{
	char args[256], ifname[32], option[64];
	struct check c[3] = {{.gated = "t0"}, {.gated = "t1"}, {.gated = ifname}};

	(void)state;
	if (access("/dev/net/tun", R_OK | W_OK) < 0 || geteuid() != 0)
		skip();
	snprintf(ifname, sizeof(ifname), "mcq%d", (int)getpid());
	snprintf(option, sizeof(option), "--nic %s", ifname);
	snprintf(args, sizeof(args),
	         RAM "-netdev tap,id=t0,ifname=%s,script=no,downscript=no -device e1000,netdev=t0",
	         "%s", ifname);
	for (size_t i = 0; i < MC_ARRAY_SIZE(c); i++)
		c[i].args = args;
	c[1].word[0] = option;
	check_table(c, MC_ARRAY_SIZE(c));
}

/* Every refusal in one go, each once. */
static void test_all(void **state)
{
	mc_autofree char *all = NULL;
	char why[512] = "";
	unsigned lines = 0;
	struct guest g;

	(void)state;
	guest_start(&g, "-S -m 64 -machine q35 -device VGA -device virtio-balloon-pci -serial "
	                "file:/dev/null -netdev user,id=n0 -device e1000,netdev=n0");
	assert_int_equal(run_check(&g, NULL, NULL, why, sizeof(why), &all), -EPERM);
	for (const char *p = all; *p; p++)
		lines += *p == '\n';
	assert_int_equal(lines, 6);
	for (const char *const *w =
	             (const char *const[]){"pc.ram", "device VGA", "vga.vram", "virtio-balloon-pci",
	                                   "isa-serial", "type user", NULL};
	     *w; w++)
		assert_non_null(strstr(all, *w));
	assert_int_equal(run_check(&g, NULL, NULL, why, sizeof(why), NULL), -EPERM);
	guest_end(&g);
}

/* Somebody else migrates the guest, or QEMU says that it can't be. */
static void test_migration(void **state)
{
	char dir[] = "/tmp/test-vm-XXXXXX", args[256], why[512] = "";
	struct guest g;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(args, sizeof(args), RAM "-blockdev vvfat,node-name=v,dir=%s,rw=on", "%s", dir);
	guest_start(&g, args);
	assert_int_equal(run_check(&g, NULL, NULL, why, sizeof(why), NULL), -EPERM);
	if (!strstr(why, "live migration"))
		fail_msg("%s", why);
	assert_int_equal(run_check(&g, "migration-blocker", NULL, why, sizeof(why), NULL), 0);
	guest_end(&g);
	rmdir(dir);
	guest_start(&g, RAM "-device virtio-rng-pci");
	assert_int_equal(run_check(&g, NULL, NULL, why, sizeof(why), NULL), 0);
	assert_int_equal(qmp_command(g.q, "migrate-set-parameters",
	                             json_pack("{s:i}", "max-bandwidth", 10000), LIMIT_MS, NULL),
	                 0);
	assert_int_equal(qmp_command(g.q, "migrate",
	                             json_pack("{s:s}", "uri", "exec:cat >/dev/null"), LIMIT_MS,
	                             NULL),
	                 0);
	assert_int_equal(run_check(&g, NULL, NULL, why, sizeof(why), NULL), -EPERM);
	assert_non_null(strstr(why, "migration"));
	guest_end(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_plain),   cmocka_unit_test(test_ram),
	        cmocka_unit_test(test_devices), cmocka_unit_test(test_virtio_mem),
	        cmocka_unit_test(test_output),  cmocka_unit_test(test_disks),
	        cmocka_unit_test(test_network), cmocka_unit_test(test_tap),
	        cmocka_unit_test(test_all),     cmocka_unit_test(test_migration),
	};

	return cmocka_run_group_tests(tests, NULL, guests_sweep);
}
