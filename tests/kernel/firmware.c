/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest so small that it runs at once under emulation within emulation: QEMU's firmware
 * (-bios) that does what tests/guest/memcheck.c and counter.c do.  It fills pages with a
 * pattern made of generation and address, checks before that they hold the generation before,
 * and tells each generation to the world in a frame of its e1000 NIC, when it has one.
 *
 * Its report stands at guest address 0x1000 (struct report), where tests read it in the RAM
 * file.  Image of 64 KiB, below 4 GiB; it runs from RAM at 0x10000, 32 bit, without paging,
 * and sleeps between generations until its timer (100 Hz) wakes it.
 */
#include <stdint.h>

#define REPORT    ((volatile struct report *)0x1000)
#define RING      ((volatile struct descriptor *)0x2000)
#define FRAME     ((volatile uint8_t *)0x20000) /* RING_SIZE of 2 KiB */
#define IDT       ((volatile uint32_t *)0x4000)
#define RAM       0x200000u
#define PAGES     256u /* one in 16 of 16 MiB */
#define STRIDE    0x10000u
#define WORDS     32u /* of a page */
#define RING_SIZE 8u
#define FRAME_LEN 1500u /* a few of them fill a gate */

#define APIC 0xfee00000u

#define PCI_ADDRESS 0xcf8
#define PCI_DATA    0xcfc
#define E1000_ID    0x100e8086u
#define E1000_BAR   0xfe000000u
#define E1000_TCTL  0x400
#define E1000_TDBAL 0x3800
#define E1000_TDLEN 0x3808
#define E1000_TDH   0x3810
#define E1000_TDT   0x3818

struct report {
	uint32_t magic; /* "MCFW" */
	uint32_t generation;
	uint32_t bad;
	uint32_t nic;
	uint32_t sent;
};

struct descriptor {
	uint32_t address, address_high;
	uint32_t length_cmd; /* 16 bits length, 8 checksum, 8 command */
	uint32_t status;
};

__asm__(".section .start, \"ax\"\n"
        ".code16\n"
        "start16:\n"
        "  cli\n"
        "  lgdtl %cs:gdt_ptr - start16\n"
        "  movl %cr0, %eax\n"
        "  orl $1, %eax\n"
        "  movl %eax, %cr0\n"
        "  ljmpl $8, $start32\n"
        ".code32\n"
        "start32:\n"
        "  movw $16, %ax\n"
        "  movw %ax, %ds\n"
        "  movw %ax, %es\n"
        "  movw %ax, %ss\n"
        "  movl $0x9000, %esp\n"
        "  inb $0x92, %al\n"
        "  orb $2, %al\n" /* address line 20 */
        "  outb %al, $0x92\n"
        "  movl $rom_text, %esi\n" /* runs from RAM */
        "  movl $ram_text, %edi\n"
        "  movl $text_size, %ecx\n"
        "  rep movsb\n"
        "  movl $run, %eax\n"
        "  call *%eax\n"
        ".align 8\n"
        "gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff\n"
        "gdt_ptr: .word 23\n"
        "  .long gdt\n"
        ".section .reset, \"ax\"\n"
        ".code16\n"
        "  .byte 0xe9\n" /* jmp start16: the segment's base is the image's */
        "  .word -0xfff3\n"
        ".code32\n"
        ".text\n"
        "timer:\n"
        "  pushl %eax\n"
        "  movb $0x20, %al\n" /* end of interrupt */
        "  outb %al, $0x20\n"
        "  popl %eax\n"
        "  iret\n");

void run(void);
void timer(void);

