# SPDX-License-Identifier: GPL-2.0-or-later
"""Fault points (ipc/fault-points.h) in a running protection: arm one, see it hit, see all well.

Needs the programs of `make FAULTS=1`.  A Bench is a protected guest under redis, memory-checker
and counter load; each method takes one point through and checks what must hold.
"""

import glob
import json
import os
import signal
import subprocess
import time

import mctest
import scenario as sc
from mctest import check

BUILD = os.environ.get("MC_FAULTS_BUILD", os.path.join(mctest.TOP, "build-faults"))
LOAD = "mc.redis=1 mc.memcheck=64:100 mc.counter=2000"
# A machine that stands still for a moment must not look like a dead peer.
PATIENT = ("--failure-timeout", "2000", "--restart-grace", "500")
PLACES = {"capture": 2, "transport": 3, "netgate": 4, "restore": 5, "stage": 8}  # enum mc_role
PROGRAMS = ("capture", "stage", "transport", "netgate", "restore", "supervisor")


class Point:
    """One line of --fault-points."""

    def __init__(self, role, line):
        f = line.split()
        self.role, self.name, self.side, self.when = role, f[0], f[1], f[2]
        # A supervisor that hangs is the service manager's to find.
        self.actions = ["crash"] + (["stall"] if role != "supervisor" else []) + f[3:]

    def __repr__(self):
        return self.name


def points(when=None):
    """All points, as the programs themselves list them."""
    out = []
    for role in PROGRAMS:
        text = subprocess.run([f"{BUILD}/mc-{role}", "--fault-points"], stdout=subprocess.PIPE, text=True,
                              check=True).stdout
        out += [Point(role, line) for line in text.splitlines()]
    # The plug's need sch_plug: tests/kernel/plug-death.c passes them.
    return [p for p in out if (p.when == when if when else p.when != "plug")]


def by_name(name):
    """The point of that name."""
    return next(p for p in points() if p.name == name)


class programs:
    """with programs(): every supervisor started is one with fault points."""

    def __enter__(self):
        self.saved = mctest.basics.BUILD
        check(os.access(f"{BUILD}/mc-supervisor", os.X_OK), f"{BUILD} is missing: run make FAULTS=1")
        mctest.basics.BUILD = BUILD

    def __exit__(self, *_):
        mctest.basics.BUILD = self.saved


def arena(host, name="vm"):
    """The guest's arena, seen from here."""
    found = glob.glob(f"/proc/{host.holder.pid}/root/dev/shm/microcheckpoint-*-{name}")
    check(found, f"no arena on {host.name}")
    return found[0]


def arm(host, role, spec):
    """Arms a point of a process that runs; it has it when this returns."""
    r = subprocess.run([f"{BUILD}/soak-arm", arena(host), str(PLACES[role]), spec], stdout=subprocess.DEVNULL,
                       check=False)
    check(r.returncode == 0, f"mc-{role} on {host.name} didn't take {spec}")


def kill_and_arm(host, role, spec):
    """Kills a process; its successor has the point before it passes any."""
    pid = host.worker_pids(role)[0][0]
    os.kill(pid, signal.SIGSTOP)
    with subprocess.Popen([f"{BUILD}/soak-arm", arena(host), str(PLACES[role]), spec], stdout=subprocess.PIPE) as p:
        p.stdout.readline()
        os.kill(pid, signal.SIGKILL)
        check(p.wait() == 0, f"no successor of mc-{role} on {host.name} took {spec}")


def arm_start(host, spec):
    """A new supervisor gives its point to itself, or to the first processes that it starts."""
    host.supervisor.kill()
    host.supervisor.wait()
    try:
        host.start_supervisor(env={"MC_FAULT": spec})
    except mctest.Failure:
        check(host.supervisor.poll() is not None, "the supervisor doesn't answer")


