/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The RAM blocks of real QEMUs. */
#include <linux/capability.h>
#include <sys/syscall.h>

#include "test-guest.h"

/* The 32-bit word at a guest-physical address, as QEMU sees it. */
static uint32_t guest_word(struct guest *g, uint64_t gpa)
{
	mc_autofree char *text = NULL;
	char cmd[64];
	const char *p;

	snprintf(cmd, sizeof(cmd), "xp /1wx 0x%llx", (unsigned long long)gpa);
	assert_int_equal(qmp_hmp(g->q, cmd, LIMIT_MS, &text), 0);
	p = strchr(text, ':');
	assert_non_null(p);
	return (uint32_t)strtoul(p + 1, NULL, 16);
}

/* What is written into the block's file must be what the guest has at @gpa, and what is at hva. */
static void check_block(struct guest *g, const struct vm_info *i, unsigned n, uint64_t gpa,
                        uint64_t offset, uint32_t word)
{
	mc_autoclose int fd = vm_open_block(i, n), mem = -1;
	uint32_t seen = 0;
	struct stat st;
	char path[64];

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_ino, i->block[n].ino);
	assert_int_equal(st.st_dev, i->block[n].dev);
	assert_int_equal(pwrite(fd, &word, sizeof(word), (off_t)offset), sizeof(word));
	assert_int_equal(guest_word(g, gpa), word);
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)g->pid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(pread(mem, &seen, sizeof(seen), (off_t)(i->block[n].hva + offset)),
	                 sizeof(seen));
	assert_int_equal(seen, word);
}

static void test_file_q35(void **state)
{
	struct vm_info i;
	struct guest g;
	struct stat st;

	(void)state;
	guest_start(&g, RAM_FILE "q35,memory-backend=ram");
	guest_inspect(&g, &i);
	assert_int_equal(i.nblocks, 1);
	assert_string_equal(i.block[0].name, "ram");
	assert_int_equal(i.block[0].size, 64 * MIB);
	assert_int_equal(i.block[0].page_size, 4096);
	assert_true(i.block[0].shared);
	assert_true(i.start_time > 0);
	assert_int_equal(stat(g.ram, &st), 0);
	assert_int_equal(st.st_ino, i.block[0].ino);
	check_block(&g, &i, 0, 0x5000, 0x5000, 0x12345678);
	check_block(&g, &i, 0, 63 * MIB, 63 * MIB, 0x9abcdef0);
	assert_int_equal(vm_open_block(&i, 1), -EINVAL);
	/* a deleted file is still the guest's RAM */
	assert_int_equal(unlink(g.ram), 0);
	check_block(&g, &i, 0, 0x6000, 0x6000, 0x11112222);
	vm_info_done(&i);
	assert_null(i.description);
	guest_end(&g);
}

static void test_memfd_pc(void **state)
{
	struct vm_info i;
	struct guest g;

	(void)state;
	guest_start(&g, "-S -m 64 -machine pc,memory-backend=m "
	                "-object memory-backend-memfd,id=m,size=64M,share=on");
	guest_inspect(&g, &i);
	assert_int_equal(i.nblocks, 1);
	assert_string_equal(i.block[0].name, "m");
	check_block(&g, &i, 0, 0x5000, 0x5000, 0xcafe0001);
	vm_info_done(&i);
	guest_end(&g);
}

/* Gives up what /proc/PID/map_files needs. */
static int drop_capabilities(void)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2];

	if (syscall(SYS_capget, &h, d) < 0)
		return -errno;
	d[0].effective &= ~(1U << CAP_SYS_ADMIN);
	d[1].effective &= ~(1U << (CAP_CHECKPOINT_RESTORE - 32));
	return syscall(SYS_capset, &h, d) < 0 ? -errno : 0;
}

