# SPDX-License-Identifier: GPL-2.0-or-later
"""More than link, backup, encoders or memory can take: what is held stays bounded, nothing leaves early."""

import os
import signal
import threading
import time

import faults
import mctest
import scenario as sc
from mctest import check

MIB = 1 << 20
# 20 MiB/s of pages that hardly compress; slabs small enough for a slow link.
LOAD = "mc.redis=1 mc.memcheck=32:20 mc.counter=2000"
FAST = LOAD.replace("32:20", "32:40")
SMALL = ["--slab-size", "256K", "--max-memory", "64M", "--delta-cache", "4M", "--failure-timeout", 1000,
         "--restart-grace", 250]


def shm_bytes(host):
    """Memory that the guest's arena really has."""
    return os.stat(faults.arena(host)).st_blocks * 512


class Watch(threading.Thread):
    """The largest amount of memory that both arenas had meanwhile, and the states seen."""

    def __init__(self, guest, *hosts):
        super().__init__(daemon=True)
        self.guest, self.hosts, self.most, self.paused, self.states, self.over = guest, hosts, 0, 0, set(), False
        self.start()

    def run(self):
        while not self.over:
            for h in self.hosts:
                self.most = max(self.most, shm_bytes(h))
            self.states |= {h.state() for h in self.hosts}
            self.paused += self.guest.status() == "paused"
            time.sleep(0.05)

    def end(self):
        """Stops; memory must have stayed within what was allowed."""
        self.over = True
        self.join()
        # Slabs and their descriptors, shadow, and the arena's fixed part.
        check(self.most < (64 + 4 + 24) * MIB, f"{self.most / MIB:.0f} MiB of shared memory")
        return self.states


def slow_link(host, rate):
    """The host sends at most that fast; None: no limit."""
    if rate:
        host.run("tc", "qdisc", "replace", "dev", "repl", "root", "tbf", "rate", rate, "burst", "64k", "limit", "256k")
    else:
        host.run("tc", "qdisc", "del", "dev", "repl", "root")


class Stutter(threading.Thread):
    """Lets a process run for a part of the time only."""

    def __init__(self, pid, run, stop):
        super().__init__(daemon=True)
        self.pid, self.times, self.over = pid, (run, stop), False
        self.start()

    def run(self):
        while not self.over:
            for sig, wait in zip((signal.SIGCONT, signal.SIGSTOP), self.times):
                os.kill(self.pid, sig)
                time.sleep(wait)
        os.kill(self.pid, signal.SIGCONT)

    def end(self):
        self.over = True
        self.join()


def epochs_in(host, redis, seconds):
    """Epochs committed in that time, under the client's load."""
    n = host.status()["CommittedEpoch"]
    sc.write_for(redis, seconds)
    return host.status()["CommittedEpoch"] - n


def becomes_slow(host, redis, before, what):
    """Fewer epochs a second than before; the guest of a busy machine may write little for a while."""
    seen = []
    while not seen or seen[-1] >= before * 0.8:
        check(len(seen) < 8, f"{what}: {seen} epochs/s instead of {before}: it isn't slow")
        seen.append(epochs_in(host, redis, 1))


