# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of single processes: the guest goes on, nothing leaks, the standby stays right."""

import os
import random
import signal
import time

import mctest
from faults import guards
import scenario as sc
from mctest import check

IN_PAIRS = True  # what has a limit here has one of seconds

LOAD = "mc.redis=1 mc.memcheck=64:100 mc.counter=2000"
ROUNDS = 4


def kill_one(host, role):
    """kill -9 of the process of a role; returns its pid."""
    pids = host.worker_pids(role)
    check(pids, f"no mc-{role} on host {host.name}")
    pid = pids[0][0]
    os.kill(pid, signal.SIGKILL)
    return pid


def one_role(side, role):
    """Kills one role several times under load, then the host: nothing may be lost."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, work=LOAD)
        mem = mctest.MemCheck(w)
        watch = mctest.CounterWatch(w)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        host = w.a if side == "primary" else w.b
        for i in range(ROUNDS):
            sc.write_for(redis, 0.2 + random.random() / 4)
            old = kill_one(host, role)
            mctest.wait_for(f"a new mc-{role}", lambda: any(p != old for p, _ in host.worker_pids(role)), 5)
            sc.epochs_go_on(w.a, 3)
            check(w.a.state() == "PROTECTED", f"after kill {i} of {role}: {w.a.state()}")
            mctest.wait_for(f"the guest to run after kill {i} of {role}", lambda: g.status() == "running", 1)
            watch.poll()
        sc.no_bad_words(mem)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
        sc.no_bad_words(mem)
        watch.poll()
        check(not watch.back, f"counts taken back: {watch.back[:3]}")


def test_kill_capture():
    """The guard lets the guest go on, the successor misses no page."""
    one_role("primary", "capture")


def test_kill_stage():
    """The successor encodes again."""
    one_role("primary", "stage")


def test_kill_transport_primary():
    """Reconnects within restart_grace, sends again."""
    one_role("primary", "transport")


def test_kill_netgate():
    """A dead gate is a shut gate."""
    one_role("primary", "netgate")


def test_kill_transport_backup():
    """The primary reconnects; the backup doesn't take over."""
    one_role("backup", "transport")


def test_kill_restore():
    """The successor applies again to the same result."""
    one_role("backup", "restore")


def kill_pid(host, role):
    """The process that is to die."""
    return host.worker_pids(role)[0][0]


def adopt(host):
    """A new supervisor has the guest within a second of its start."""
    t = time.monotonic()
    host.start_supervisor()
    mctest.wait_for("guest adopted", lambda: host.mcctl("status", "vm", ok=False).returncode == 0, 5, every=0.02)
    check(time.monotonic() - t < 1, f"adopted after {time.monotonic() - t:.2f} s")


def test_kill_supervisors():
    """Protection goes on without them; successors adopt what runs."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work=LOAD)
        mem = mctest.MemCheck(w)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        for host in (w.a, w.b):
            host.supervisor.kill()
            host.supervisor.wait()
        sc.write_for(redis, 1)
        adopt(w.a)
        adopt(w.b)
        check(w.a.state() == "PROTECTED" and w.b.state() == "PROTECTED",
              f"states {w.a.state()} and {w.b.state()}")
        sc.epochs_go_on(w.a, 5)
        # What dies with the supervisor is started by the next one.
        for p in (w.a.supervisor.pid, *(kill_pid(w.a, r) for r in ("capture", "stage"))):
            os.kill(p, signal.SIGKILL)
        w.a.supervisor.wait()
        adopt(w.a)
        sc.epochs_go_on(w.a, 5)
        sc.write_for(redis, 0.2)
        w.b.supervisor.kill()
        w.b.supervisor.wait()
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost: takeover needs no supervisor")
        sc.no_bad_words(mem)


def test_stopped_processes_pause_little():
    """kill -9 of capture at random instants never leaves the guest paused beyond 100 ms."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, work=LOAD)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        g.qmp.events.clear()
        for _ in range(10):
            sc.write_for(redis, 0.1 + random.random() / 10)
            old = kill_one(w.a, "capture")
            mctest.wait_for("a new mc-capture", lambda: any(p != old for p, _ in w.a.worker_pids("capture")), 5)
            sc.epochs_go_on(w.a, 2)
        g.qmp.cmd("query-status")
        stopped = None
        longest = 0
        for e in g.qmp.events:
            t = e["timestamp"]["seconds"] + e["timestamp"]["microseconds"] / 1e6
            if e["event"] == "STOP":
                stopped = t
            elif e["event"] == "RESUME" and stopped is not None:
                longest = max(longest, t - stopped)
                stopped = None
        check(longest < 0.1, f"guest paused for {longest * 1000:.0f} ms")
        check(len(g.qmp.events) > 100, f"only {len(g.qmp.events)} events")


def test_kill_guard():
    """A guard that dies is replaced; the next death of capture finds one."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, work=LOAD)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        for _ in range(3):
            old = guards(w.a)
            check(len(old) == 1, f"guards: {old}")
            os.kill(old[0], signal.SIGKILL)
            mctest.wait_for("a new guard", lambda: guards(w.a) and guards(w.a) != old, 5)
            sc.epochs_go_on(w.a, 3)
            kill_one(w.a, "capture")
            mctest.wait_for("the guest to run", lambda: g.status() == "running", 1)
            sc.epochs_go_on(w.a, 3)
            sc.write_for(redis, 0.2)
        check(w.a.state() == "PROTECTED", f"state {w.a.state()}")
