# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's QEMU, and its monitor."""

import json
import os
import shutil
import socket
import zlib

from .basics import TOP, Failure, check, kvm_usable, wait_for

GUEST = os.path.join(TOP, "build", "guest")
PREFIX = "mct"
LAN = "10.77.0"


class Qmp:
    """A minimal QMP client for the tests' own monitor."""

    def __init__(self, path, timeout=10):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.file = self.sock.makefile("r")
        self.events = []
        self._read()
        self.cmd("qmp_capabilities")

    def _read(self):
        line = self.file.readline()
        if not line:
            raise Failure("QMP connection closed")
        return json.loads(line)

    def cmd(self, name, **args):
        self.sock.sendall(json.dumps({"execute": name, "arguments": args}).encode() + b"\n")
        while True:
            m = self._read()
            if "event" in m:
                self.events.append(m)
            elif "error" in m:
                raise Failure(f"QMP {name}: {m['error']['desc']}")
            elif "return" in m:
                return m["return"]

    def close(self):
        self.file.close()
        self.sock.close()


class Guest:
    """One QEMU process on a host."""

    def __init__(self, host, name, mem=256, incoming=False, nics=1, append="", extra=(), bios=False,
                 ram="file", smp=1, machine="q35", serial=True, nic_backend="dgram", reboot=False):
        self.host, self.name, self.mem = host, name, mem
        self.dir = os.path.join(host.dir, name)
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        self.qmp_path = f"{self.dir}/qmp"
        self.qmp2_path = f"{self.dir}/qmp2"
        self.log = f"{self.dir}/console"
        self.args = self._command(mem, incoming, nics, append, extra, bios, ram, smp, machine, serial,
                                  nic_backend)
        if reboot:
            self.args.remove("-no-reboot")
        self.nics = nics
        self.proc = host.spawn(*self.args, log=f"{self.dir}/qemu.log")
        self.pid = self.proc.pid
        wait_for(f"QMP of {name}", lambda: os.path.exists(self.qmp2_path) or self.proc.poll() is not None)
        check(self.proc.poll() is None, f"QEMU did not start: {open(self.dir + '/qemu.log').read()}")
        self._qmp = None

    def _ram_args(self, ram, mem):
        f = f"/dev/shm/{PREFIX}-ram-{self.name}"
        if ram == "file":
            if os.path.exists(f):
                os.unlink(f)
            return ["-object", f"memory-backend-file,id=ram,size={mem}M,mem-path={f},share=on"], "ram"
        if ram == "memfd":
            return ["-object", f"memory-backend-memfd,id=ram,size={mem}M,share=on"], "ram"
        if ram == "numa":
            a = []
            for i in (0, 1):
                a += ["-object", f"memory-backend-memfd,id=ram{i},size={mem // 2}M,share=on",
                      "-numa", f"node,nodeid={i},memdev=ram{i}"]
            return a, None
        if ram == "private":
            return [], None
        raise ValueError(ram)

    def _command(self, mem, incoming, nics, append, extra, bios, ram, smp, machine, serial, nic_backend):
        ram_args, backend = self._ram_args(ram, mem)
        m = machine + (f",memory-backend={backend}" if backend else "") + ",suppress-vmdesc=on"
        a = ["qemu-system-x86_64", "-name", self.name, "-accel", "kvm" if kvm_usable() else "tcg",
             "-machine", m, "-m", f"{mem}M", "-smp", str(smp), *ram_args,
             "-nodefaults", "-vga", "none", "-display", "none", "-no-reboot",
             "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
             "-qmp", f"unix:{self.qmp2_path},server=on,wait=off"]
        if not bios:
            a += ["-kernel", f"{GUEST}/vmlinuz", "-initrd", f"{GUEST}/initrd", "-append",
                  "quiet panic=-1 net.ifnames=0 mitigations=off " + ("console=ttyS0 " if serial else "") + append]
        if serial:
            a += ["-serial", f"file:{self.log}"]
        for i in range(nics):
            if nic_backend == "dgram":
                a += ["-netdev", f"dgram,id=n{i},local.type=unix,local.path={self.dir}/q{i},"
                      f"remote.type=unix,remote.path={self.dir}/r{i}"]
            else:
                a += ["-netdev", f"{nic_backend},id=n{i}"]
            a += ["-device", f"virtio-net-pci,netdev=n{i},romfile=,mac={self.mac(i)}"]
        a += list(extra)
        if incoming:
            a += ["-incoming", "defer", "-global", "migration.send-configuration=off"]
        return a

    def mac(self, nic):
        """A guest and its standby have one address, two guests on a LAN never."""
        return f"52:54:00:77:{zlib.crc32(self.name.encode()) & 0xff:02x}:{nic + 1:02x}"

    def relay_args(self):
        out = []
        for i in range(self.nics):
            out += ["--relay", f"n{i}=unix:{self.dir}/r{i},tap=tap{i}"]
        return out

    @property
    def qmp(self):
        """The test's own monitor (the second one)."""
        if self._qmp is None:
            self._qmp = Qmp(self.qmp2_path)
        return self._qmp

    def status(self):
        return self.qmp.cmd("query-status")["status"]

    def kill(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        if self._qmp:
            self._qmp.close()
            self._qmp = None

    def console(self):
        try:
            with open(self.log, encoding="utf-8", errors="replace") as f:
                return f.read()
        except OSError:
            return ""