def test_slow():
    """A slow link, a slow backup, too few encoders: longer intervals, no takeover, and all is as it was after it."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, work=LOAD, mem=192)
        mem, watch = mctest.MemCheck(w), mctest.CounterWatch(w)
        sc.protect(w.a, w.b, *SMALL, standby_args=SMALL)
        redis = mctest.Redis(w)
        before = epochs_in(w.a, redis, 1)
        for what in ("link", "backup", "workers"):
            most = Watch(g, w.a, w.b)
            if what == "link":
                slow_link(w.a, "100mbit")
            elif what == "backup":
                s = Stutter(w.b.worker_pids("restore")[0][0], 0.005, 0.15)
            else:
                w.a.mcctl("set", "vm", "zstd-level=19")
            becomes_slow(w.a, redis, before, what)
            if what == "link":
                slow_link(w.a, None)
            elif what == "backup":
                s.end()
            else:
                w.a.mcctl("set", "vm", "zstd-level=-1")
            states = most.end()
            check(states == {"PROTECTED"}, f"{what}: states {states}")
            sc.epochs_go_on(w.a, 10)
            watch.poll()
            check(not watch.back, f"{what}: counts taken back: {watch.back[:3]}")
        slow_link(w.a, "100mbit")
        sc.write_for(redis, 0.5)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
        sc.no_bad_words(mem)
        watch.poll()
        check(not watch.back, f"counts taken back: {watch.back[:3]}")


def told(w, text):
    """How often the primary's history says that."""
    return w.a.mcctl("events", "vm").stdout.count(text)


def too_large(w, policy, *extra):
    """Protects with a policy; then an epoch is larger than the backup ever takes, and so are all after it."""
    if "vm" in w.b.guests:
        w.a.mcctl("unprotect", "vm", ok=False)
        w.b.mcctl("unprotect", "vm", ok=False)
        w.b.guests.pop("vm").kill()
    small = [*SMALL, "--max-memory", "24M"]
    sc.protect(w.a, w.b, *SMALL, "--on-overload", policy, *extra, standby_args=small)
    sc.epochs_go_on(w.a, 3)
    n = told(w, "larger than the backup can take")
    w.a.mcctl("set", "vm", "interval=450")
    mctest.wait_for("an epoch that is too large", lambda: told(w, "larger than the backup can take") > n, 8, every=0.05)


def reconnect(w, host):
    """The link breaks, and is there again."""
    old = host.worker_pids("transport")[0][0]
    os.kill(old, signal.SIGKILL)
    mctest.wait_for("a new transport", lambda: any(p != old for p, _ in host.worker_pids("transport")), 5)
    mctest.wait_for("the link", lambda: w.a.status()["Link"], 5)


def held(w, g, seconds):
    """HELD for overload, the guest paused, all the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        st = w.a.status()
        check((st["State"], st["Reason"]) == ("HELD", "overload"), f"{st['State']} ({st['Reason']})")
        check(g.status() == "paused", f"the guest is {g.status()}")
        check(w.b.state() == "PROTECTED", f"the backup is {w.b.state()}")
        time.sleep(0.05)


def policy_hold(w, g):
    """Paused, whatever the link does, until an operator decides; who can't do harm."""
    too_large(w, "hold", "--abort-limit", 2)
    w.a.wait_state("HELD", timeout=5)
    reconnect(w, w.a)
    reconnect(w, w.b)
    held(w, g, 0.7)
    r = w.a.mcctl("status", "--check", ok=False)
    check(r.returncode == 2 and "vm (HELD, overload) is paused: epochs fail" in r.stdout, f"{r.returncode} {r.stdout}")
    r = w.a.mcctl("resolve", "vm", "promote", ok=False)
    check(r.returncode == 1 and "its backup answers" in r.stderr, f"promote beside an armed backup: {r.stderr}")
    w.a.mcctl("resume", "vm")
    mctest.wait_for("the guest to go on", lambda: w.a.state() == "PROTECTED" or g.status() == "running", 2, every=0.005)
    w.a.wait_state("HELD", timeout=5)
    held(w, g, 0.2)
    # The end of the protection needs no reason to be gone.
    w.a.mcctl("unprotect", "vm")
    w.b.wait_state("ENDED", timeout=5)
    check(w.a.state() == "ENDED" and g.status() == "running", f"{w.a.state()}, {g.status()}")