/* Without that right the file is found among QEMU's descriptors; no other file passes for it. */
static void test_open_block(void **state)
{
	struct vm_info i, other;
	int status, fd;
	struct guest g;
	struct stat st;
	pid_t pid;

	(void)state;
	guest_start(&g, RAM_FILE "q35,memory-backend=ram");
	guest_inspect(&g, &i);
	fflush(NULL);
	pid = fork();
	if (!pid) {
		if (drop_capabilities() < 0)
			_exit(2);
		fd = vm_open_block(&i, 0);
		_exit(fd < 0 || fstat(fd, &st) < 0 || st.st_ino != i.block[0].ino);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	other = i;
	other.block[0].ino++;
	assert_int_equal(vm_open_block(&other, 0), -ENOENT);
	other = i;
	other.block[0].dev++;
	assert_int_equal(vm_open_block(&other, 0), -ENOENT);
	other = i;
	other.block[0].size += 4096;
	assert_int_equal(vm_open_block(&other, 0), -ENOENT);
	vm_info_done(&i);
	guest_end(&g);
}

/* Two backends that look the same in every respect; their names sort against their addresses. */
static void test_two_nodes(void **state)
{
	static const char *const machine[] = {"q35", "pc-q35-3.1"};
	struct vm_info i;
	struct guest g;

	(void)state;
	for (size_t n = 0; n < MC_ARRAY_SIZE(machine); n++) {
		char args[512];

		snprintf(args, sizeof(args),
		         "-S -m 128 -smp 2 -machine %s "
		         "-object memory-backend-memfd,id=zeta,size=64M,share=on "
		         "-object memory-backend-memfd,id=alpha,size=64M,share=on "
		         "-numa node,nodeid=0,memdev=zeta -numa node,nodeid=1,memdev=alpha",
		         machine[n]);
		guest_start(&g, args);
		guest_inspect(&g, &i);
		assert_int_equal(i.nblocks, 2);
		assert_string_equal(i.block[0].name, "alpha");
		assert_string_equal(i.block[1].name, "zeta");
		assert_int_not_equal(i.block[0].ino, i.block[1].ino);
		check_block(&g, &i, 1, 0x5000, 0x5000, 0x0000aaaa);
		check_block(&g, &i, 0, 64 * MIB + 0x5000, 0x5000, 0x0000bbbb);
		assert_int_equal(guest_word(&g, 0x5000), 0xaaaa);
		vm_info_done(&i);
		guest_end(&g);
	}
}

/* Memory on both sides of the hole below 4 GiB is one block. */
static void test_above_4g(void **state)
{
	struct vm_info i;
	struct guest g;

	(void)state;
	guest_start(&g, "-S -m 3G -machine q35,memory-backend=m "
	                "-object memory-backend-memfd,id=m,size=3G,share=on");
	guest_inspect(&g, &i);
	assert_int_equal(i.nblocks, 1);
	check_block(&g, &i, 0, 0x5000, 0x5000, 0x1);
	check_block(&g, &i, 0, 4096 * MIB + 0x5000, 2048 * MIB + 0x5000, 0x2);
	vm_info_done(&i);
	guest_end(&g);
}

/* Huge pages of 2 MiB that the kernel keeps; negative: none to be had. */
static int huge_pages(void)
{
	FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "re");
	int n = -1;

	if (f && fscanf(f, "%d", &n) != 1)
		n = -1;
	if (f)
		fclose(f);
	return n;
}

static void set_huge_pages(int n)
{
	FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "we");

	if (f) {
		fprintf(f, "%d", n);
		fclose(f);
	}
}

static void test_huge_pages(void **state)
{
	int before = huge_pages();
	struct vm_info i;
	struct guest g;

	(void)state;
	if (before < 0)
		skip();
	set_huge_pages(before + 40);
	if (huge_pages() < before + 40) {
		set_huge_pages(before);
		skip();
	}
	guest_start(&g, "-S -m 64 -machine q35,memory-backend=m -object "
	                "memory-backend-memfd,id=m,size=64M,share=on,hugetlb=on,hugetlbsize=2M");
	guest_inspect(&g, &i);
	set_huge_pages(before);
	assert_int_equal(i.block[0].page_size, 2 * MIB);
	vm_info_done(&i);
	guest_end(&g);
}

static void test_not_mapped(void **state)
{
	char why[256] = "";
	struct vm_info i;
	struct guest g;

	(void)state;
	guest_start(&g, RAM_FILE "q35,memory-backend=ram "
	                         "-object memory-backend-memfd,id=spare,size=16M,share=on");
	assert_int_equal(vm_inspect(g.q, &i, why, sizeof(why)), -ENOENT);
	assert_non_null(strstr(why, "spare"));
	guest_end(&g);
}

static void test_dead_qemu(void **state)
{
	char why[256] = "";
	struct vm_info i, again;
	struct guest g;

	(void)state;
	guest_start(&g, RAM_FILE "q35,memory-backend=ram");
	guest_inspect(&g, &i);
	guest_kill(&g);
	assert_true(vm_open_block(&i, 0) < 0);
	assert_true(vm_inspect(g.q, &again, why, sizeof(why)) < 0);
	assert_true(why[0]);
	vm_info_done(&i);
	guest_end(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_file_q35),   cmocka_unit_test(test_memfd_pc),
	        cmocka_unit_test(test_open_block), cmocka_unit_test(test_two_nodes),
	        cmocka_unit_test(test_above_4g),   cmocka_unit_test(test_huge_pages),
	        cmocka_unit_test(test_not_mapped), cmocka_unit_test(test_dead_qemu),
	};

	return cmocka_run_group_tests(tests, NULL, guests_sweep);
}
