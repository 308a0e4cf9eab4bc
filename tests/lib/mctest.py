# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts, a client and a switch on one machine, for the demo and the tests.

Each host is a network namespace and a mount namespace with its own /dev/shm, its own D-Bus
daemon and its own mc-supervisor.  A LAN joins both hosts and the client; a link of its
own joins the two hosts for replication:

    host a: br0{tap0..,lan}  ---- switch ---- br0{tap0..,lan} host b
               repl 10.78.0.1 ------------------ 10.78.0.2
                              client 10.77.0.100

Everything is named after the pid of the test; what a dead test left behind is removed by
the next one (World.sweep).
"""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("MC_BUILD", os.path.join(TOP, "build"))
GUEST = os.path.join(TOP, "build", "guest")
PREFIX = "mct"
LAN = "10.77.0"
REPL = "10.78.0"
PORT = 7911

_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """A test's assertion that did not hold."""


def check(ok, text):
    if not ok:
        raise Failure(text)


def run(*args, **kw):
    """Runs a command that must succeed; returns its output."""
    r = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       timeout=kw.pop("timeout", 60), check=False, **kw)
    if r.returncode:
        raise Failure(f"{' '.join(args)}: exit {r.returncode}: {r.stdout.strip()}")
    return r.stdout


def wait_for(what, fn, timeout=10.0, every=0.01):
    """Polls fn until it returns something true; the time limit is a failure."""
    end = time.monotonic() + timeout
    while True:
        r = fn()
        if r:
            return r
        if time.monotonic() > end:
            raise Failure(f"not within {timeout} s: {what}")
        time.sleep(every)


def alive(pid):
    """True when the process runs (a zombie doesn't)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def end_on_sigterm():
    """SIGTERM, like Ctrl-C, ends in good order: nothing is left behind."""
    def end(_sig, _frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(143)
    signal.signal(signal.SIGTERM, end)


def kvm_usable():
    return os.path.isdir("/sys/module/kvm_intel") or os.path.isdir("/sys/module/kvm_amd")


def _child_setup():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing survives the test


class StallWatch(threading.Thread):
    """Measures how long this machine gave a thread that only sleeps no processor.

    A machine that stands still looks to every timer in the system under test like a dead
    peer; a test that failed meanwhile has said nothing.
    """

    TICK = 0.02

    def __init__(self):
        super().__init__(daemon=True)
        self.longest = 0.0
        self.start()

    def run(self):
        while True:
            t = time.monotonic()
            time.sleep(self.TICK)
            self.longest = max(self.longest, time.monotonic() - t - self.TICK)

    def reset(self):
        """Begins anew; returns the longest stall since the last call, seconds."""
        longest, self.longest = self.longest, 0.0
        return longest


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


class Host:
    """A machine: namespaces, bus, supervisor, guests."""

    def __init__(self, world, name, index, shm="2G"):
        self.world, self.name, self.index = world, name, index
        self.ns = f"{world.prefix}-{name}"
        self.dir = os.path.join(world.dir, name)
        os.makedirs(self.dir)
        self.state_dir = f"{self.dir}/state"
        self.run_dir = f"{self.dir}/run"
        self.conf_dir = f"{self.dir}/guests.d"
        os.makedirs(self.state_dir)
        os.makedirs(self.run_dir)
        self.addr = f"{REPL}.{index}"
        self.bus = f"unix:path={self.dir}/bus"
        self.procs = []
        self.guests = {}
        self.supervisor = None
        self.libexec = None
        self.dbus = None
        run("ip", "netns", "add", self.ns)
        self.holder = subprocess.Popen(
            ["ip", "netns", "exec", self.ns, "unshare", "-m", "sh", "-c",
             f"mount -t tmpfs -o size={shm} shm /dev/shm && echo up && exec sleep infinity"],
            stdout=subprocess.PIPE, text=True, preexec_fn=_child_setup)
        check(self.holder.stdout.readline() == "up\n", f"namespace of host {name}")

    def enter(self):
        return ["nsenter", "-t", str(self.holder.pid), "-m", "-n"]

    def spawn(self, *args, log=None, env=None):
        out = open(log, "ab") if log else subprocess.DEVNULL
        e = dict(os.environ, **(env or {}))
        p = subprocess.Popen([*self.enter(), *args], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                             env=e, preexec_fn=_child_setup)
        if log:
            out.close()
        self.procs.append(p)
        return p

    def run(self, *args, **kw):
        return run(*self.enter(), *args, **kw)

    def network(self, taps):
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", "br0", "type", "bridge")
        self.run("ip", "link", "set", "br0", "up")
        self.run("ip", "link", "set", "lan", "master", "br0", "up")
        for i in range(taps):
            self.run("ip", "tuntap", "add", f"tap{i}", "mode", "tap")
            self.run("ip", "link", "set", f"tap{i}", "master", "br0", "up")
        self.run("ip", "addr", "add", f"{LAN}.{self.index}/24", "dev", "br0")
        self.run("ip", "addr", "add", f"{self.addr}/24", "dev", "repl")
        self.run("ip", "link", "set", "repl", "up")

    def start_bus(self):
        conf = f"{self.dir}/bus.conf"
        with open(conf, "w", encoding="ascii") as f:
            f.write(f"""<busconfig><type>custom</type><listen>{self.bus}</listen>
