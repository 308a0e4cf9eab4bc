# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest moves to its backup because somebody wants it to, not because something broke."""

import os
import signal
import subprocess
import time

import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is

LOAD = "mc.redis=1 mc.memcheck=64:100 mc.counter=2000"


def mcctl_beside(host, redis, *args):
    """Runs mcctl while the client writes; (its result, longest wait of the client in seconds)."""
    p = subprocess.Popen([*host.enter(), f"{mctest.BUILD}/mcctl", f"--bus={host.bus}", *args],
                         stderr=subprocess.PIPE, text=True)
    longest = 0
    while p.poll() is None:
        t = time.monotonic()
        redis.write()
        longest = max(longest, time.monotonic() - t)
    return p, longest


def test_planned_switchover():
    """Nothing that was written is lost, no frame dropped, the connection lives; a refused one changes nothing."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        guest = sc.boot(w.a, work=LOAD)
        mem = mctest.MemCheck(w)
        watch = mctest.CounterWatch(w)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.5)
        check(w.b.mcctl("failover", "vm", "--planned", ok=False).returncode == 1, "planned, on the backup")
        # A backup that doesn't commit: called off, and the guest runs on.
        pid = w.b.worker_pids("restore")[0][0]
        supervisor = w.b.worker_pids("supervisor")[0][0]
        os.kill(supervisor, signal.SIGSTOP)  # it would kill the other one
        os.kill(pid, signal.SIGSTOP)
        r = w.a.mcctl("failover", "vm", "--planned", ok=False)
        check(r.returncode == 1 and "in time" in r.stderr, f"{r.returncode}: {r.stderr}")
        check(w.a.state() == "PROTECTED", w.a.state())
        os.kill(pid, signal.SIGCONT)
        os.kill(supervisor, signal.SIGCONT)
        # Not before: without commits the guest is throttled soon.
        mctest.wait_for("the guest to run on", lambda: guest.status() == "running", timeout=2)
        sc.epochs_go_on(w.a, 5)
        sc.write_for(redis, 0.3)
        watch.poll()
        p, gap = mcctl_beside(w.a, redis, "failover", "vm", "--planned")
        check(p.returncode == 0, f"switchover: {p.stderr.read()}")
        check(gap < 1.5, f"the client waited {gap * 1000:.0f} ms")
        check(w.a.state() == "STOPPED" and guest.status() == "paused", f"{w.a.state()}, {guest.status()}")
        w.b.wait_state("ACTIVE", timeout=2)
        r = w.a.mcctl("status", "--check", ok=False)
        check(r.returncode == 2 and "vm (STOPPED, taken-over) is stopped here, its backup took over" in r.stdout, f"{r.returncode} {r.stdout}")
        check(w.b.status()["Reason"] == "failover", w.b.status()["Reason"])
        check(w.a.status()["HeldPackets"] == 0, f"{w.a.status()['HeldPackets']} frames were held and dropped")
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "values lost")
        sc.no_bad_words(mem)
        watch.poll()
        check(not watch.back, f"counts taken back: {watch.back[:3]}")
        print(f"        client waited at most {gap * 1000:.0f} ms; takeover at epoch "
              f"{w.b.status()['CommittedEpoch']} of {w.a.status()['Epoch']}")


def throwaways():
    """Throw-away QEMUs and their helpers: they have no network, and so no host's namespace."""
    out = []
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{p}/cmdline", "rb") as f:
                args = f.read().split(b"\0")
        except OSError:
            continue
        if b"chardev=mc-rehearse,mode=control" in args or b"--rehearse" in args:
            out.append(int(p))
    return out


def is_qemu(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith("qemu-system-x86_64")
    except OSError:
        return False


def test_rehearsal():
    """The last epoch loads, in a QEMU of which nothing stays; protection and a takeover don't wait for it."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work=LOAD)
        mem = mctest.MemCheck(w)
        r = w.b.mcctl("rehearse", "vm", ok=False)
        check(r.returncode == 1, "a guest that isn't there")
        s = sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        check(w.a.mcctl("rehearse", "vm", ok=False).returncode == 1, "on the primary")
        shm = w.b.run("ls", "/dev/shm")
        for _ in range(2):
            p, gap = mcctl_beside(w.b, redis, "rehearse", "vm")
            check(p.returncode == 0, f"rehearsal: {p.stderr.read()}")
            check(gap < 1, f"the client waited {gap * 1000:.0f} ms")
            sc.epochs_go_on(w.a, 3)
        check(w.b.run("ls", "/dev/shm") == shm and not throwaways(), f"left behind: {throwaways()}")
        check(w.b.state() == "PROTECTED" and s.status() == "inmigrate", f"{w.b.state()}, {s.status()}")
        text = [line for line in w.b.mcctl("events", "vm").stdout.splitlines() if "loads" in line]
        check(len(text) == 2, f"events: {text}")
        print("       ", text[-1])
        # The host dies while one is under way.
        p = subprocess.Popen([*w.b.enter(), f"{mctest.BUILD}/mcctl", f"--bus={w.b.bus}", "rehearse", "vm"],
                             stderr=subprocess.PIPE, text=True)
        # Held, so that it can't be over before the takeover.
        for pid in mctest.wait_for("the throw-away QEMU", lambda: [p for p in throwaways() if is_qemu(p)], 5):
            os.kill(pid, signal.SIGSTOP)
        w.a.kill_everything()
        w.b.wait_state("ACTIVE", timeout=3)
        check(p.wait() == 1, "a rehearsal that was cut short is a success")
        check(not throwaways(), f"left behind: {throwaways()}")
        sc.write_for(redis, 0.3)
        check(redis.lost() == 0, "values lost")
        sc.no_bad_words(mem)
