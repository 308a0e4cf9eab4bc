# SPDX-License-Identifier: GPL-2.0-or-later
"""Least privilege: what each process of a protected guest has left, read from /proc."""

import os
import signal

import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is

CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE = 1 << 2, 1 << 19

# The table of docs/security.md: capabilities that stay.
KEEPS = {"mc-capture": CAP_SYS_PTRACE | CAP_DAC_READ_SEARCH, "mc-guard": 0, "mc-stage": 0, "mc-transport": 0,
         "mc-netgate": 0, "mc-restore": 0}
# Keeps everything, and runs nothing but the command that it was started with.
HELPER = "mc-arbiter"
NOBODY = 65534


def status(pid):
    """/proc/PID/status as a dict."""
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def workers(host):
    """(pid, name) of everything that belongs to guests, guards too."""
    out = []
    for p in host.pids():
        try:
            name = status(p)["Name"]
        except (OSError, KeyError):
            continue
        if name in KEEPS:
            out.append((p, name))
    return out


def confined(pid, name):
    """What is wrong with a process; '' when it has nothing but what the table says."""
    try:
        s = status(pid)
    except OSError:
        return "it ended"
    want = f"{KEEPS[name]:016x}"
    for key in ("CapEff", "CapPrm", "CapBnd"):
        if s[key] != want:
            return f"{key} is {s[key]}, not {want}"
    if s["CapInh"].strip("0") or s["CapAmb"].strip("0"):
        return "inheritable or ambient capabilities"
    if s["NoNewPrivs"] != "1" or s["Seccomp"] != "2":
        return f"NoNewPrivs {s['NoNewPrivs']}, Seccomp {s['Seccomp']}"
    if s["Uid"].split() != [str(NOBODY)] * 4 or s["Gid"].split() != [str(NOBODY)] * 4 or s["Groups"].strip():
        return f"user {s['Uid']}, group {s['Gid']}, groups {s['Groups']}"
    return ""


def check_all(host, names):
    """Every process is there and confined."""
    have = workers(host)
    check({n for _, n in have} == names, f"{host.name} has {have}, not {names}")
    for pid, name in have:
        check(not confined(pid, name), f"{name} on {host.name}: {confined(pid, name)}")
        if name != "mc-guard":
            check_arena(pid, f"{name} on {host.name}")


def check_arena(pid, who):
    """It has the arena and its configuration as inherited fds, the latter for reading only."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as f:
        maps = [(line.split()[1], line.split()[5]) for line in f if "/microcheckpoint-" in line]
    check({m for m, p in maps if p.endswith(":config")} == {"r--s"} and {m for m, p in maps if p.endswith("-vm")} == {"rw-s"},
          f"{who} maps {maps}")
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{fd}").split(" ")[0].endswith(":config"):
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as f:
                flags = int(next(line.split()[1] for line in f if line.startswith("flags:")), 8)
            check(flags & os.O_ACCMODE == os.O_RDONLY, f"{who} can write to the configuration: {flags:o}")


def test_only_the_supervisor_opens_by_name():
    """No process of a guest so much as has the call that opens shared memory by name."""
    for name in ("capture", "stage", "transport", "netgate", "restore", "supervisor"):
        calls = mctest.run("nm", "-D", "--undefined-only", f"{mctest.BUILD}/mc-{name}")
        check(("shm_open" in calls) == (name == "supervisor"), f"mc-{name}: {calls}")


def test_least_privilege():
    """Each process keeps what the table says, its successor and the standby's takeover too."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a)
        arbiter = ("--arbiter", "exec:true")
        sc.protect(w.a, w.b, *arbiter, standby_args=arbiter)
        for host in (w.a, w.b):
            names = [status(p).get("Name") for p in host.pids()]
            check(names.count(HELPER) == 1, f"{host.name} has {names}")
        primary = {"mc-capture", "mc-guard", "mc-stage", "mc-transport", "mc-netgate"}
        backup = {"mc-transport", "mc-netgate", "mc-restore"}
        check_all(w.a, primary)
        check_all(w.b, backup)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.2)
        for host in (w.a, w.b):
            for pid, name in workers(host):
                if name in ("mc-guard", "mc-netgate"):
                    continue  # the guard ends with capture; a dead gate loses what it held
                os.kill(pid, signal.SIGKILL)
                mctest.wait_for(f"a confined successor of {name}",
                                lambda n=name, h=host, o=pid: any(p != o and x == n and not confined(p, n)
                                                                  for p, x in workers(h)), 10, every=0.05)
                sc.epochs_go_on(w.a, 3)
        check_all(w.a, primary)
        check_all(w.b, backup)
        w.a.supervisor.kill()
        w.a.supervisor.wait()
        w.a.start_supervisor()
        mctest.wait_for("adoption of unprivileged processes",
                        lambda: w.a.mcctl("status", "vm", ok=False).returncode == 0, 5, every=0.05)
        sc.epochs_go_on(w.a, 3)
        w.a.kill_everything()
        sc.write_for(redis, 0.3)
        check(redis.lost() == 0, "acknowledged values lost")


def test_placement():
    """cpus and cgroup: the guest's processes run there, mistakes are refused with the remedy."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a)
        for option, value, word in (("--cpus", "0-4000", "cpus"), ("--cpus", "1-", "cpus"),
                                    ("--cgroup", "/tmp", "cgroup"), ("--cgroup", "/sys/fs/cgroup/../x", "cgroup")):
            r = w.a.mcctl(*sc.protect_args(w.a, w.b), option, value, ok=False)
            check(r.returncode == 1 and word in r.stderr, f"{option} {value}: {r.stderr}")
        sc.protect(w.a, w.b, "--cpus", "1")
        for pid, name in workers(w.a):
            check(status(pid)["Cpus_allowed_list"] == "1", f"{name} runs on {status(pid)['Cpus_allowed_list']}")
        sc.epochs_go_on(w.a, 3)


def cgroup2():
    """Where this machine has its control groups of version 2; None when it has none."""
    with open("/proc/mounts", encoding="utf-8") as f:
        return next((line.split()[1] for line in f if line.split()[2] == "cgroup2"), None)


def test_control_group():
    """All of a guest's processes run in the group that it names, successors too."""
    top = cgroup2()
    check(top, "no control groups of version 2 here")
    name = f"mctest{os.getpid()}"
    group = f"{top}/{name}"
    os.mkdir(group)
    try:
        with mctest.World() as w:
            w.a.run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
            w.a.start()
            w.b.start()
            w.a.guest("vm", mem=64, serial=False, bios=True, nics=0)
            s = w.b.guest("vm", mem=64, serial=False, bios=True, nics=0, incoming=True)
            none = ("--gate", "none", "--insecure")
            w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *none)
            w.a.mcctl("protect", "vm", "--qmp", w.a.guests["vm"].qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", *none,
                      "--cgroup", f"/sys/fs/cgroup/{name}")
            w.a.wait_state("PROTECTED")
            os.kill(w.a.worker_pids("stage")[0][0], signal.SIGKILL)
            sc.epochs_go_on(w.a, 3)
            with open(f"{group}/cgroup.procs", encoding="ascii") as f:
                inside = {int(line) for line in f}
            check(inside == {p for p, _ in workers(w.a)}, f"{inside} are in the group, not {workers(w.a)}")
    finally:
        mctest.wait_for("an empty group", lambda: not open(f"{group}/cgroup.procs", encoding="ascii").read(), 5)
        os.rmdir(group)
