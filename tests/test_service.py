# SPDX-License-Identifier: GPL-2.0-or-later
"""The service as orchestration sees it: D-Bus, command line, metrics, several guests."""

import json
import os
import re
import signal
import subprocess
import time

import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is

ROOT = "/org/microcheckpoint1"
BUS = "org.microcheckpoint1"


def busctl(host, *args, ok=True):
    """Runs busctl on the host's bus; JSON output."""
    r = subprocess.run([*host.enter(), "busctl", f"--address={host.bus}", "--json=short", *map(str, args)],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    if ok and r.returncode:
        raise mctest.Failure(f"busctl {args}: {r.stderr}")
    return json.loads(r.stdout) if r.returncode == 0 and r.stdout.strip() else r


def prop(host, path, iface, name):
    """One property."""
    return busctl(host, "get-property", BUS, path, f"{BUS}.{iface}", name)["data"]


def members(host, path, iface):
    """Names of all members of an interface, from its introspection."""
    xml = busctl(host, "call", BUS, path, "org.freedesktop.DBus.Introspectable", "Introspect")["data"][0]
    part = xml.split(f'<interface name="{BUS}.{iface}">')[1].split("</interface>")[0]
    return set(re.findall(r'<(?:method|property|signal) name="(\w+)"', part))


def test_orchestrator_drives_it_by_dbus():
    """protect -> checkpoint -> set -> failover through busctl alone; every documented member is there."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        s = w.b.guest("vm", nics=1, incoming=True, append=f"mc.ip={mctest.LAN}.50/24 mc.redis=1")
        check({"Protect", "Standby", "Unprotect", "ListGuests", "GetGuest", "GuestAdded", "GuestRemoved", "Version"}
              <= members(w.a, ROOT, "Manager"), "Manager's members")
        busctl(w.b, "call", BUS, ROOT, f"{BUS}.Manager", "Standby", "sa{sv}", "vm", 3, "qmp", "s", s.qmp_path,
               "relay", "s", s.relay_args()[1], "insecure", "b", "true")
        busctl(w.a, "call", BUS, ROOT, f"{BUS}.Manager", "Protect", "sa{sv}", "vm", 6, "qmp", "s", g.qmp_path,
               "peer", "s", f"{w.b.addr}:{mctest.PORT}", "relay", "s", g.relay_args()[1], "insecure", "b", "true",
               "interval", "d", "25", "accept", "s", "isa-serial")
        path = busctl(w.a, "call", BUS, ROOT, f"{BUS}.Manager", "GetGuest", "s", "vm")["data"][0]
        check(path == f"{ROOT}/guest/vm", path)
        check({"Checkpoint", "Failover", "Hold", "Resume", "Resolve", "Set", "SetWorkers", "State", "Role", "Term",
               "Epoch", "CommittedEpoch", "StateChanged", "Committed", "FailedOver", "Progress"}
              <= members(w.a, path, "Guest"), f"Guest's members: {members(w.a, path, 'Guest')}")
        mctest.wait_for("PROTECTED", lambda: prop(w.a, path, "Guest", "State") == "PROTECTED", 30, every=0.1)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.5)
        before = prop(w.a, path, "Guest", "CommittedEpoch")
        busctl(w.a, "call", BUS, path, f"{BUS}.Guest", "Checkpoint")
        check(prop(w.a, path, "Guest", "CommittedEpoch") > before, "Checkpoint answered before an epoch was committed")
        busctl(w.a, "call", BUS, path, f"{BUS}.Guest", "Set", "a{sv}", 1, "interval", "d", "50")
        metrics(w)
        nonsense(w, path)
        busctl(w.b, "call", BUS, f"{ROOT}/guest/vm", f"{BUS}.Guest", "Failover", "b", "false")
        mctest.wait_for("ACTIVE", lambda: prop(w.b, path, "Guest", "State") == "ACTIVE", 10, every=0.05)
        sc.write_for(redis, 0.3)
        check(redis.lost() == 0, "acknowledged values lost")


PRIMARY = {
    "capture": ["checkpoints", "downtime", "bitmap_time", "log_dirty_time", "ram_copy_time", "copy_mbps", "wait_time",
                "dirty_pages", "guest_clock_lag", "pages_total"],
    "stage": ["encoded_pages", "bytes_in", "bytes_out", "queue_depth"],
    "transport": ["bytes_xfer", "mbps", "xmit_time", "epochs_acked"],
    "netgate": ["held_packets", "barriers", "releases", "frames_out"],
}
MOVING = ["checkpoints", "downtime", "bitmap_time", "ram_copy_time", "copy_mbps", "pages_total", "encoded_pages",
          "bytes_in", "bytes_out", "bytes_xfer", "mbps", "xmit_time", "epochs_acked", "barriers", "releases"]


def stage_props(host, role):
    """All properties of a Stage object, lower case without underscores."""
    r = busctl(host, "call", BUS, f"{ROOT}/guest/vm/{role}/0", "org.freedesktop.DBus.Properties", "GetAll", "s",
               f"{BUS}.Stage")
    return {k.lower().replace("_", ""): v["data"] for k, v in r["data"][0].items()}


def metrics(w):
    """Every metric is on the bus; those that must move do."""
    for role, names in PRIMARY.items():
        have = stage_props(w.a, role)
        for n in names:
            check(n.replace("_", "") in have, f"{role} has no metric {n}: {sorted(have)}")
            if n in MOVING:
                check(have[n.replace("_", "")] > 0, f"{role}.{n} is 0")
        check(have["pid"] > 0 and have["restartcount"] == 0, f"{role}: {have}")
    have = stage_props(w.b, "restore")
    check(have["commits"] > 0 and have["decodedpages"] > 0, f"restore: {have}")


def nonsense(w, path):
    """Wrong types, unknown keys, foreign paths: an error each, nothing changes."""
    for args in (("Set", "a{sv}", 1, "interval", "s", "often"), ("Set", "a{sv}", 1, "nonsense", "s", "x"),
                 ("Set", "a{sv}", 1, "interval", "d", "-3"), ("Set", "a{sv}", 1, "qmp", "s", "/tmp/x"),
                 ("SetWorkers", "su", "stage", 0), ("SetWorkers", "su", "stage", 1000),
                 ("SetWorkers", "su", "kitchen", 1), ("SetWorkers", "su", "capture", 2), ("Resolve", "s", "maybe"),
                 ("Resolve", "s", "promote"), ("Checkpoint", "s", "x")):
        r = busctl(w.a, "call", BUS, path, f"{BUS}.Guest", *args, ok=False)
        check(not isinstance(r, dict) and r.returncode, f"{args} was accepted")
    r = busctl(w.a, "call", BUS, f"{ROOT}/guest/nobody", f"{BUS}.Guest", "Checkpoint", ok=False)
    check(not isinstance(r, dict), "a guest that doesn't exist")
    check(prop(w.a, path, "Guest", "State") == "PROTECTED", "nonsense changed the state")
    sc.epochs_go_on(w.a, 3)


def test_unprotect():
    """The guest runs on with an open gate; nothing of ours stays in QEMU or on the host."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        fds = len(w.a.run("ls", f"/proc/{g.pid}/fd").split())
        s = sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.3)
        w.a.mcctl("unprotect", "vm")
        sc.write_for(redis, 0.3)
        check(redis.lost() == 0, "values lost")
        links = w.a.run("sh", "-c", f"ls -l /proc/{g.pid}/fd")
        check("userfaultfd" not in links, "the userfaultfd stayed open in QEMU")
        check(len(w.a.run("ls", f"/proc/{g.pid}/fd").split()) <= fds, f"QEMU has more fds than before: {links}")
        check(not w.a.worker_pids("capture") and not w.a.worker_pids("transport"), "processes are left")
        w.a.kill_everything()
        time.sleep(1)
        check(s.status() == "inmigrate", f"the disarmed standby is {s.status()}")


