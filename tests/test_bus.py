# SPDX-License-Identifier: GPL-2.0-or-later
"""The bus as a watching orchestrator sees it: every signal, property and metric."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import mctest
import scenario as sc
from mctest import check
from test_service import BUS, ROOT, busctl

IN_PAIRS = True  # nothing here depends on how fast the machine is

GUEST_PROPERTIES = {
    "Name": "s", "State": "s", "Reason": "s", "Role": "s", "Peer": "s", "Qmp": "s", "Gate": "s", "Message": "s",
    "Term": "t", "Epoch": "t", "CommittedEpoch": "t", "TookOver": "t", "SyncDone": "t", "SyncTotal": "t",
    "PauseP50": "t", "PauseP99": "t", "PauseMax": "t", "CommitP50": "t", "CommitP99": "t", "ReleaseP50": "t",
    "ReleaseP99": "t", "HeldPackets": "t", "Slabs": "t", "SlabsUsed": "t", "Strikes": "t", "Workers": "t",
    "Interval": "d", "Ratio": "d", "Link": "b",
}

# What must have moved on a primary that writes, by process.
MOVES = {
    "capture": ["checkpoints", "downtime", "longest_stop", "bitmap_time", "log_dirty_time", "ram_copy_time",
                "copy_mbps", "state_time", "stop_time", "cont_time", "barrier_time", "wait_time", "dirty_pages",
                "pages_total", "state_bytes", "guest_clock_lag", "pause_p50", "pause_p99", "pause_max",
                "longest_stop_p50", "longest_stop_p99", "longest_stop_max"],
    "stage": ["encoded_pages", "zero_pages", "delta_pages", "full_pages", "bytes_in", "bytes_out", "encode_time"],
    "transport": ["bytes_xfer", "mbps", "xmit_time", "epochs_sent", "epochs_acked", "rtt", "commit_p50",
                  "commit_p99", "commit_max"],
    "netgate": ["barriers", "releases", "frames_out", "frames_in", "release_p50", "release_p99", "release_max"],
}
# What is there, and may well be 0.
THERE = {
    "capture": ["aborts", "prescans"],
    "stage": ["queue_depth"],
    "transport": ["nacks", "reconnects", "bytes_received"],
    "netgate": ["held_packets", "held_bytes", "gate_drops", "purged", "leaks"],
}
MOVES_ON_BACKUP = {"restore": ["decoded_pages", "decode_time", "apply_time", "commits"], "transport": ["bytes_received"]}


class Monitor:
    """All signals of our service on a host's bus."""

    def __init__(self, host):
        self.path = f"{host.dir}/signals"
        self.proc = host.spawn("busctl", f"--address={host.bus}", "--json=short", "monitor",
                               f"--match=type='signal',path_namespace='{ROOT}'", log=self.path)
        # It listens once the bus has made it a monitor: from then on its own name is gone.
        mctest.wait_for("busctl monitor", lambda: "Monitoring bus" in self.text(), 10)

    def text(self):
        with open(self.path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def all(self, member):
        """Arguments of every signal of that name so far."""
        out = []
        for line in self.text().splitlines():
            if line.startswith("{"):
                m = json.loads(line)
                if m.get("member") == member:
                    out.append(m["payload"]["data"])
        return out


def get_all(host, path, iface):
    """Every property of an object: name -> (type, value)."""
    r = busctl(host, "call", BUS, path, "org.freedesktop.DBus.Properties", "GetAll", "s", f"{BUS}.{iface}")
    return {k: (v["type"], v["data"]) for k, v in r["data"][0].items()}


def check_metrics(host, role, moves, there=()):
    have = get_all(host, f"{ROOT}/guest/vm/{role}/0", "Stage")
    for n in (*moves, *there):
        check(n in have, f"mc-{role} has no metric {n}: {sorted(have)}")
    for n in moves:
        check(have[n][1] > 0, f"mc-{role}: {n} is {have[n][1]}")
    for n, t in (("Name", "s"), ("Index", "u"), ("Pid", "u"), ("State", "s"), ("RestartCount", "t")):
        check(have[n][0] == t, f"{n} of mc-{role} is of type {have[n][0]}")
    check(have["State"][1] == "running", f"mc-{role} is {have['State'][1]}")


def test_everything_on_the_bus():
    """protect, kill a process, fail over: each signal comes, each property and metric is there and right."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work="mc.redis=1 mc.memcheck=64:100")
        on_a, on_b = Monitor(w.a), Monitor(w.b)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 1)
        path = f"{ROOT}/guest/vm"
        have = get_all(w.a, path, "Guest")
        for name, kind in GUEST_PROPERTIES.items():
            check(have.get(name, (None,))[0] == kind, f"property {name}: {have.get(name)}, not of type {kind}")
        check(have["Role"][1] == "primary" and have["Link"][1] is True and have["Ratio"][1] > 1, f"{have}")
        check(have["SyncDone"][1] >= have["SyncTotal"][1] > 0, f"first copy {have['SyncDone']} {have['SyncTotal']}")
        for role, names in MOVES.items():
            check_metrics(w.a, role, names, THERE[role])
        for role, names in MOVES_ON_BACKUP.items():
            check_metrics(w.b, role, names, ["refused_epochs"] if role == "restore" else [])
        old = w.a.worker_pids("stage")[0][0]
        os.kill(old, signal.SIGKILL)
        mctest.wait_for("RestartCount 1", lambda: get_all(w.a, f"{path}/stage/0", "Stage")["RestartCount"][1] == 1, 5)
        w.b.mcctl("failover", "vm")
        w.b.wait_state("ACTIVE", timeout=5)
        w.a.wait_state("STOPPED", timeout=5)
        w.a.mcctl("unprotect", "vm")
        mctest.wait_for("GuestRemoved", lambda: on_a.all("GuestRemoved"), 5)
        check_signals(w, on_a, on_b)


def check_signals(w, on_a, on_b):
    path = f"{ROOT}/guest/vm"
    check(on_a.all("GuestAdded") == [["vm", path]] and on_a.all("GuestRemoved") == [["vm", path]],
          f"{on_a.all('GuestAdded')} {on_a.all('GuestRemoved')}")
    moves = [(o, n) for o, n, _ in on_a.all("StateChanged")]
    check(moves == [("NONE", "SYNCING"), ("SYNCING", "PROTECTED"), ("PROTECTED", "STOPPED")], f"primary: {moves}")
    moves = [(o, n) for o, n, _ in on_b.all("StateChanged")]
    check(moves[:3] == [("NONE", "WAITING"), ("WAITING", "SYNCING"), ("SYNCING", "PROTECTED")] and
          moves[-1][1] == "ACTIVE", f"backup: {moves}")
    epochs = [e for e, in on_a.all("Committed")]
    check(len(epochs) > 5 and epochs == sorted(set(epochs)), f"committed: {epochs}")
    progress = on_a.all("Progress")
    check(progress and all(0 < done for done, _ in progress) and progress == sorted(progress), f"progress {progress}")
    died = on_a.all("StageDied")
    check(len(died) == 1 and died[0][:2] == ["stage", 0] and died[0][3] == "was killed by signal 9", f"died: {died}")
    (term, epoch, took), = on_b.all("FailedOver")
    status = w.b.status()
    check(term == status["Term"] and epoch == status["CommittedEpoch"] and 0 < took < 1000000,
          f"FailedOver({term}, {epoch}, {took}), status {status}")
    changed = [p for p in on_a.all("PropertiesChanged") if "State" in p[1]]
    check(len(changed) >= 3, f"PropertiesChanged: {changed}")


def on_terminal(host, *args, until, keys=b"", limit=30):
    """Runs mcctl on a terminal of its own until its output holds `until`; presses keys; all that it printed."""
    pid, fd = pty.fork()
    if pid == 0:
        cmd = [*host.enter(), f"{mctest.BUILD}/mcctl", f"--bus={host.bus}", *map(str, args)]
        os.environ["TERM"] = "xterm"
        os.execvp(cmd[0], cmd)
    out, end, pressed = b"", time.monotonic() + limit, False
    try:
        while True:
            ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
            check(ready, f"mcctl {args}: '{until}' not within {limit} s: {out[-500:]}")
            try:
                data = os.read(fd, 65536)
            except OSError:
                data = b""
            if not data:
                break
            out += data
            if not pressed and until.encode() in out:
                os.write(fd, keys)
                pressed = True
    finally:
        os.close(fd)
        status = os.waitpid(pid, 0)[1]
    check(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"mcctl {args}: status {status:#x}: {out[-500:]}")
    return out.decode("utf-8", "replace")


def test_progress_and_top_on_a_terminal():
    """`protect` shows the first copy until it is done; `top` renews itself until q."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, mem=512)
        sc.standby(w.b, g)
        shown = on_terminal(w.a, *sc.protect_args(w.a, w.b, "--max-bandwidth", 15000000), until="PROTECTED")
        steps = {int(m) for m in re.findall(r"first copy (\d+) of \d+ MiB", shown)}
        check(len(steps) > 2, f"progress in steps of {sorted(steps)}: {shown}")
        check("PROTECTED" in shown, shown)
        took = float(re.search(r"SYNCING -> PROTECTED \(first-commit, after ([\d.]+) s", w.a.mcctl("events", "vm").stdout)[1])
        sent = float(re.search(r"^microcheckpoint_transport_bytes_xfer_total\S* ([\d.e+]+)$",
                               w.a.mcctl("metrics", "--prometheus").stdout, re.M)[1])
        check(1e6 < sent / took < 18e6, f"{sent} bytes in {took} s in spite of max-bandwidth")
        screens = on_terminal(w.a, "top", until="q quits", keys=b"q")
        check("vm" in screens and "PROTECTED" in screens, screens)
        check(re.search(r"phases +Stop \d.*State \d.*Scan \d.*Copy \d.*Barrier \d.*Cont \d", screens), screens)


def test_resolve_demote():
    """The operator decides that the other side goes on: this guest stays stopped, its output discarded."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        sc.protect(w.a, w.b)
        w.a.run("ip", "link", "set", "repl", "down")
        w.a.wait_state("HELD", timeout=5)
        r = subprocess.run([*w.a.enter(), f"{mctest.BUILD}/mcctl", f"--bus={w.a.bus}", "resolve", "vm", "perhaps"],
                           stderr=subprocess.PIPE, text=True, check=False)
        check(r.returncode == 1 and "promote" in r.stderr and "demote" in r.stderr, f"{r}")
        w.a.mcctl("resolve", "vm", "demote")
        w.a.wait_state("STOPPED", timeout=5)
        check(g.status() == "paused", f"guest is {g.status()}")
        w.b.wait_state("ACTIVE", timeout=5)