<auth>EXTERNAL</auth><policy context="default"><allow user="*"/><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/><allow own="*"/></policy></busconfig>""")
        if os.path.exists(f"{self.dir}/bus"):
            os.unlink(f"{self.dir}/bus")
        self.dbus = self.spawn("dbus-daemon", f"--config-file={conf}", "--nofork", log=f"{self.dir}/dbus.log")
        wait_for("D-Bus daemon", lambda: os.path.exists(f"{self.dir}/bus"))

    def own_programs(self):
        """This host's supervisor gets programs of its own, which a test may replace."""
        self.libexec = f"{self.dir}/libexec"
        os.makedirs(self.libexec)
        for f in os.listdir(BUILD):
            if f.startswith("mc-"):
                os.symlink(f"{BUILD}/{f}", f"{self.libexec}/{f}")

    def start_supervisor(self, *extra, env=None):
        if self.libexec:
            extra = ("--libexec", self.libexec, *extra)
        self.supervisor = self.spawn(
            f"{BUILD}/mc-supervisor", f"--bus={self.bus}", "--runtime-dir", self.run_dir,
            "--state-dir", self.state_dir, "--conf-dir", self.conf_dir, "--listen", f"[::]:{PORT}", "--user", "nobody", *extra,
            log=f"{self.dir}/supervisor.log", env=env)
        wait_for(f"supervisor on {self.name}", self._supervisor_answers, timeout=15)

    def _supervisor_answers(self):
        check(self.supervisor.poll() is None,
              f"mc-supervisor on {self.name} ended:\n" + self.supervisor_log()[-2000:])
        r = subprocess.run([f"{BUILD}/mcctl", f"--bus={self.bus}", "status"], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, check=False, timeout=10)
        return r.returncode == 0

    def supervisor_log(self):
        with open(f"{self.dir}/supervisor.log", encoding="utf-8", errors="replace") as f:
            return f.read()

    def start(self):
        self.start_bus()
        self.start_supervisor()

    def mcctl(self, *args, ok=True, timeout=60):
        """Runs mcctl; with ok=True its failure is a Failure, else the CompletedProcess returns."""
        r = subprocess.run([*self.enter(), f"{BUILD}/mcctl", f"--bus={self.bus}", *map(str, args)],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False)
        if ok and r.returncode:
            raise Failure(f"mcctl {' '.join(map(str, args))} on {self.name}: exit {r.returncode}: {r.stderr.strip()}")
        return r

    def status(self, name="vm"):
        return json.loads(self.mcctl("status", name, "--json").stdout)

    def state(self, name="vm"):
        return self.status(name)["State"]

    def wait_state(self, want, name="vm", timeout=30):
        wants = (want,) if isinstance(want, str) else want
        wait_for(f"{name} on {self.name} in {want} (is {self.state(name)})",
                 lambda: self.state(name) in wants, timeout, every=0.05)

    def guest(self, name="vm", **kw):
        g = Guest(self, name, **kw)
        self.guests[name] = g
        return g

    def pids(self):
        """Every process of this host."""
        out = subprocess.run(["ip", "netns", "pids", self.ns], stdout=subprocess.PIPE, text=True, check=False)
        return [int(p) for p in out.stdout.split() if int(p) != self.holder.pid]

    def worker_pids(self, role=None):
        """(pid, program) of the mc- processes on this host."""
        out = []
        for p in self.pids():
            try:
                with open(f"/proc/{p}/cmdline", encoding="utf-8") as f:
                    exe = os.path.basename(f.read().split("\0")[0])
                with open(f"/proc/{p}/comm", encoding="utf-8") as f:
                    if f.read().strip() in ("mc-guard", "mc-launcher", "mc-arbiter"):
                        continue
            except OSError:
                continue
            if exe.startswith("mc-") and (role is None or exe == f"mc-{role}"):
                out.append((p, exe))
        return out

    def kill_everything(self):
        """SIGKILL to every process of the host at once; returns CLOCK_MONOTONIC ns of it."""
        pids = self.pids()
        t = time.monotonic_ns()
        # A host's end isn't told to anybody: whoever would see the guest die stands still before.
        for sig in (signal.SIGSTOP, signal.SIGKILL):
            for p in pids:
                try:
                    os.kill(p, sig)
                except ProcessLookupError:
                    pass
        for p in self.procs:
            if p.pid in pids:
                p.wait()
        self.procs = []
        self.guests = {}
        wait_for(f"processes of {self.name} gone", lambda: not self._kill_rest())
        return t

    def _kill_rest(self):
        """What a supervisor started in the instant before its own end."""
        rest = [p for p in self.pids() if alive(p)]
        for p in rest:
            try:
                os.kill(p, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return rest

    def cut(self):
        """Pulls all cables. Returns CLOCK_MONOTONIC ns of it."""
        t = time.monotonic_ns()
        self.run("ip", "link", "set", "repl", "down")
        self.run("ip", "link", "set", "lan", "down")
        return t

    def plug_in(self):
        self.run("ip", "link", "set", "lan", "up")
        self.run("ip", "link", "set", "repl", "up")

    def close(self):
        for _ in range(3):
            self.kill_everything()
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()
        run("ip", "netns", "del", self.ns)


class World:
    """Both hosts, the switch and the client.  Use as a context manager."""

    def __init__(self, taps=1, shm="2G", keep=bool(os.environ.get("MC_KEEP"))):
        self.sweep()
        self.prefix = f"{PREFIX}{os.getpid()}"
        self.keep = keep
        self.dir = tempfile.mkdtemp(prefix=f"{self.prefix}-")
        os.chmod(self.dir, 0o755)
        self.client = f"{self.prefix}-client"
        self.hosts = []
        try:
            run("ip", "netns", "add", self.client)
            self.a = self._host("a", 1, shm)
            self.b = self._host("b", 2, shm)
            self._wire()
            self.a.network(taps)
            self.b.network(taps)
        except BaseException:
            self.close()
            raise

    def _host(self, name, index, shm):
        h = Host(self, name, index, shm)
        self.hosts.append(h)
        return h

    def _wire(self):
        def ns(*args):
            run("ip", "-n", self.client, *args)
        ns("link", "set", "lo", "up")
        ns("link", "add", "br0", "type", "bridge")
        ns("link", "set", "br0", "up")
        ns("addr", "add", f"{LAN}.100/24", "dev", "br0")
        for h in self.hosts:
            ns("link", "add", f"to-{h.name}", "type", "veth", "peer", "name", "lan", "netns", h.ns)
            ns("link", "set", f"to-{h.name}", "master", "br0", "up")
        run("ip", "-n", self.a.ns, "link", "add", "repl", "type", "veth", "peer", "name", "repl", "netns", self.b.ns)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        if kind and kind is not KeyboardInterrupt:
            self.report()
        self.close()

    def report(self):
        """What the supervisors and guests logged, when a test failed."""
        for h in self.hosts:
            for f in sorted(os.listdir(h.dir)):
                if f.endswith(".log") and f != "dbus.log":
                    with open(f"{h.dir}/{f}", encoding="utf-8", errors="replace") as fd:
                        text = fd.read()[-6000:]
                    print(f"--- {h.name}/{f}\n{text}", file=sys.stderr)

    def close(self):
        for h in self.hosts:
            h.close()
        self.hosts = []
        subprocess.run(["ip", "netns", "del", self.client], stderr=subprocess.DEVNULL, check=False)
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)

    @staticmethod
    def sweep():
        """Removes what dead tests left: processes in their namespaces, namespaces, folders."""
        names = [n for n in (os.listdir("/run/netns") if os.path.isdir("/run/netns") else [])
                 if re.fullmatch(PREFIX + r"\d+-\w+", n)]
        for n in names:
            if alive(int(re.search(r"\d+", n).group())):
                continue
            out = subprocess.run(["ip", "netns", "pids", n], stdout=subprocess.PIPE, text=True, check=False)
            for p in out.stdout.split():
                os.kill(int(p), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", n], check=False)
        tmp = tempfile.gettempdir()
        for d in os.listdir(tmp):
            m = re.match(PREFIX + r"(\d+)-", d)
            if m and not alive(int(m.group(1))):
                shutil.rmtree(f"{tmp}/{d}", ignore_errors=True)

    def in_client(self, fn):
        """Runs fn with this thread in the client's network namespace (sockets stay there)."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.client}", os.O_RDONLY)
        try:
            check(_libc.setns(there, 0x40000000) == 0, "setns")
            return fn()
        finally:
            _libc.setns(own, 0x40000000)
            os.close(own)
            os.close(there)


class Redis:
    """One TCP connection to the guest's redis; values numbered, what was acknowledged recorded."""

    def __init__(self, world, addr=f"{LAN}.50", timeout=30):
        self.world = world
        self.acked = 0
        self.sock = None

        def connect():
            try:
                s = world.in_client(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                s.settimeout(2)
                s.connect((addr, 6379))
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return s
            except OSError:
                return None
        self.sock = wait_for("redis in the guest", connect, timeout)
        self.sock.settimeout(20)
        self.buf = b""

    def _line(self):
        while b"\r\n" not in self.buf:
            d = self.sock.recv(65536)
            if not d:
                raise Failure("redis closed the connection")
            self.buf += d
        line, self.buf = self.buf.split(b"\r\n", 1)
        return line

    def cmd(self, *args):
        m = b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in
                                              (x if isinstance(x, bytes) else str(x).encode() for x in args))
        self.sock.sendall(m)
        r = self._line()
        if r[:1] == b"$":
            if r == b"$-1":
                return None
            n = int(r[1:])
            while len(self.buf) < n + 2:
                self.buf += self.sock.recv(65536)
            v, self.buf = self.buf[:n], self.buf[n + 2:]
            return v
        return r

    def write(self):
        """Writes the next value; it counts once it is acknowledged."""
        n = self.acked + 1
        check(self.cmd("SET", f"n:{n}", f"value-{n}") == b"+OK", f"SET n:{n}")
        self.acked = n

    def lost(self):
        """How many acknowledged values the guest doesn't hold."""
        return sum(self.cmd("GET", f"n:{n}") != b"value-%d" % n for n in range(1, self.acked + 1))

    def close(self):
        self.sock.close()


class MemCheck:
    """Reads the result of the memory checker in the guest."""

    def __init__(self, world, addr=f"{LAN}.50"):
        self.sock = world.in_client(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.sock.settimeout(0.25)
        self.addr = (addr, 7001)

    def read(self, timeout=20):
        """(generation, words checked, bad words)"""
        def once():
            try:
                self.sock.sendto(b"?", self.addr)
                return tuple(map(int, self.sock.recv(256).split()))
            except (TimeoutError, OSError):
                return None
        return wait_for("memory checker's answer", once, timeout)

    def close(self):
        self.sock.close()


class CounterWatch:
    """Sees the guest's counter on the client's bridge, by kind of packet and NIC."""

    def __init__(self, world):
        self.sock = world.in_client(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self.sock.bind(("br0", 0))
        self.sock.setblocking(False)
        self.highest = {}
        self.back = []
        self.received = 0

    def poll(self):
        """Takes in everything that came; a count below the highest seen goes to self.back."""
        while True:
            try:
                frame = self.sock.recv(65536)
            except BlockingIOError:
                return
            i = frame.find(b"MCNT")
            if i < 0 or len(frame) < i + 16:
                continue
            nic, count = struct.unpack_from("<IQ", frame, i + 4)
            kind = {0x0800: "udp4", 0x86dd: "udp6", 0x0806: "arp"}.get(struct.unpack_from(">H", frame, 12)[0], "?")
            key = (kind, nic)
            self.received += 1
            if count < self.highest.get(key, 0):
                self.back.append((key, self.highest[key], count))
            self.highest[key] = max(self.highest.get(key, 0), count)

    def close(self):
        self.sock.close()
