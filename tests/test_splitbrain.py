# SPDX-License-Identifier: GPL-2.0-or-later
"""Two ends that can't see each other, or that don't believe each other: one of them speaks."""

import json
import os
import signal
import time

import mctest
import scenario as sc
from mctest import PORT, check

IN_PAIRS = True  # what has a limit here has one of seconds

LOAD = "mc.redis=1 mc.counter=2000"


def events(host, word):
    """Texts of the events of a kind in the guest's history."""
    lines = [json.loads(line) for line in host.mcctl("events", "vm", "--json").stdout.splitlines()]
    return [e["text"] for e in lines if e["event"] == word]


def tap_frames(host):
    """Frames that the gate let out to the tap."""
    out = host.run("ip", "-s", "-j", "link", "show", "tap0")
    return json.loads(out)[0]["stats64"]["rx"]["packets"]


def test_late_ack():
    """Answers that lay in the socket while the lease ran out let nothing leave any more."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        guest = sc.boot(w.a, work=LOAD)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.5)
        pid = w.a.worker_pids("transport")[0][0]
        # Its supervisor would kill one that hangs, before the backup takes it for dead.
        supervisor = w.a.worker_pids("supervisor")[0][0]
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(pid, signal.SIGSTOP)
        w.b.wait_state("ACTIVE", timeout=5)
        mctest.wait_for("the old guest to be paused", lambda: guest.status() == "paused", 5)
        os.kill(supervisor, signal.SIGCONT)
        held, out = w.a.status()["HeldPackets"], tap_frames(w.a)
        check(held > 0, "nothing is held: the test shows nothing")
        os.kill(pid, signal.SIGCONT)
        w.a.wait_state("STOPPED", timeout=5)
        check(tap_frames(w.a) == out, f"{tap_frames(w.a) - out} of {held} held frames left after the takeover")
        check(guest.status() == "paused", f"the old guest is {guest.status()}")
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "values lost")
        r = w.a.mcctl("resolve", "vm", "promote", ok=False)
        check(r.returncode == 1 and "not HELD" in r.stderr, f"promote beside an active backup: {r.stderr}")
        check(guest.status() == "paused" and tap_frames(w.a) == out, "promote woke the old guest")


class Arbiter:
    """A command that answers each side as told: won, lost, or not at all."""

    def __init__(self, w):
        self.dir = w.dir
        for side in ("primary", "backup"):
            self.say(side, "hang")
        with open(f"{w.dir}/arbiter", "w", encoding="ascii") as f:
            f.write("#!/bin/sh\n"
                    f'echo "$MC_SIDE $MC_GUEST $MC_REASON $MC_TERM $MC_EPOCH" >>{w.dir}/asked\n'
                    f'read -r word <{w.dir}/say-$MC_SIDE\n'
                    'case $word in won) exit 0;; lost) exit 1;; esac\n'
                    "exec sleep 1000\n")
        self.args = ["--arbiter", f"exec:sh {w.dir}/arbiter", "--arbiter-timeout", 400]

    def say(self, side, word):
        with open(f"{self.dir}/say-{side}.new", "w", encoding="ascii") as f:
            f.write(word + "\n")
        os.rename(f"{self.dir}/say-{side}.new", f"{self.dir}/say-{side}")

    def asked(self, side):
        """The questions of a side so far: (guest, reason, term, epoch)."""
        try:
            with open(f"{self.dir}/asked", encoding="ascii") as f:
                return [line.split()[1:] for line in f if line.startswith(side)]
        except FileNotFoundError:
            return []


def protect_with(w, arbiter):
    """A new standby on b, protection from a, both with the arbiter."""
    g = w.b.guests.pop("vm", None)
    if g:
        g.kill()
    s = w.b.guest("vm", nics=1, incoming=True, append=f"mc.ip={mctest.LAN}.50/24 {LOAD}")
    w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args(), "--insecure", *arbiter.args)
    w.a.mcctl(*sc.protect_args(w.a, w.b), *arbiter.args)
    w.a.wait_state("PROTECTED")
    return s


def test_arbiter():
    """Asked before a takeover and before HELD is left; nothing waits for its answer; it decides."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        guest = sc.boot(w.a, work=LOAD)
        arbiter = Arbiter(w)
        s = protect_with(w, arbiter)
        redis = mctest.Redis(w)
        # An operator's failover, refused: protection went on all the time.
        w.b.mcctl("failover", "vm")
        mctest.wait_for("a second question, the first one unanswered", lambda: len(arbiter.asked("backup")) >= 2, 5)
        check(arbiter.asked("backup")[0][:2] == ["vm", "failover"], f"asked {arbiter.asked('backup')}")
        sc.epochs_go_on(w.a, 10)
        arbiter.say("backup", "lost")
        mctest.wait_for("the refusal", lambda: any("refuses the failover" in t for t in events(w.b, "arbiter")), 5)
        sc.epochs_go_on(w.a, 5)
        check(w.b.state() == "PROTECTED", f"the backup is {w.b.state()}")
        # The link breaks: the primary wins.
        arbiter.say("primary", "won")
        sc.write_for(redis, 0.3)
        w.a.run("ip", "link", "set", "repl", "down")
        w.b.wait_state("STOPPED", timeout=5)
        w.a.wait_state("DEGRADED", timeout=5)
        check(w.b.status()["Reason"] == "arbiter" and w.a.status()["Reason"] == "arbiter", "reasons")
        check(s.status() == "inmigrate" and guest.status() == "running", f"{s.status()}, {guest.status()}")
        sc.write_for(redis, 0.3)
        check(w.b.mcctl("failover", "vm", ok=False).returncode == 1, "a failover after the arbiter's word")
        # And once more: the backup wins.
        w.a.run("ip", "link", "set", "repl", "up")
        arbiter.say("primary", "lost")
        arbiter.say("backup", "won")
        protect_with(w, arbiter)
        sc.write_for(redis, 0.3)
        w.a.run("ip", "link", "set", "repl", "down")
        w.b.wait_state("ACTIVE", timeout=5)
        w.a.wait_state("STOPPED", timeout=5)
        check(w.a.status()["Reason"] == "arbiter" and guest.status() == "paused", f"{w.a.status()['Reason']}")
        sc.write_for(redis, 0.3)
        check(redis.lost() == 0, "values lost")