static uint32_t in32(uint16_t port)
{
	uint32_t v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static void out32(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}

static void out8(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

struct table {
	uint16_t limit;
	const volatile void *base;
} __attribute__((packed));

/* Interrupt 0x20 at 100 Hz from the timer by way of the interrupt controller, no other. */
static void start_timer(void)
{
	static const uint16_t set_up[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4},
	                                     {0x21, 1},    {0x21, 0xfe}, {0x43, 0x34},
	                                     {0x40, 0x9c}, {0x40, 0x2e}};
	/* Interrupts read it, and the one in the ROM is gone after a takeover. */
	static const uint64_t gdt[] = {0, 0x00cf9a000000ffff, 0x00cf92000000ffff};
	const struct table gdt_at = {sizeof(gdt) - 1, gdt}, idt_at = {0x21 * 8 - 1, IDT};

	IDT[0x40] = 8u << 16 | ((uint32_t)timer & 0xffff);
	IDT[0x41] = ((uint32_t)timer & 0xffff0000) | 0x8e00;
	__asm__ volatile("lgdt %0; lidt %1" : : "m"(gdt_at), "m"(idt_at));
	*(volatile uint32_t *)(APIC + 0xf0) = 0x1ff;
	*(volatile uint32_t *)(APIC + 0x350) = 0x700; /* what the controller asks for */
	for (uint32_t i = 0; i < sizeof(set_up) / sizeof(set_up[0]); i++)
		out8(set_up[i][0], (uint8_t)set_up[i][1]);
}

static uint32_t pattern(uint32_t generation, uint32_t address)
{
	uint32_t x = generation * 0x9e3779b1u + address;

	x ^= x >> 15;
	return x * 0x85ebca77u;
}

static void page(uint32_t generation, uint32_t i)
{
	volatile uint32_t *w = (volatile uint32_t *)(RAM + i * STRIDE);

	for (uint32_t k = 0; k < WORDS; k++, w += 1024 / WORDS) {
		if (generation > 1 && *w != pattern(generation - 1, (uint32_t)w))
			REPORT->bad++;
		*w = pattern(generation, (uint32_t)w);
	}
}

static volatile uint32_t *nic_register(uint32_t offset)
{
	return (volatile uint32_t *)(E1000_BAR + offset);
}

static uint32_t find_nic(void)
{
	for (uint32_t slot = 0; slot < 32; slot++) {
		uint32_t at = 0x80000000u | slot << 11;

		out32(PCI_ADDRESS, at);
		if (in32(PCI_DATA) != E1000_ID)
			continue;
		out32(PCI_ADDRESS, at | 0x10);
		out32(PCI_DATA, E1000_BAR);
		out32(PCI_ADDRESS, at | 4);
		out32(PCI_DATA, 6); /* memory, bus master */
		*nic_register(E1000_TDBAL) = (uint32_t)RING;
		*nic_register(E1000_TDLEN) = RING_SIZE * sizeof(struct descriptor);
		*nic_register(E1000_TDH) = 0;
		*nic_register(E1000_TDT) = 0;
		*nic_register(E1000_TCTL) = 2 | 8; /* enable, pad short frames */
		return 1;
	}
	return 0;
}

/* Broadcast, from the first MAC address of QEMU's range, type 0x88b5, "MCFW", generation. */
static void tell(uint32_t generation)
{
	static const uint8_t head[18] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00,
	                                 0x12, 0x34, 0x56, 0x88, 0xb5, 'M',  'C',  'F',  'W'};
	volatile struct descriptor *d = &RING[REPORT->sent % RING_SIZE];
	volatile uint8_t *f = FRAME + REPORT->sent % RING_SIZE * 2048;

	for (uint32_t i = 0; i < 60; i++) /* the rest stays 0 */
		f[i] = i < sizeof(head) ? head[i] : 0;
	for (uint32_t i = 0; i < 4; i++)
		f[sizeof(head) + i] = (uint8_t)(generation >> (24 - 8 * i));
	d->address = (uint32_t)f;
	d->address_high = 0;
	d->status = 0;
	d->length_cmd = FRAME_LEN | 0x0b000000u; /* end of packet, checksum, report status */
	REPORT->sent++;
	*nic_register(E1000_TDT) = REPORT->sent % RING_SIZE;
}

void run(void)
{
	REPORT->bad = 0;
	REPORT->sent = 0;
	REPORT->nic = find_nic();
	REPORT->magic = 0x5746434d;
	start_timer();
	for (uint32_t generation = 1;; generation++) {
		REPORT->generation = generation;
		for (uint32_t i = 0; i < PAGES; i++)
			page(generation, i);
		if (REPORT->nic)
			tell(generation);
		__asm__ volatile("sti; hlt; cli" : : : "memory");
	}
}
