/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a guest may consist of.  A type belongs here when its state is wholly in RAM blocks and
 * device state, and when it puts out nothing but network frames, or by a character device,
 * which is checked apart.
 */
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

static const char *const devices[] = {
        /* chipsets */
        "ICH9-LPC",
        "ICH9-SMB",
        "ICH9 SMB",
        "PIIX3",
        "PIIX3-xen",
        "PIIX4_PM",
        "i440FX",
        "i440FX-pcihost",
        "mch",
        "q35-pcihost",
        "ich9-ahci",
        "piix3-ide",
        "piix4-ide",
        "smbus-eeprom",
        "fw_cfg_io",
        "cfi.pflash01",
        /* interrupts, clocks, the ISA bus' inhabitants */
        "apic",
        "kvm-apic",
        "ioapic",
        "kvm-ioapic",
        "isa-i8259",
        "kvm-i8259",
        "isa-pit",
        "kvm-pit",
        "hpet",
        "kvmclock",
        "kvmvapic",
        "mc146818rtc",
        "i8257",
        "i8042",
        "ps2-kbd",
        "ps2-mouse",
        "port92",
        "vmport",
        "vmmouse",
        "isa-pcspk",
        "isa-fdc",
        "floppy",
        "isa-serial",
        "serial",
        "isa-parallel",
        "isa-debugcon",
        "i6300esb",
        "ib700",
        "pvpanic",
        "pvpanic-pci",
        "vmcoreinfo",
        /* bridges */
        "pcie-root-port",
        "ioh3420",
        "pcie-pci-bridge",
        "pci-bridge",
        "i82801b11-bridge",
        "x3130-upstream",
        "xio3130-downstream",
        "pxb",
        "pxb-pcie",
        "pxb-host",
        "pxb-bridge-seat",
        "pci-bridge-seat",
        "intel-iommu",
        "pc-dimm",
        /* virtio */
        "virtio-net-pci",
        "virtio-net-pci-transitional",
        "virtio-net-pci-non-transitional",
        "virtio-net-device",
        "virtio-rng-pci",
        "virtio-rng-pci-transitional",
        "virtio-rng-pci-non-transitional",
        "virtio-rng-device",
        "virtio-blk-pci",
        "virtio-blk-pci-transitional",
        "virtio-blk-pci-non-transitional",
        "virtio-blk-device",
        "virtio-scsi-pci",
        "virtio-scsi-pci-transitional",
        "virtio-scsi-pci-non-transitional",
        "virtio-scsi-device",
        "virtio-serial-pci",
        "virtio-serial-pci-transitional",
        "virtio-serial-pci-non-transitional",
        "virtio-serial-device",
        "virtconsole",
        "virtserialport",
        "virtio-keyboard-pci",
        "virtio-keyboard-device",
        "virtio-mouse-pci",
        "virtio-mouse-device",
        "virtio-tablet-pci",
        "virtio-tablet-device",
        /* network cards */
        "e1000",
        "e1000-82544gc",
        "e1000-82545em",
        "e1000e",
        "igb",
        "rtl8139",
        "ne2k_pci",
        "pcnet",
        "vmxnet3",
        /* disks, which are checked apart */
        "ide-cd",
        "ide-hd",
        "scsi-cd",
        "scsi-hd",
        "lsi53c895a",
        "pvscsi",
        "usb-storage",
        /* USB */
        "qemu-xhci",
        "nec-usb-xhci",
        "base-xhci",
        "usb-ehci",
        "ich9-usb-ehci1",
        "ich9-usb-ehci2",
        "ich9-usb-uhci1",
        "ich9-usb-uhci2",
        "ich9-usb-uhci3",
        "ich9-usb-uhci4",
        "ich9-usb-uhci5",
        "ich9-usb-uhci6",
        "piix3-usb-uhci",
        "piix4-usb-uhci",
        "pci-ohci",
        "usb-hub",
        "usb-kbd",
        "usb-mouse",
        "usb-tablet",
        "usb-wacom-tablet",
        "usb-serial",
        /* serial ports on PCI */
        "pci-serial",
        "pci-serial-2x",
        "pci-serial-4x",
};

static const char *const objects[] = {
        "memory-backend-ram",
        "memory-backend-file",
        "memory-backend-memfd",
        "thread-context",
        "iothread",
        "main-loop",
        "throttle-group",
        "rng-random",
        "rng-builtin",
        "secret",
        "secret_keyring",
        "tls-creds-x509",
        "tls-creds-psk",
        "tls-creds-anon",
        "tls-cipher-suites",
        "authz-simple",
        "authz-list",
        "authz-list-file",
};

static bool one_of(const char *const *list, size_t n, const char *type)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(list[i], type))
			return true;
	return false;
}

bool vm_type_allowed(const char *type)
{
	static const char cpu[] = "-x86_64-cpu";
	size_t n = strlen(type);

	if (n > strlen(cpu) && !strcmp(type + n - strlen(cpu), cpu))
		return true;
	return one_of(devices, MC_ARRAY_SIZE(devices), type);
}

bool vm_object_allowed(const char *type)
{
	return one_of(objects, MC_ARRAY_SIZE(objects), type);
}