def bios(w, protect=True):
    """A guest without a system, and its standby."""
    kw = {"bios": True, "serial": False, "nics": 0, "mem": 64}
    g, s = w.a.guest("vm", **kw), w.b.guest("vm", incoming=True, **kw)
    w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, "--insecure")
    if protect:
        protect_bios(w)
    return g, s


def protect_bios(w):
    w.a.mcctl("protect", "vm", "--qmp", w.a.guests["vm"].qmp_path, "--peer", f"{w.b.addr}:{PORT}", "--gate", "none",
              "--interval", 50, "--insecure")


def write_term(host, number, ident):
    with open(f"{host.state_dir}/vm.term", "w", encoding="ascii") as f:
        f.write(f"current {number} {ident:x}\nreserved 0 0\n")


def test_terms():
    """Equal numbers with different ids, and a host that comes back with what it knew long ago."""
    with mctest.World(taps=0) as w:
        w.a.start()
        w.b.start()
        write_term(w.a, 6, 0xa)
        write_term(w.b, 7, 0xb)
        bios(w)
        w.a.wait_state("STOPPED", timeout=5)
        check(w.a.status()["Reason"] == "conflict" and w.a.status()["Term"] == 7, f"{w.a.status()}")
        check("term 7 was raised twice" in w.a.status()["Message"], w.a.status()["Message"])
        for h in (w.a, w.b):
            check(any("term 7 was raised twice" in t for t in events(h, "conflict")), f"no conflict event on {h.name}")
        check(w.b.state() == "WAITING", f"the backup is {w.b.state()}")
        # The next number is above both.
        protect_bios(w)
        w.a.wait_state("PROTECTED")
        sc.epochs_go_on(w.a, 3)
        w.a.kill_everything()
        w.b.wait_state("ACTIVE", timeout=5)
        # The host reboots from an old image of its disk.
        write_term(w.a, 2, 0xa)
        w.a.start()
        g = w.a.guest("vm", bios=True, serial=False, nics=0, mem=64)
        protect_bios(w)
        w.a.wait_state("STOPPED", timeout=5)
        check(w.a.status()["Reason"] == "taken-over", f"{w.a.status()['Reason']}")
        check(w.b.state() == "ACTIVE" and w.b.guests["vm"].status() == "running", "the active one was disturbed")
        # Even where a new standby waits meanwhile.
        w.b.mcctl("unprotect", "vm")
        w.b.guests["vm"].kill()
        s = w.b.guest("vm", bios=True, serial=False, nics=0, mem=64, incoming=True)
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, "--insecure")
        protect_bios(w)
        w.a.wait_state("STOPPED", timeout=5)
        check("isn't above term" in w.a.status()["Message"], w.a.status()["Message"])
        check(w.b.state() == "WAITING" and g.status() == "running", f"{w.b.state()}, {g.status()}")
        time.sleep(0.2)
        check(w.a.state() == "STOPPED", "it didn't stay so")