def test_unprotect_needs_the_backup():
    """With an unreachable backup the gate may not open for good."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        sc.protect(w.a, w.b)
        w.a.run("ip", "link", "set", "repl", "down")
        w.a.wait_state("HELD", timeout=5)
        r = w.a.mcctl("status", "--check", ok=False)
        check(r.returncode == 2 and "vm (HELD, peer-lost) is paused: its backup can't be reached" in r.stdout, f"{r.returncode} {r.stdout}")
        last = [line for line in w.a.mcctl("events", "vm").stdout.splitlines() if "-> HELD" in line][-1]
        check(last.endswith(")"), f"a sentence that is missing: {last}")
        r = w.a.mcctl("unprotect", "vm", ok=False)
        check(r.returncode == 1 and "resolve" in r.stderr.lower(), f"unprotect: {r.returncode} {r.stderr}")
        check(w.a.state() == "HELD" and g.status() == "paused", f"{w.a.state()}, guest {g.status()}")
        # Its capture is told to quit before it has seen that the guest may go on.
        capture = w.a.worker_pids("capture")[0][0]
        os.kill(capture, signal.SIGSTOP)
        os.kill(capture, signal.SIGTERM)
        w.a.mcctl("resolve", "vm", "promote")
        w.a.wait_state("DEGRADED", timeout=5)
        os.kill(capture, signal.SIGCONT)
        mctest.wait_for("the guest to run after promote", lambda: g.status() == "running", 2)


def test_knobs():
    """interval, hold and resume, workers, restart, status: all on a running protection."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work="mc.redis=1 mc.memcheck=64:100")
        mem = mctest.MemCheck(w)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)

        def rate(seconds=1.5):
            n, t = w.a.status()["CommittedEpoch"], time.monotonic()
            sc.write_for(redis, seconds)
            return (w.a.status()["CommittedEpoch"] - n) / (time.monotonic() - t)
        fast = rate()
        w.a.mcctl("set", "vm", "interval=200")
        slow = rate(3)
        check(slow < 5.5, f"{slow:.1f} epochs a second at 200 ms")
        check(fast > 2 * slow, f"{fast:.1f} epochs a second at 25 ms, {slow:.1f} at 200 ms")
        w.a.mcctl("set", "vm", "interval=25")
        w.a.mcctl("workers", "vm", "stage", 3)
        mctest.wait_for("three workers", lambda: len(w.a.worker_pids("stage")) == 3, 5)
        sc.write_for(redis, 0.5)
        w.a.mcctl("workers", "vm", "stage", 1)
        mctest.wait_for("one worker", lambda: len(w.a.worker_pids("stage")) == 1, 5)
        sc.epochs_go_on(w.a)
        w.a.mcctl("restart", "vm", "stage")
        sc.epochs_go_on(w.a)
        w.a.mcctl("hold", "vm")
        time.sleep(0.3)
        held = w.a.status()["CommittedEpoch"]
        time.sleep(0.5)
        check(w.a.status()["CommittedEpoch"] == held, "epochs go on while held")
        w.a.mcctl("resume", "vm")
        sc.epochs_go_on(w.a)
        check("PROTECTED" in w.a.mcctl("status").stdout, "mcctl status")
        check("vm" in w.a.mcctl("top", "--once").stdout, "mcctl top --once")
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "values lost")
        sc.no_bad_words(mem)


