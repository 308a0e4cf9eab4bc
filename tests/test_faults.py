# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that die at a chosen point, hang, are replaced by other builds, or can't run at all."""

import os
import shutil
import signal
import subprocess
import time

import faults
import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # what has a limit here has one of seconds

# One of each kind; tests/soak/matrix has them all.
SAMPLE = (("capture.scan.taken", "crash"), ("capture.journal.captured.done", "crash"), ("capture.carry.cleared", "crash"),
          ("capture.copy.done", "error"), ("stage.shadow.half", "crash"), ("stage.marked", "crash"),
          ("transport.ack.received", "crash"), ("transport.journal.sent", "crash"), ("netgate.release.frame", "crash"),
          ("netgate.barrier.set", "crash"), ("transport.backup.slab.landed", "crash"), ("transport.backup.ack", "error"),
          ("restore.commit.set", "crash"), ("restore.apply.page", "crash"), ("supervisor.reaped", "crash"))


def both_in_a_pause(b):
    """Capture and its guard die in the same pause: the successor lets the guest go on."""
    pid = b.a.worker_pids("capture")[0][0]
    faults.arm(b.a, "capture", "capture.copy.done:stall")
    mctest.wait_for("capture to stand still", lambda: faults.state_of(pid) == "T", 5, every=0.001)
    for p in (*faults.guards(b.a), pid):
        os.kill(p, signal.SIGKILL)
    mctest.wait_for("the guest to run", lambda: b.g.status() == "running", 1)
    b.all_well("capture and guard killed in a pause")


def hung_while_attaching_again(b):
    """A successor of capture that stands still in the middle of attaching is replaced, too; the guest runs on."""
    died = len(faults.deaths(b.a))
    faults.kill_and_arm(b.a, "capture", "capture.attach.mapped:stall")
    t = time.monotonic()
    while len(faults.deaths(b.a)) < died + 2:
        mctest.wait_for("the guest to run", lambda: b.g.status() == "running", 0.5, every=0.005)
        check(time.monotonic() < t + 8, f"one that hung while attaching wasn't found: {faults.deaths(b.a)}")
        time.sleep(0.1)
    check("hung and was killed" in faults.deaths(b.a)[-1], f"obituary: {faults.deaths(b.a)[-1]}")
    b.all_well("capture hung while attaching again")


def test_worker_ended_within_a_list():
    """Capture gives a list to two encoders; one of them is ended after it has begun: its part isn't left lying."""
    with faults.programs(), mctest.World() as w:
        b = faults.Bench(w, *faults.PATIENT, "--slab-size", "128K")
        b.a.mcctl("workers", "vm", "stage", 2)
        pid = b.a.worker_pids("capture")[0][0]
        for _ in range(3):  # an epoch may be too small for two
            faults.arm(b.a, "capture", "capture.push.slab:stall")
            mctest.wait_for("capture to stand still", lambda: faults.state_of(pid) == "T", 5, every=0.001)
            b.a.mcctl("workers", "vm", "stage", 1)
            mctest.wait_for("one encoder", lambda: len(b.a.worker_pids("stage")) == 1, 1)
            os.kill(pid, signal.SIGCONT)
            b.all_well("an encoder ended within a list", 10)
            b.a.mcctl("workers", "vm", "stage", 2)
        check(not faults.deaths(b.a), f"died: {faults.deaths(b.a)}")


def test_points():
    """A sample of the fault points, in one protection; then QEMU dies with its capture."""
    with faults.programs(), mctest.World() as w:
        b = faults.Bench(w, *faults.PATIENT)
        for name, action in SAMPLE:
            b.take(faults.by_name(name), action)
        both_in_a_pause(b)
        hung_while_attaching_again(b)
        # Nobody is left who could say why QEMU ended: the backup goes on with the guest, even when
        # its restore hangs in the middle of the takeover.
        faults.arm(b.b, "restore", "restore.take.fd:stall")
        os.kill(b.a.worker_pids("capture")[0][0], signal.SIGKILL)
        b.g.proc.kill()
        sc.write_for(b.redis, 0.3)
        b.nothing_lost()
        b.a.wait_state("STOPPED", timeout=5)
        b.b.wait_state("ACTIVE", timeout=5)
        check(len(faults.deaths(b.b)) >= 1, "restore didn't hang in the takeover")