def state_of(pid):
    """The letter that /proc has for it."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return f.read().rsplit(")", 1)[1].split()[0]


def guards(host):
    """Pids of the guards on a host."""
    out = []
    for p in host.pids():
        try:
            with open(f"/proc/{p}/comm", encoding="utf-8") as f:
                if f.read().strip() == "mc-guard":
                    out.append(p)
        except OSError:
            pass
    return out


def deaths(host, name="vm"):
    """The obituaries so far."""
    lines = [json.loads(x) for x in host.mcctl("events", name, "--json").stdout.splitlines()]
    return [e["text"] for e in lines if e["event"] == "process-died"]


class Bench:
    """A protected guest under load on host a, its standby on host b."""

    def __init__(self, world, *extra, work=LOAD, mem=192, start=True):
        self.w, self.a, self.b = world, world.a, world.b
        self.extra = extra
        for h in (self.a, self.b):
            h.own_programs()
            h.start()
        self.g = sc.boot(self.a, work=work, mem=mem)
        self.mem = mctest.MemCheck(world) if "memcheck" in work else None
        self.watch = mctest.CounterWatch(world)
        self.redis = None
        self.slabs = None
        self.filled = None
        if start:
            self.begin()

    def host(self, point):
        """Where a point is passed."""
        return self.b if point.side == "backup" else self.a

    def begin(self, before=None):
        """Standby and protection until PROTECTED; before(): called when nothing has started yet."""
        if before:
            before()
        if self.filled:
            s = self.filled
            self.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args(), "--insecure", *self.extra)
        else:
            s = sc.standby(self.b, self.g, *self.extra)
        self.a.mcctl(*sc.protect_args(self.a, self.b, *self.extra))
        self.a.wait_state("PROTECTED", timeout=60)
        self.slabs = self.a.status()["SyncDone"]
        # Without a gate the guest has no network: there is nobody to talk to before.
        self.redis = self.redis or mctest.Redis(self.w)
        return s

    def fill(self):
        """The next begin() finds a standby that was filled before."""
        self.filled = self.begin()
        self.a.mcctl("unprotect", "vm")
        self.b.wait_state("ENDED", timeout=5)
        for h in (self.a, self.b):
            h.mcctl("unprotect", "vm", ok=False)

    def end(self):
        """Unprotects and clears both ends for the next begin()."""
        self.a.mcctl("unprotect", "vm")
        self.forget()

    def forget(self):
        """Removes both entries and the standby's QEMU."""
        for h in (self.a, self.b):
            h.mcctl("unprotect", "vm", ok=False)
        if "vm" in self.b.guests:
            self.b.guests.pop("vm").kill()

    def all_well(self, what, n=3):
        """Protection goes on: no other state was entered, no new first copy made, the guest runs."""
        sc.write_for(self.redis, 0.05)
        sc.epochs_go_on(self.a, n)
        for h in (self.a, self.b):
            check(h.state() == "PROTECTED", f"{what}: {h.name} is {h.state()}: {h.status()['Message']}")
        mctest.wait_for(f"{what}: the guest to run", lambda: self.g.status() == "running", 2)
        check(self.a.status()["SyncDone"] == self.slabs, f"{what}: a new first copy was made")
        self.watch.poll()
        check(not self.watch.back, f"{what}: counts taken back: {self.watch.back[:3]}")

    def hit(self, host, role, spec, action, trigger=None, every=9):
        """Arms, waits until it was passed and, but for an error, until a successor runs; triggers every so often."""
        pids = {p for p, _ in host.worker_pids(role)}
        before = len(deaths(host))
        arm(host, role, spec)
        if trigger:
            trigger()
        if action == "error":
            sc.write_for(self.redis, 0.1)
            return
        t = again = time.monotonic()
        while len(deaths(host)) == before:
            sc.write_for(self.redis, 0.02)
            check(time.monotonic() < t + 8, f"{spec} wasn't passed, or a hung mc-{role} not found")
            if time.monotonic() > again + every:
                trigger()
                again = time.monotonic()
        mctest.wait_for(f"a successor after {spec}",
                        lambda: any(p not in pids for p, _ in host.worker_pids(role)), 5)

    # What brings a process to a point that not every epoch passes: (arms before, does after).
    BEFORE = {"abort": "capture.scan.done:error,", "transport.connected": "transport.ack.received:error,",
              "transport.hello.received": "transport.ack.received:error,",
              "transport.hello.accepted": "transport.ack.received:error,",
              "restore.journal.aborted": "restore.commit.wanted:error,",
              "restore.journal.aborted.done": "restore.commit.wanted:error,"}

    def take(self, point, action):
        """A point that a running protection passes, whatever that takes."""
        host, spec = self.host(point), f"{point.name}:{action}"
        spec = self.BEFORE.get(point.name, self.BEFORE.get(point.when, "")) + spec

        def trigger():
            if point.role == "supervisor":
                os.kill(host.worker_pids("stage")[0][0], signal.SIGKILL)
            elif point.when == "nack" and point.role == "transport":
                arm(self.b, "restore", "restore.decoded:error")
            elif point.side == "backup" and point.when == "link":
                os.kill(self.a.worker_pids("transport")[0][0], signal.SIGKILL)
            elif point.when == "large":
                self.a.mcctl("set", "vm", "interval=1500")
            elif point.when == "break":
                arm(self.a, "transport", "transport.slab.sent")
        refused = self.refused()
        # Without a link a transport that hangs is found after 1.5 s: the standby must wait for it.
        patient = point.side == "backup" and point.when in ("link", "break") and action == "stall"
        if patient:
            self.b.mcctl("set", "vm", "restart-grace=1950")
        if point.role == "supervisor":
            self.take_supervisor(point, spec, trigger)
        else:
            # A link that breaks within an epoch may have carried all of it, or nothing.
            self.hit(host, point.role, spec, action, trigger, 2.5 if point.when == "break" else 9)
        if point.when == "large":
            self.a.mcctl("set", "vm", "interval=25")
        if patient:
            self.b.mcctl("set", "vm", "restart-grace=500")
        self.all_well(f"{point.name}:{action}")
        check(point.when == "nack" or action == "error" or self.refused() == refused,
              f"{point.name}:{action}: an epoch was refused")

    def refused(self):
        """Epochs that the backup refused so far: a death costs none."""
        return self.a.supervisor_log().count("the backup refused epoch")

    def take_supervisor(self, point, spec, trigger):
        """The supervisor dies at a point of its own and is started again."""
        host = self.host(point)
        arm_start(host, spec)
        mctest.wait_for("the guest's adoption", lambda: host.supervisor.poll() is not None or
                        host.mcctl("status", "vm", ok=False).returncode == 0, 5)
        if host.supervisor.poll() is None:
            trigger()
        stalled = spec.endswith(":stall")
        t = time.monotonic()
        while host.supervisor.poll() is None:
            time.sleep(0.005)  # no write: without a successor nothing is committed
            if stalled and state_of(host.supervisor.pid) == "T":
                host.supervisor.kill()
            check(time.monotonic() < t + 5, f"{spec} wasn't passed")
        host.start_supervisor()
        mctest.wait_for("the guest's adoption", lambda: host.mcctl("status", "vm", ok=False).returncode == 0, 5)

    def take_alone(self, point, action):
        """A point of the start, the first copy, the end or a takeover."""
        host, spec = self.host(point), f"{point.name}:{action}"
        before = point.when in ("start", "sync", "resync")
        if point.when == "resync":
            self.fill()

        def early():
            arm_start(host, spec)
        if before and point.role == "supervisor":
            self.start_twice(host, early)
        else:
            self.begin(early if before else None)
        if before:
            check(deaths(host) or point.role == "supervisor", f"{spec} wasn't passed")
            self.all_well(spec)
            self.fail_over()
        elif point.when == "takeover":
            arm(host, point.role, spec)
            sc.write_for(self.redis, 0.2)
            self.fail_over()
            host.wait_state("ACTIVE", timeout=10)
            check(deaths(host), f"{spec} wasn't passed")
        else:
            arm(host, point.role, spec)
            sc.write_for(self.redis, 0.2)
            self.a.mcctl("unprotect", "vm", ok=False)
            # One that dies at the very end isn't missed: there may be no obituary.
            self.a.wait_state("ENDED", timeout=10)
            sc.write_for(self.redis, 0.2)
            self.nothing_lost()

    def start_twice(self, host, early):
        """The supervisor dies while it begins a protection; its successor begins it again."""
        sc.standby(self.b, self.g, *self.extra)
        early()
        host.mcctl(*sc.protect_args(self.a, self.b, *self.extra), ok=False)
        host.supervisor.wait(timeout=10)
        host.start_supervisor()
        # What was begun is adopted within a second; what wasn't is begun again.
        end = time.monotonic() + 1
        while host.mcctl("status", "vm", ok=False).returncode and time.monotonic() < end:
            time.sleep(0.02)
        if host.mcctl("status", "vm", ok=False).returncode:
            host.mcctl(*sc.protect_args(self.a, self.b, *self.extra))
        host.wait_state("PROTECTED", timeout=60)
        self.slabs = host.status()["SyncDone"]
        self.redis = mctest.Redis(self.w)

    def nothing_lost(self):
        """What the client was promised is there; the guest's memory is whole."""
        if self.mem:
            sc.no_bad_words(self.mem)
        check(self.redis.lost() == 0, "acknowledged values lost")
        self.watch.poll()
        check(not self.watch.back, f"counts taken back: {self.watch.back[:3]}")

    def fail_over(self):
        """The primary's host dies; the standby must have everything."""
        self.a.kill_everything()
        sc.write_for(self.redis, 0.3)
        self.nothing_lost()
