# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts with supervisors, buses and QEMUs in one machine with Debian's kernel: QEMU under
emulation within emulation, and a guest small enough for that (tests/kernel/firmware.c)."""

import json
import re
import struct

from initramfs import build_firmware, build_frames
from kernelvm import OUT, VM
from mctest import Failure, check, wait_for

BUS = """<busconfig><type>custom</type><listen>unix:path=/run/{0}/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy></busconfig>"""
RAM_MIB = 32
PORT = {"a": 7911, "b": 7912}
SMALL = ["--max-memory", "64M", "--slab-size", "1M", "--delta-cache", "8M"]
GATE_MODULES = ["tun", "ifb numifbs=0", "sch_plug", "act_mirred", "act_gact", "cls_u32", "sch_ingress",
                "bridge", "veth"]


class Hosts:
    """Hosts a and b in one machine, told apart by bus, folders and port.

    gated: the guests have a NIC on a tap, tapa or tapb, that the plug gate holds; each tap is in a
    bridge of its own, on which frames are watched (seen()).  What is b's is in a network namespace, netb.
    addr: the address of both, which the shell's commands in `link` set up with more `modules` and `parts` of VM.
    """

    def __init__(self, files=(), gated=False, addr="127.0.0.1", link="", modules=(), parts=()):
        self.gated, self.addr = gated, addr
        files = [(build_firmware(), "/firmware"), (build_frames(), "/bin/frames"), *files]
        self.vm = VM(parts=["dbus", "mc", "qemu", "ip", *parts], files=files, smp=2, mem=1024,
                     modules=GATE_MODULES if gated else modules)
        self.vm.sh("ip link set lo up; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6;" + link)
        if gated:
            self.vm.sh("ip netns add netb")
            self.vm.run(*self.inside("b"), "sh", "-euc", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
            for h in PORT:
                self.make_network(h)
        self.qemu, self.before = {}, {}
        for h in PORT:
            self.vm.sh(f"mkdir -p /run/{h}/state /run/{h}/run")
            self.vm.put(f"/run/{h}/bus.conf", BUS.format(h))
            self.start(h)

    def make_network(self, h):
        """A bridge with a tap for the guest and a cable to where its frames are watched."""
        self.vm.run(*self.inside(h), "sh", "-euc", f"ip tuntap add tap{h} mode tap; ip link add br{h} type bridge; "
                    f"ip link add out{h} type veth peer name in{h}; for i in tap{h} in{h}; do ip link set $i master br{h}; "
                    f"done; for i in tap{h} br{h} in{h} out{h}; do ip link set $i up; done")
        self.vm.spawn(*self.inside(h), "frames", f"out{h}", f"/run/frames.{h}").wait_for("ready")

    def start(self, h):
        """Starts a host's bus and supervisor."""
        self.vm.sh(f"rm -f /run/{h}/bus")
        self.vm.spawn("dbus-daemon", f"--config-file=/run/{h}/bus.conf", "--nofork")
        self.vm.spawn("sh", "-c", f"until [ -S /run/{h}/bus ]; do sleep 0.02; done; exec mc-supervisor "
                      f"--bus=unix:path=/run/{h}/bus --runtime-dir /run/{h}/run --state-dir /run/{h}/state "
                      f"--user nobody --listen {self.addr}:{PORT[h]} >>/run/{h}/log 2>&1")

    def inside(self, host):
        """The words that run a command in a host's network."""
        return ["ip", "netns", "exec", "netb"] if self.gated and host == "b" else []

    def network(self, host):
        """All that the kernel tells of a host's links, qdiscs and filters, but for the timers of its bridge."""
        text = self.vm.run(*self.inside(host), "sh", "-euc", f"ip -d link; tc qdisc; tc filter show dev tap{host} ingress; "
                           f"tc filter show dev tap{host} egress").out
        return re.sub(r"_timer *[\d.]*", "", text)

    def die(self, host):
        """All that runs on a host is killed at once, as by a power failure; its network stays."""
        self.vm.run("sh", "-c", 'kill -9 $(grep -ls "/run/$1/" /proc/[0-9]*/cmdline | cut -d/ -f3) 2>/dev/null', "sh", host,
                    ok=False)

    def ready(self):
        for h in PORT:
            wait_for(f"supervisor on {h}", lambda h=h: self.mcctl(h, "status", ok=False).status == 0, 60, every=0.2)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        if kind:
            for h in PORT:
                print(f"--- {h}: " + self.vm.run("cat", f"/run/{h}/log", ok=False).out[-4000:], flush=True)
        self.vm.__exit__(kind, value, tb)

    def guest(self, host, name="vm", standby=False, locked=True, nic=True):
        """Starts a QEMU; its monitor is /run/HOST/NAME.qmp, its RAM /dev/shm/HOST-NAME."""
        # mem-lock fills the translator's buffer too: a small one.
        args = ["/usr/bin/qemu-system-x86_64", "-name", "vm", "-accel", "tcg,tb-size=8", "-machine",
                "pc,memory-backend=ram,suppress-vmdesc=on", "-m", str(RAM_MIB), "-object",
                f"memory-backend-file,id=ram,size={RAM_MIB}M,mem-path=/dev/shm/{host}-{name},share=on", "-nodefaults",
                "-vga", "none", "-display", "none", "-bios", "/firmware", "-qmp",
                f"unix:/run/{host}/{name}.qmp,server=on,wait=off"]
        if self.gated and nic:
            args += ["-netdev", f"tap,id=n0,ifname=tap{host},script=no,downscript=no", "-device",
                     "e1000,netdev=n0,romfile=,mac=52:54:00:12:34:56"]
        args += ["-overcommit", "mem-lock=on"] if locked else []
        args += ["-incoming", "defer", "-global", "migration.send-configuration=off"] if standby else []
        self.vm.sh(f"rm -f /dev/shm/{host}-{name} /run/{host}/{name}.qmp")
        job = self.vm.spawn(*self.inside(host), *args)
        # As a client sees it: the socket is there before QEMU listens on it.
        self.vm.run(*self.inside(host), "sh", "-euc", f"until grep -q '00010000 .*/run/{host}/{name}.qmp' /proc/net/unix; do sleep 0.02; done", timeout=60)
        self.qemu[host, name] = job
        return job

    def pid(self, host, name):
        """The process of that name on a host."""
        found = self.vm.run("sh", "-c", 'grep -ls "^$1" $(grep -ls "/run/$2/" /proc/[0-9]*/cmdline | sed s/cmdline/comm/) | '
                            "cut -d/ -f3", "sh", name[:15], host).out.split()
        check(len(found) == 1, f"{name} of {host}: {found}")
        return int(found[0])

    def mcctl(self, host, *args, ok=True):
        return self.vm.run("mcctl", f"--bus=unix:path=/run/{host}/bus", *args, ok=ok, timeout=60)

    def ask(self, host, *args):
        """mcctl, again and again while QEMU is too busy with its own start to answer its monitor."""
        def asked():
            r = self.mcctl(host, *args, ok=False)
            check(r.status == 0 or self.busy(r), f"mcctl {args} on {host}: {r.err}")
            return r.status == 0
        wait_for(f"mcctl {args[0]} on {host}", asked, 60)

    @staticmethod
    def busy(r):
        """QEMU did not answer in time."""
        return "can't connect" in r.err or "can't be examined" in r.err

    def refused(self, host, args, *words):
        """mcctl refuses with these words; False while QEMU is busy."""
        r = self.mcctl(host, *args, ok=False)
        said = all(w in r.err for w in words)
        check(r.status == 1 and (said or self.busy(r)), f"mcctl {args} on {host}: {vars(r)}")
        return said

    def status(self, host):
        return json.loads(self.mcctl(host, "status", "vm", "--json").out)

    def wait_status(self, host, timeout=60, **want):
        """Until the guest's properties are these."""
        last = {}

        def good():
            last.update(self.status(host))
            return all(last[k] == v for k, v in want.items())
        try:
            wait_for(f"{want} on {host}", good, timeout, every=0.1)
        except Failure as e:
            raise Failure(f"{e}; it is {last.get('State')}, {last.get('Reason')}: {last.get('Message')}") from e

    def epochs_go_on(self, host, n):
        first = self.status(host)["CommittedEpoch"]
        wait_for(f"{n} epochs after {first}", lambda: self.status(host)["CommittedEpoch"] >= first + n, 60, every=0.1)

    @property
    def gate(self):
        """The taps are found: they need no words."""
        return [] if self.gated else ["--gate", "none"]

    def seen(self, host):
        """(number of frames, first generation, last, how often it went back) that came out of a host's tap."""
        return struct.unpack("<4I", self.vm.get(f"/run/frames.{host}"))

    def frames_go_on(self, host, n=10):
        """The guest's frames come out of a host."""
        first = self.seen(host)[0]
        wait_for(f"frames of {host}", lambda: self.seen(host)[0] >= first + n, 30, every=0.1)

    def network_is_as_before(self, host):
        """The host's network is what it was before it had its first gate."""
        def same():
            return self.network(host) == self.before[host]
        try:
            wait_for(f"the network of {host} as before", same, 10, every=0.2)
        except Failure as e:
            raise Failure(f"{e}:\n{self.before[host]}\n--- now:\n{self.network(host)}") from e

    def metric(self, host, name):
        """A metric of guest vm, as Prometheus is told it (without the prefix that all have)."""
        text = self.mcctl(host, "metrics", "--prometheus").out
        found = re.search(rf'^microcheckpoint_{name}{{guest="vm"[^}}]*}} (\S+)', text, re.M)
        check(found, f"no metric {name} of {host}")
        return float(found.group(1))

    def protect(self, src, dst, *both, primary=()):
        """A standby on dst, and protection by it; `both` are options of the two ends."""
        self.guest(dst, standby=True)
        for h in PORT if self.gated else ():
            self.before.setdefault(h, self.network(h))
        self.ask(dst, "standby", "vm", "--qmp", f"/run/{dst}/vm.qmp", *self.gate, *SMALL, *both)
        self.ask(src, "protect", "vm", "--qmp", f"/run/{src}/vm.qmp", "--peer", f"{self.addr}:{PORT[dst]}", "--interval",
                 100, *self.gate, *SMALL, *both, *primary)
        self.wait_status(src, State="PROTECTED")

    def report(self, host):
        """(generation, bad words), as the guest says."""
        job = self.vm.spawn("dd", f"if=/dev/shm/{host}-vm", "bs=4096", "skip=1", "count=1")
        check(job.wait().status == 0, job.err)
        magic, generation, bad = struct.unpack_from("<4sII", bytes(job.data[OUT]))
        check(magic == b"MCFW", f"no report in the guest's memory on {host}")
        return generation, bad

    def memory_is_good(self, host, n=20):
        """The guest goes on for n generations and finds every word as it left it."""
        first = wait_for(f"the guest on {host}", lambda: self.report(host)[0], 30)
        wait_for(f"{n} generations on {host}", lambda: self.report(host)[0] >= first + n, 60, every=0.1)
        generation, bad = self.report(host)
        check(bad == 0, f"{bad} bad words on {host} in generation {generation}")
        return generation