def test_points_alone():
    """Deaths at the end and at the start, each in a protection of its own."""
    with faults.programs():
        for name in ("restore.end.state", "supervisor.term.stored"):
            with mctest.World() as w:
                faults.Bench(w, *faults.PATIENT, start=False).take_alone(faults.by_name(name), "crash")


def test_first_copy_begins_again_under_its_first_epoch():
    """The link breaks when the first copy is through and its first epoch not yet on its way: both are made anew."""
    with faults.programs(), mctest.World() as w:
        b = faults.Bench(w, *faults.PATIENT, start=False)
        faults.arm_start(b.a, "stage.journal.staged:stall")
        sc.standby(b.b, b.g, *b.extra)
        b.a.mcctl(*sc.protect_args(b.a, b.b, *b.extra))
        mctest.wait_for("a stage worker", lambda: b.a.worker_pids("stage"), 5)
        stage = b.a.worker_pids("stage")[0][0]
        mctest.wait_for("the first epoch", lambda: faults.state_of(stage) == "T", 30, every=0.001)
        os.kill(b.a.worker_pids("transport")[0][0], signal.SIGKILL)
        b.a.wait_state("PROTECTED", timeout=20)
        b.slabs, b.redis = b.a.status()["SyncDone"], mctest.Redis(w)
        b.all_well("a first copy that began again")
        b.fail_over()


def test_points_are_listed():
    """Every point that the sources name is in the list of its process, and none twice."""
    names = [p.name for p in faults.points()]
    check(len(names) == len(set(names)), "a point is listed twice")
    for role in faults.PROGRAMS:
        check([p for p in faults.points() if p.role == role], f"mc-{role} lists none")
    with open(f"{mctest.TOP}/ipc/fault-points.h", encoding="ascii") as f:
        text = f.read()
    used = subprocess.run(["grep", "-rhoE", r"MC_FAULT_[A-Z_]+", "--include=*.c", mctest.TOP], stdout=subprocess.PIPE,
                          text=True, check=True).stdout.split()
    for line in text.splitlines():
        if line.lstrip().startswith("X(") and '"' in line:
            key = "MC_FAULT_" + line.split("(")[1].split(",")[0]
            done = key[:-5] if key.endswith("_DONE") and ".journal." in line else key
            check(done in used, f"{key} is listed, but no process passes it")


def hang(b, host, role, limit):
    """SIGSTOP: found and killed within the limit, a successor goes on."""
    pid = host.worker_pids(role)[0][0]
    before = len(faults.deaths(host))
    os.kill(pid, signal.SIGSTOP)
    t = time.monotonic()
    while len(faults.deaths(host)) == before:
        sc.write_for(b.redis, 0.02)
        check(time.monotonic() < t + limit + 1.5, f"mc-{role} hung for more than {limit} s")
    check("hung and was killed" in faults.deaths(host)[-1], f"obituary: {faults.deaths(host)[-1]}")
    b.all_well(f"{role} hung")