def test_several_guests_both_roles():
    """Two guests, each host primary of one and backup of the other."""
    with mctest.World(taps=2) as w:
        w.a.start()
        w.b.start()
        for src, dst, name, ip, tap in ((w.a, w.b, "one", 51, 0), (w.b, w.a, "two", 52, 1)):
            kw = {"append": f"mc.ip={mctest.LAN}.{ip}/24 mc.redis=1", "serial": False, "mem": 192}
            g = src.guest(name, **kw)
            s = dst.guest(name, incoming=True, **kw)
            relay = [["--relay", f"n0=unix:{x.dir}/r0,tap=tap{tap}"] for x in (g, s)]
            dst.mcctl("standby", name, "--qmp", s.qmp_path, *relay[1], "--insecure")
            src.mcctl("protect", name, "--qmp", g.qmp_path, "--peer", f"{dst.addr}:{mctest.PORT}", "--insecure",
                      "--interval", 50, *relay[0])
            src.wait_state("PROTECTED", name)
        listed = w.a.mcctl("status").stdout
        check("one" in listed and "two" in listed, listed)
        r1, r2 = mctest.Redis(w, f"{mctest.LAN}.51"), mctest.Redis(w, f"{mctest.LAN}.52")
        sc.write_for(r1, 0.5)
        sc.write_for(r2, 0.5)
        w.a.kill_everything()
        sc.write_for(r1, 0.5)
        check(r1.lost() == 0 and w.b.state("one") == "ACTIVE", "guest one")
        mctest.wait_for("guest two notices", lambda: w.b.state("two") == "HELD", 5, every=0.05)