def policy_throttle(w, g):
    """Longer intervals first, the guest running; then it is paused."""
    too_large(w, "throttle", "--abort-limit", 1)
    check(w.a.state() == "PROTECTED", "paused at once")
    sc.runs(g)
    w.a.mcctl("set", "vm", "interval=10")
    n = w.a.status()["Epoch"]
    mctest.wait_for("the next try", lambda: w.a.status()["Epoch"] > n, 4, every=0.02)
    n = w.a.status()["Epoch"]
    time.sleep(1)
    n = w.a.status()["Epoch"] - n
    check(2 <= n <= 40, f"{n} epochs tried in a second at an interval of 10 ms")
    w.a.wait_state("HELD", timeout=8)
    held(w, g, 0.2)


def policy_unprotect(w, g):
    """The backup is disarmed first. One that doesn't answer isn't disarmed: the guest is paused, until it does."""
    supervisor, restore = w.b.supervisor.pid, None
    too_large(w, "unprotect", "--abort-limit", 40)
    restore = w.b.worker_pids("restore")[0][0]
    for pid in (supervisor, restore):
        os.kill(pid, signal.SIGSTOP)
    n = told(w, "epochs in a row failed")
    w.a.mcctl("set", "vm", "interval=10")
    mctest.wait_for("the decision", lambda: told(w, "epochs in a row failed") > n, 5, every=0.05)
    time.sleep(0.2)
    sc.runs(g)
    w.a.run("ip", "link", "set", "repl", "down")
    mctest.wait_for("the guest to be paused", lambda: g.status() == "paused", 3)
    w.a.wait_state("HELD", timeout=3)
    check(w.a.status()["Reason"] == "peer-lost", f"reason {w.a.status()['Reason']}")
    w.a.run("ip", "link", "set", "repl", "up")
    for pid in (restore, supervisor):
        os.kill(pid, signal.SIGCONT)
    w.a.wait_state("DEGRADED", timeout=8)
    w.b.wait_state("ENDED", timeout=5)
    mctest.wait_for("the guest to run", lambda: g.status() == "running", 2)


def test_too_large():
    """An epoch above what the backup takes: throttle, hold, unprotect; nothing that was answered is lost."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, work=FAST, mem=192)
        watch = mctest.CounterWatch(w)
        redis = None
        for policy in (policy_hold, policy_throttle, policy_unprotect):
            policy(w, g)
            watch.poll()
            check(not watch.back, f"{policy.__name__}: counts taken back: {watch.back[:3]}")
            if policy is policy_throttle:
                w.a.mcctl("unprotect", "vm")
            redis = redis or mctest.Redis(w)
            sc.write_for(redis, 0.1)
        check(redis.lost() == 0, "acknowledged values lost")


def test_standing_still():
    """A QEMU that stands still for less than failure-timeout isn't taken for dead: the guest stays where it is."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = w.a.guest("vm", mem=64, serial=False, bios=True, nics=0)
        s = w.b.guest("vm", mem=64, serial=False, bios=True, nics=0, incoming=True)
        patient = ("--gate", "none", "--insecure", "--failure-timeout", 4000)
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *patient)
        w.a.mcctl("protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", *patient)
        w.a.wait_state("PROTECTED")
        pids = sorted(w.a.worker_pids("capture"))
        g.proc.send_signal(signal.SIGSTOP)
        time.sleep(2)
        g.proc.send_signal(signal.SIGCONT)
        sc.epochs_go_on(w.a, 3)
        check(w.a.state() == "PROTECTED" and w.b.state() == "PROTECTED", f"{w.a.state()}, {w.b.state()}")
        check(sorted(w.a.worker_pids("capture")) == pids, "a capture that waited for QEMU was killed")
        g.proc.send_signal(signal.SIGSTOP)
        w.b.wait_state("ACTIVE", timeout=20)
        for host, code, word in ((w.a, 2, "CRITICAL"), (w.b, 1, "WARNING")):
            r = host.mcctl("status", "--check", ok=False)
            check(r.returncode == code and word in r.stdout, f"{host.name}: {r.returncode} {r.stdout}")
        check("hasn't answered its monitor for 4000 ms" in w.a.mcctl("events", "vm").stdout, w.a.mcctl("events", "vm").stdout)
