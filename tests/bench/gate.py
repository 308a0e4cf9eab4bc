# SPDX-License-Identifier: GPL-2.0-or-later
"""What a gate costs: barrier and release, and what a NIC behind the relay carries.

mc-netgate runs as a process on an arena that tests/bench/gate.c plays; the plug in a machine with
Debian's kernel.  QEMU, without a machine, carries frames from one -netdev dgram to another by a hub."""

import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile

import mctest
from measure import RUNS, entry, parts, percentile, program, run_json

NAMES = {"gates": ("gate_barrier", "gate_barrier_p99", "gate_release", "gate_release_p99"),
         "gate_plug": ("gate_plug_barrier", "gate_plug_barrier_p99", "gate_plug_release", "gate_plug_release_p99"),
         "gate_rates": ("gate_rate", "gate_rate_bits")}
EPOCHS = 1000
LIMIT_US = 100
INTERVAL_MS = 25
MODULES = ["tun", "ifb numifbs=0", "sch_plug", "act_mirred", "act_gact", "cls_u32", "sch_ingress", "bridge"]


def _entries(prefix, d, peer, limits, how):
    out = {}
    for what, text in (("barrier", "asked for to confirmed"), ("release", "committed to the frame out")):
        for suffix, q in (("", 0.5), ("_p99", 0.99)):
            values = [percentile(v, q) for v in parts(d[what])]
            out[f"{prefix}_{what}{suffix}"] = entry(values, "us", peer, limits[what, q],
                                                    f"{text}, {'median' if q == 0.5 else 'p99'} of {EPOCHS // RUNS}; {how}")
    return out


def gates():
    """The relay, natively."""
    with tempfile.TemporaryDirectory(prefix="mcg") as d:
        data = run_json(program("gate"), "latency", EPOCHS, d)
    limits = {(what, q): LIMIT_US for what in ("barrier", "release") for q in (0.5, 0.99)}
    return _entries("gate", data, "limit", limits, "relay between sockets, as a process"), {"gate": data}


def gate_plug():
    """The plug and, as its peer, the relay, both in the same machine with Debian's kernel under emulation."""
    import kernelvm
    files = [(program("gate"), "/t/bench-gate"), (os.path.join(mctest.BUILD, "mc-netgate"), "/t/mc-netgate")]
    with kernelvm.VM(modules=MODULES, files=files, parts=["ip"], smp=2) as vm:
        vm.sh("for i in 0 1; do ip tuntap add tap$i mode tap; done; ip link add br0 type bridge; ip link set br0 up; "
              "for i in 0 1; do ip link set tap$i master br0 up; done")
        import json
        plug = json.loads(vm.run("/t/bench-gate", "latency", EPOCHS // 4, "tap0", "tap1", timeout=120).out)
        relay = json.loads(vm.run("/t/bench-gate", "latency", EPOCHS // 4, "/tmp", timeout=120).out)
    limits = {(what, q): percentile(relay[what], q) for what in ("barrier", "release") for q in (0.5, 0.99)}
    return (_entries("gate_plug", plug, "relay in the same machine", limits, "plug on a tap, Linux 6.1 emulated, 2 vCPUs"),
            {"gate_plug": {"plug": plug, "relay": relay}})


@contextlib.contextmanager
def _hub(folder, out):
    """QEMU between the sockets `in` and `out`: its own socket netdev, frames copied by its hub."""
    dgram = "dgram,id={},local.type=unix,local.path={},remote.type=unix,remote.path={}"
    p = subprocess.Popen(
        ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-monitor", "none",
         "-netdev", dgram.format("a", f"{folder}/in", f"{folder}/nobody"),
         "-netdev", dgram.format("b", f"{folder}/qemu", f"{folder}/{out}"),
         "-netdev", "hubport,id=ha,hubid=0,netdev=a", "-netdev", "hubport,id=hb,hubid=0,netdev=b"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        mctest.wait_for("QEMU's sockets", lambda: os.path.exists(f"{folder}/qemu") and os.path.exists(f"{folder}/in"))
        yield
    finally:
        p.kill()
        p.wait()


def _rate(size, gated, ms=1000):
    folder = tempfile.mkdtemp(prefix="mcg")
    try:
        with _hub(folder, "relay" if gated else "world"):
            gate = None
            if gated:
                gate = subprocess.Popen([program("gate"), "hold", f"{folder}/relay", f"{folder}/qemu", f"{folder}/world",
                                         str(INTERVAL_MS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                mctest.check(gate.stdout.readline() == "up\n", "the gate did not start")
            d = run_json(program("gate"), "rate", f"{folder}/in", f"{folder}/world", size, ms)
            if gate:
                gate.stdin.close()
                mctest.check(gate.wait(10) == 0, "the gate failed under load")
                gate.stdout.close()
        return d
    finally:
        shutil.rmtree(folder)


def gate_rates():
    """A NIC of QEMU's with and without the relay in its way, in turn; the gate holds and releases every 25 ms."""
    free, held = {60: [], 1514: []}, {60: [], 1514: []}
    for _ in range(RUNS):
        for size in (60, 1514):
            free[size].append(_rate(size, False))
            held[size].append(_rate(size, True))
    how = f"an epoch every {INTERVAL_MS} ms, generator, QEMU, gate and receiver on the same CPUs"
    out = {}
    for name, size, key, unit, scale in (("gate_rate", 60, "packets", "kpps", 1e3), ("gate_rate_bits", 1514, "bits", "Mbit/s", 1e6)):
        out[name] = entry([d[key] / scale for d in held[size]], unit, "QEMU's socket netdev without gate",
                          statistics.median(d[key] for d in free[size]) / scale, f"frames of {size} bytes through the relay, {how}")
    return out, {"gate_rate": {"free": free, "held": held}}


BENCHES = {"gates": gates, "gate_plug": gate_plug, "gate_rates": gate_rates}
