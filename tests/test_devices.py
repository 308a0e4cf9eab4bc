# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing the state of devices writes no guest RAM: pages are copied while QEMU does it."""

import mctest
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is

PAGE = 4096
# Each at work when the guest is stopped: packets on their way, blocks and random bytes being read; the firmware
# has set up the USB controller, and a transfer of the keyboard is pending.
USED = {"virtio-blk": ["-blockdev", "driver=null-co,node-name=disk,size=16777216,read-zeroes=on,read-only=on",
                       "-device", "virtio-blk-pci,drive=disk"],
        "virtio-rng": ["-object", "rng-builtin,id=random", "-device", "virtio-rng-pci,rng=random"],
        "xhci": ["-device", "qemu-xhci,id=usb", "-device", "usb-kbd,bus=usb.0", "-device", "usb-tablet,bus=usb.0"],
        "pcie": ["-device", "pcie-root-port,id=rp0,chassis=1"]}
WORK = ("mc.counter=500 mc.run=cat^/dev/hwrng>/dev/null&"
        "while^:;do^cat^/dev/vda>/dev/null;echo^3>/proc/sys/vm/drop_caches;done")


def changed_pages(a, b):
    """Guest-physical offsets of pages that differ."""
    return [hex(i) for i in range(0, len(a), PAGE) if a[i:i + PAGE] != b[i:i + PAGE]]


def ram(host):
    with open(f"/proc/{host.holder.pid}/root/dev/shm/{mctest.PREFIX}-ram-vm", "rb") as f:
        return f.read()


def test_device_state_dirties_no_ram():
    with mctest.World(shm="300M") as w:
        g = w.a.guest("vm", mem=128, nic_backend="user", append=f"mc.ip=10.0.2.15/24 {WORK}",
                      extra=[a for args in USED.values() for a in args])
        mctest.wait_for("the guest's boot", lambda: "guest: up" in g.console(), 30)
        for k in ("virtio-net-pci", "virtio-blk-pci", "virtio-rng-pci", "qemu-xhci", "usb-kbd"):
            check(k in g.qmp.cmd("human-monitor-command", **{"command-line": "info qtree"}), f"there is no {k}")
        for i in range(6):
            g.qmp.cmd("input-send-event", events=[{"type": "key", "data": {
                "down": not i % 2, "key": {"type": "qcode", "data": "a"}}}])
            g.qmp.cmd("stop")
            before = ram(w.a)
            g.qmp.cmd("xen-save-devices-state", filename=f"{g.dir}/state", live=False)
            after = ram(w.a)
            check(before == after, f"pages were written with the device state: {changed_pages(before, after)}")
            g.qmp.cmd("cont")
            mctest.wait_for("the guest to write its RAM again", lambda: ram(w.a) != after)