def test_hung():
    """A process that stands still is found, killed and replaced; an idle one isn't."""
    with mctest.World() as w:
        b = faults.Bench(w, *faults.PATIENT)
        for host, role, limit in ((b.a, "netgate", 1), (b.a, "transport", 1.5), (b.a, "capture", 3),
                                  (b.b, "restore", 3)):
            hang(b, host, role, limit)
        died = len(faults.deaths(b.a)), len(faults.deaths(b.b))
        b.a.mcctl("hold", "vm")
        time.sleep(3)  # nothing to do for twice the limit
        b.a.mcctl("resume", "vm")
        check((len(faults.deaths(b.a)), len(faults.deaths(b.b))) == died, "an idle process was killed")
        b.nothing_lost()
        # One that can't run any more is given up, and nobody looks protected.
        replace(b.b, "restore", "#!/bin/sh\nexit 1\n")
        os.kill(b.b.worker_pids("restore")[0][0], signal.SIGKILL)
        b.b.wait_state("STOPPED", timeout=15)
        b.a.wait_state("DEGRADED", timeout=5)
        check("died 20 times within 10 s" in b.b.status()["Message"], b.b.status()["Message"])
        mctest.wait_for("the guest to run", lambda: b.g.status() == "running", 2)
        sc.write_for(b.redis, 0.1)


def test_late_supervisor():
    """A supervisor that is late itself kills nobody that it hasn't asked for a sign of life."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work="mc.none=1")  # a guest that sends nothing: netgate sleeps between barriers
        sc.protect(w.a, w.b)
        w.a.mcctl("set", "vm", "interval=1000")
        for _ in range(8):
            w.a.supervisor.send_signal(signal.SIGSTOP)
            time.sleep(0.16)
            w.a.supervisor.send_signal(signal.SIGCONT)
            time.sleep(0.21)
        check(not faults.deaths(w.a), f"killed: {faults.deaths(w.a)}")


def replace(host, role, text=None, path=None):
    """Puts another program in the place of mc-ROLE for the host's supervisor, as an upgrade would."""
    target = f"{host.dir}/libexec/mc-{role}"
    if path:
        shutil.copy(path, target + ".new")
    else:
        with open(target + ".new", "w", encoding="ascii") as f:
            f.write(text)
    os.chmod(target + ".new", 0o755)
    os.rename(target + ".new", target)


def test_rolling_upgrade():
    """Another build of the same ABI replaces a running process; another ABI is refused."""
    with mctest.World() as w:
        b = faults.Bench(w, *faults.PATIENT)
        with open(f"{mctest.BUILD}/mc-stage", "rb") as f:
            program = f.read()
        version = subprocess.run([f"{mctest.BUILD}/mc-stage", "--version"], stdout=subprocess.PIPE, check=True).stdout
        build = version.split()[1]
        newer = build[:4] + b"9" * (len(build) - 4)
        with open(f"{w.dir}/newer", "wb") as f:
            f.write(program.replace(build, newer))
        replace(b.a, "stage", path=f"{w.dir}/newer")
        old = b.a.worker_pids("stage")[0][0]
        b.a.mcctl("restart", "vm", "stage")
        mctest.wait_for("the new build", lambda: [p for p, _ in b.a.worker_pids("stage") if p != old], 5)
        b.all_well("upgrade of stage", 10)
        pid = b.a.worker_pids("stage")[0][0]
        out = subprocess.run([f"/proc/{pid}/exe", "--version"], stdout=subprocess.PIPE, check=True).stdout
        check(out.split()[1] == newer, f"runs {out}")
        # Another ABI: refused while the old one runs on.
        replace(b.a, "stage", "#!/bin/sh\n[ \"$1\" = --version ] && echo mc-stage 9.0 abi 999\nexit 3\n")
        r = b.a.mcctl("restart", "vm", "stage", ok=False)
        check(r.returncode == 1 and "abi 999" in r.stderr, f"restart: {r.returncode} {r.stderr}")
        check(b.a.worker_pids("stage")[0][0] == pid, "the running process was touched")
        b.all_well("refused upgrade", 3)
        # And when it must be started after a death, nothing else is tried.
        os.kill(pid, signal.SIGKILL)
        b.a.wait_state("DEGRADED", timeout=5)
        check("another ABI" in b.a.status()["Message"], b.a.status()["Message"])
        mctest.wait_for("the guest to run", lambda: b.g.status() == "running", 2)
        sc.write_for(b.redis, 0.1)
        check(len(faults.deaths(b.a)) == 2, f"deaths: {faults.deaths(b.a)}")
