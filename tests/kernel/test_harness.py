# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness itself: what a command did comes out as it was, and a kernel that warns fails the test."""

import os
import subprocess
import tempfile

from kernelvm import VM, link
from mctest import TOP, Failure, check

IN_PAIRS = True  # nothing here depends on how fast the machine is


def fails(fn, *words):
    """fn must raise a Failure that says all the words."""
    try:
        fn()
    except Failure as e:
        for w in words:
            check(w in str(e), f"the failure lacks '{w}': {e}")
        return
    check(False, f"no failure that says {words}")


def test_commands_and_files():
    """Exit status, signals, both outputs, input, files both ways, a module with its option."""
    with VM(modules=["ifb numifbs=0", "sch_plug"], parts=["ip"]) as vm:
        r = vm.run("sh", "-c", "echo out; echo err >&2; exit 3", ok=False)
        check((r.status, r.out, r.err) == (3, "out\n", "err\n"), f"{vars(r)}")
        check(vm.run("sh", "-c", "kill -9 $$", ok=False).status == -9, "death by a signal")
        check(vm.run("no-such-program", ok=False).status == 127, "a program that is not there")
        job = vm.spawn("cat")
        job.write(b"one")
        job.wait_for("one")
        job.kill(15)
        check(job.wait().status == -15, "killed from outside")
        # The output of what a command leaves behind doesn't keep it from ending.
        check(vm.run("sh", "-c", "sleep 600 & exit 4", ok=False, timeout=10).status == 4, "background")
        data = os.urandom(3 << 20)
        vm.put("/tmp/data", data)
        check(vm.get("/tmp/data") == data, "a file comes back changed")
        check(vm.run("md5sum", stdin=data).out == vm.run("md5sum", "/tmp/data").out.replace("/tmp/data", "-"), "input")
        check("ifb0" not in vm.run("ip", "link").out, "ifb's option")
        vm.sh("ip link add ifb0 type ifb; ip link set ifb0 up; tc qdisc add dev ifb0 root plug limit 1000")
        check("plug" in vm.run("tc", "qdisc", "show", "dev", "ifb0").out, "no plug qdisc")
        fails(lambda: vm.run("false"), "false", "exit 1")
        fails(lambda: vm.run("sleep", "100", timeout=0.2), "not within 0.2 s", "sleep 100")


def test_warnings_and_crashes():
    """A warning in the kernel's log fails the test at its end, a crash whoever waits."""
    vm = VM()
    vm.sh("echo 'WARNING: CPU: 0 PID: 1 at nowhere' >/dev/kmsg")
    fails(vm.close, "the kernel of vm warned", "at nowhere")
    vm = VM()
    job = vm.spawn("sh", "-c", "echo c >/proc/sysrq-trigger")
    fails(job.wait, "ended while waiting", "sysrq triggered crash")
    fails(vm.close, "warned", "Kernel panic")


def test_two_machines():
    """Two kernels joined by a cable."""
    a, b = link()
    with VM(nics=[a], name="one") as one, VM(nics=[b], name="two") as two:
        for i, vm in enumerate((one, two), 1):
            vm.sh(f"ifconfig lo up; ifconfig eth0 10.0.0.{i} up")
        listener = two.spawn("nc", "-l", "-p", "1000")
        one.sh("until echo hello | nc -w 1 10.0.0.2 1000; do sleep 0.1; done")
        listener.wait_for("hello")


def test_by_hand():
    """tests/kernel/run: the command's status and output, a file brought back, a shell."""
    tool = f"{TOP}/tests/kernel/run"
    with tempfile.TemporaryDirectory() as tmp:
        with open(f"{tmp}/in", "w", encoding="ascii") as f:
            f.write("content")
        r = subprocess.run([tool, "--file", f"{tmp}/in:/in", "--get", f"/out:{tmp}/out", "--shell", "--", "sh", "-c",
                            "cp /in /out; echo said; exit 5"], input="echo from-the-shell; exit 6\n", text=True,
                           stdout=subprocess.PIPE, timeout=120, check=False)
        check(r.returncode == 6, f"exit {r.returncode}, not the shell's 6")
        check("said\n" in r.stdout and "from-the-shell" in r.stdout, r.stdout)
        with open(f"{tmp}/out", encoding="ascii") as f:
            check(f.read() == "content", "the file that was brought back")
    r = subprocess.run([tool, "--module", "no_such_module", "--", "true"], stderr=subprocess.PIPE, text=True,
                       timeout=60, check=False)
    check(r.returncode == 125 and "no_such_module" in r.stderr, f"{r.returncode}: {r.stderr}")