def test_numa_and_smp():
    """Two RAM backends of equal size, two vCPUs."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        kw = {"ram": "numa", "smp": 2}
        sc.boot(w.a, work="mc.redis=1 mc.memcheck=96:200", **kw)
        mem = mctest.MemCheck(w)
        sc.protect(w.a, w.b, standby_kw=kw)
        redis = mctest.Redis(w)
        sc.write_for(redis, 2)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "values lost")
        sc.no_bad_words(mem)


def test_dry_run_and_standby_args():
    """--dry-run changes nothing; standby-args prints a command that makes a fitting standby."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        w.a.mcctl(*sc.protect_args(w.a, w.b), "--dry-run")
        left = [p for p in w.a.worker_pids() if p[1] != "mc-supervisor"]
        check(not left, f"--dry-run started {left}")
        r = w.a.mcctl("standby-args", "vm", "--qmp", g.qmp_path)
        check("-incoming" in r.stdout and "qemu-system" in r.stdout, r.stdout)
        line = r.stdout.strip().splitlines()[-1].replace(w.a.dir, w.b.dir)
        os.makedirs(f"{w.b.dir}/vm")
        w.b.spawn("sh", "-c", "exec " + line, log=f"{w.b.dir}/standby.log")
        path = f"{w.b.dir}/vm/qmp"
        mctest.wait_for("standby's QMP", lambda: os.path.exists(path))
        w.b.mcctl("standby", "vm", "--qmp", path, "--relay", f"n0=unix:{w.b.dir}/vm/r0,tap=tap0", "--insecure")
        w.a.mcctl(*sc.protect_args(w.a, w.b))
        w.a.wait_state("PROTECTED", timeout=60)


def test_heavy_writer():
    """A guest that writes faster than an epoch can be copied in one stop: pre-scans, and no bad word."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work="mc.redis=1 mc.memcheck=96")
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        mem = mctest.MemCheck(w)
        w.a.mcctl("set", "vm", "interval=100")
        sc.write_for(redis, 3)
        have = stage_props(w.a, "capture")
        check(have["prescans"] > 0, f"no pre-scan at {have['dirtypages']} dirty pages")
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "values lost")
        sc.no_bad_words(mem)


def test_gate_none():
    """Asked for by name, output isn't held; the rest works the same."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = w.a.guest("vm", bios=True, serial=False, nics=0, mem=128)
        s = w.b.guest("vm", bios=True, serial=False, nics=0, mem=128, incoming=True)
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, "--insecure")
        w.a.mcctl("protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--gate", "none",
                  "--interval", 20, "--insecure")
        w.a.wait_state("PROTECTED")
        check(w.a.status()["Gate"] == "none", f"gate {w.a.status()['Gate']}")
        sc.epochs_go_on(w.a, 20)
        g.kill()
        w.b.wait_state("ACTIVE", timeout=5)
        check(s.status() == "running", f"standby is {s.status()}")


def overload(w, policy):
    """Protects with a policy, then makes every epoch fail: the gate is stopped, no barrier is set."""
    g = sc.boot(w.a)
    sc.protect(w.a, w.b, "--on-overload", policy, "--abort-limit", 5)
    sc.epochs_go_on(w.a, 3)
    os.kill(w.a.worker_pids("netgate")[0][0], signal.SIGSTOP)
    return g


def test_overload_hold():
    """Epochs that fail again and again: with `hold` the guest is paused, until one succeeds or somebody decides."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = overload(w, "hold")
        w.a.wait_state("HELD", timeout=10)
        check(w.a.status()["Reason"] == "overload", f"reason {w.a.status()['Reason']}")
        check(g.status() == "paused", f"guest is {g.status()}")
        # The gate that hangs is replaced: what was too much has gone.
        w.a.wait_state("PROTECTED", timeout=5)
        check(w.a.status()["Reason"] == "relieved", f"reason {w.a.status()['Reason']}")
        mctest.wait_for("the guest to run", lambda: g.status() == "running", 2)
        sc.epochs_go_on(w.a, 5)


def test_overload_throttle():
    """With `throttle`, the default, the interval grows, and epochs go on once they can."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        overload(w, "throttle")
        time.sleep(2)
        check(w.a.state() == "PROTECTED", f"state {w.a.state()}")
        os.kill(w.a.worker_pids("netgate")[0][0], signal.SIGCONT)
        sc.epochs_go_on(w.a, 20)
