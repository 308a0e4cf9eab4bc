# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain of real libvirt daemons, one a host: what to change is said, done, and then it is protected."""

import os
import signal
import subprocess

import mctest
from mctest import PORT, check

HELPER = f"{mctest.TOP}/contrib/mc-libvirt"
SOCKETS = "/var/lib/libvirt/qemu/microcheckpoint-vm"
# As virt-install would write it, without a disk.
DOMAIN = """<domain type='qemu'><name>vm</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<interface type='ethernet'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface></devices></domain>"""


# QEMUs of libvirt become orphans, and it waits until one that it ended is reaped: not every init of a container does that.
REAPER = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
daemon = subprocess.Popen(sys.argv[1:])
while os.wait()[0] != daemon.pid:
    pass
"""


class Libvirt:
    """libvirtd of a host, with folders of its own."""

    def __init__(self, host):
        self.host = host
        self.conf = f"{host.dir}/libvirt"
        os.makedirs(self.conf)
        with open(f"{self.conf}/qemu.conf", "w", encoding="ascii") as f:
            f.write('security_driver = "none"\ncgroup_controllers = []\nnamespaces = []\nstdio_handler = "file"\n')
        with open(f"{self.conf}/libvirtd.conf", "w", encoding="ascii") as f:
            f.write('auth_unix_rw = "none"\n')
        cache = f"{mctest.TOP}/build/libvirt-{host.name}"
        os.makedirs(cache, exist_ok=True)
        # Only this host sees what is mounted there. What libvirt finds out about QEMU takes it a while, and is kept.
        host.run("sh", "-euc", f"""
            for d in /run/libvirt /var/lib/libvirt /var/log/libvirt; do
                mkdir -p $d; mount -t tmpfs -o mode=755 tmpfs $d; done
            install -d -o libvirt-qemu -g libvirt-qemu -m 750 /var/lib/libvirt/qemu
            mkdir -p /var/cache/libvirt; mount --bind {cache} /var/cache/libvirt
            mount --bind {self.conf} /etc/libvirt""")
        self.daemon = host.spawn("python3", "-c", REAPER, "libvirtd", "--pid-file", f"{host.dir}/libvirtd.pid", log=f"{host.dir}/libvirtd.log")
        self.bin = f"{host.dir}/bin"
        os.makedirs(self.bin)
        with open(f"{self.bin}/mcctl", "w", encoding="ascii") as f:
            f.write(f'#!/bin/sh\nexec {mctest.BUILD}/mcctl --bus={host.bus} "$@"\n')
        os.chmod(f"{self.bin}/mcctl", 0o755)

    def start(self):
        mctest.wait_for(f"libvirtd on {self.host.name}", lambda: self.virsh("version", ok=False).returncode == 0, 60, every=0.1)

    def call(self, *args, ok=True):
        r = subprocess.run([*self.host.enter(), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           timeout=60, check=False, env=dict(os.environ, PATH=f"{self.bin}:{os.environ['PATH']}"))
        check(not ok or r.returncode == 0, f"{' '.join(args)[:200]}: exit {r.returncode}: {r.stdout}{r.stderr}")
        return r

    def virsh(self, *args, ok=True):
        return self.call("virsh", "-q", "-c", "qemu:///system", *args, ok=ok)

    def helper(self, *args, ok=True):
        return self.call("python3", HELPER, *args, ok=ok)

    def define(self, xml):
        path = f"{self.host.dir}/define.xml"
        with open(path, "w", encoding="utf-8") as f:
            f.write(xml)
        self.virsh("define", path)

    def pid(self):
        """The domain's QEMU."""
        return int(self.call("cat", "/run/libvirt/qemu/vm.pid").stdout)


def refused_devices(lib):
    """A domain as a desktop's tools write it: each device is named; those that put out nothing aren't."""
    path = f"{lib.host.dir}/desktop.xml"
    with open(path, "w", encoding="utf-8") as f:
        f.write(DOMAIN.replace("</devices>", "<serial type='pty'/><serial type='null'/><channel type='unix'/><tpm model='tpm-crb'/>"
                               "<sound model='ich9'/><video><model type='qxl'/></video><rng model='virtio'/></devices>"))
    out = lib.helper("check", path, ok=False).stdout.splitlines()
    kinds = sorted(line.split(":")[0] for line in out)
    check([k for k in kinds if k in ("serial", "channel", "tpm", "sound", "video", "rng")] ==
          ["channel", "serial", "sound", "tpm", "video"], f"{out}")
    r = lib.helper("protect", path, "--accept", "isa-serial,virtserialport", ok=False)
    check(r.returncode == 1 and "serial:" not in r.stderr and "channel:" not in r.stderr and "tpm:" in r.stderr, r.stderr)


def test_domain():
    """check, xml, define, standby, protect by the helper; the standby's libvirt shows it running after a failover."""
    with mctest.World() as w:
        one, two = Libvirt(w.a), Libvirt(w.b)
        w.a.start()
        w.b.start()
        one.start()
        two.start()
        one.define(DOMAIN)
        refused_devices(one)
        for what, word in (("nosuch", "virsh list --all"), ("/etc/hostname", "isn't XML")):
            r = one.helper("check", what, ok=False)
            check(r.returncode == 1 and word in r.stderr and "Traceback" not in r.stderr, f"{what}: {r.returncode} {r.stderr}")
        r = one.helper("check", "vm", ok=False)
        check(r.returncode == 1 and all(word in r.stdout for word in ("memory:", "monitor:", "balloon:", "interface")), r.stdout)
        r = one.helper("protect", "vm", "--peer", "192.0.2.1:7911", ok=False)
        check(r.returncode == 1 and "change the domain first" in r.stderr, r.stderr)
        changed, standby = one.helper("xml", "vm").stdout, one.helper("xml", "vm", "--standby").stdout
        one.define(changed)
        two.define(standby)
        check("can be protected" in one.helper("check", "vm").stdout, "check after the change")
        one.virsh("start", "vm")
        two.virsh("start", "vm")
        w.b.mcctl("standby", "vm", "--qmp", f"{SOCKETS}.qmp", "--relay", f"mc0=unix:{SOCKETS}.r0,tap=tap0", "--insecure")
        one.helper("protect", "vm", "--peer", f"{w.b.addr}:{PORT}", "--insecure")
        w.a.wait_state("PROTECTED")
        w.a.mcctl("checkpoint", "vm")
        check(two.virsh("domstate", "vm").stdout.strip() == "paused", two.virsh("domstate", "vm").stdout)
        os.kill(one.pid(), signal.SIGKILL)
        w.b.wait_state("ACTIVE", timeout=10)
        mctest.wait_for("virsh to show it running", lambda: two.virsh("domstate", "vm").stdout.strip() == "running", 5)
        two.virsh("destroy", "vm")
