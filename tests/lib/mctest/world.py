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

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from . import basics
from .basics import LIBC, Failure, alive, check, child_setup, run, wait_for
from .qemu import LAN, PREFIX, Guest

REPL = "10.78.0"
PORT = 7911


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
            stdout=subprocess.PIPE, text=True, preexec_fn=child_setup)
        check(self.holder.stdout.readline() == "up\n", f"namespace of host {name}")

    def enter(self):
        return ["nsenter", "-t", str(self.holder.pid), "-m", "-n"]

    def spawn(self, *args, log=None, env=None):
        out = open(log, "ab") if log else subprocess.DEVNULL
        e = dict(os.environ, **(env or {}))
        p = subprocess.Popen([*self.enter(), *args], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                             env=e, preexec_fn=child_setup)
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
        for f in os.listdir(basics.BUILD):
            if f.startswith("mc-"):
                os.symlink(f"{basics.BUILD}/{f}", f"{self.libexec}/{f}")

    def start_supervisor(self, *extra, env=None):
        if self.libexec:
            extra = ("--libexec", self.libexec, *extra)
        self.supervisor = self.spawn(
            f"{basics.BUILD}/mc-supervisor", f"--bus={self.bus}", "--runtime-dir", self.run_dir,
            "--state-dir", self.state_dir, "--conf-dir", self.conf_dir, "--listen", f"[::]:{PORT}", "--user", "nobody", *extra,
            log=f"{self.dir}/supervisor.log", env=env)
        wait_for(f"supervisor on {self.name}", self._supervisor_answers, timeout=15)

    def _supervisor_answers(self):
        check(self.supervisor.poll() is None,
              f"mc-supervisor on {self.name} ended:\n" + self.supervisor_log()[-2000:])
        r = subprocess.run([f"{basics.BUILD}/mcctl", f"--bus={self.bus}", "status"], stdout=subprocess.DEVNULL,
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
        r = subprocess.run([*self.enter(), f"{basics.BUILD}/mcctl", f"--bus={self.bus}", *map(str, args)],
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
            check(LIBC.setns(there, 0x40000000) == 0, "setns")
            return fn()
        finally:
            LIBC.setns(own, 0x40000000)
            os.close(own)
            os.close(there)
