# SPDX-License-Identifier: GPL-2.0-or-later
"""From the death of the guest's QEMU to the standby running, and the first full copy."""

import contextlib
import os
import shutil
import statistics
import time

import measure as m
import mctest
from measure import entry

NAMES = {"failover": ("failover", "failover_1g", "failover_host"),
         "copy_random": ("fullcopy_random",), "copy_zero": ("fullcopy_zero",)}


def root(host, path):
    """A file of a host's mount namespace."""
    return f"/proc/{host.holder.pid}/root{path}"


def listens(guest):
    """True once QEMU answers on its first monitor."""
    with contextlib.suppress(OSError):
        mctest.Qmp(guest.qmp_path).close()
        return True
    return False


def bare_incoming(w, g):
    """ms of migrate-incoming of the guest's state by a client that does nothing else."""
    state = f"{g.dir}/state"
    g.qmp.cmd("stop")
    g.qmp.cmd("xen-save-devices-state", filename=state, live=False)
    s = w.b.guest("bare", mem=g.mem, nics=g.nics, incoming=True)
    mctest.wait_for("the standby's monitor", lambda: listens(s))
    # In place: QEMU has it mapped, a file that is cut off for a moment would kill it.
    with open(root(w.a, "/dev/shm/mct-ram-vm"), "rb") as src, open(root(w.b, "/dev/shm/mct-ram-bare"), "r+b") as dst:
        shutil.copyfileobj(src, dst, m.MIB)
    g.qmp.cmd("cont")
    ms = m.run_json(m.program("peer"), "incoming", s.qmp_path, state, 0, prefix=w.b.enter())[0]
    s.kill()
    os.unlink(root(w.b, "/dev/shm/mct-ram-bare"))
    return ms


def one_failover(mem, touched, bare=None, host=False):
    with m.world(shm="4G") as w:
        g = m.work(w.a, f"fill {touched} random", mem=mem)
        mctest.wait_for("the fill", lambda: "work: filled" in g.console(), 120)
        if bare is not None:
            bare.append(bare_incoming(w, g))
        m.protect(w, 25)
        t = time.monotonic_ns()
        if host:
            t = w.a.kill_everything()
        else:
            g.kill()
        time.sleep(0.2)  # who asks takes a CPU that the takeover needs
        w.b.wait_state("ACTIVE", timeout=5)
        return (w.b.status()["TookOver"] - t) / 1e6


def failover():
    bare = []
    small = [one_failover(256, 128, bare) for _ in range(m.RUNS)]
    big = [one_failover(1024, 768) for _ in range(m.RUNS)]
    host = [one_failover(256, 128, host=True) for _ in range(3)]
    how = "SIGKILL of the guest's QEMU to the standby's RESUME"
    return {
        "failover": entry(small, "ms", "bare migrate-incoming, ready standby", statistics.median(bare),
                          how + ", 256 MiB guest"),
        "failover_1g": entry(big, "ms", "own, 256 MiB", statistics.median(small), how + ", 1 GiB guest, 768 MiB random"),
        "failover_host": entry(host, "ms", "restart_grace", 60.0,
                               "SIGKILL of every process of the host; the peer's is waited for until then"),
    }, {"failover": small, "failover_bare": bare}


def iperf(w, seconds=3):
    """GB/s of one TCP stream between the two hosts."""
    server = w.b.spawn("iperf3", "-s", "-1", "-B", w.b.addr)
    try:
        mctest.wait_for("iperf3", lambda: ":5201" in w.b.run("ss", "-ltn"))
        d = m.run_json("iperf3", "-c", w.b.addr, "-t", seconds, "-J", prefix=w.a.enter())
    finally:
        server.kill()
        server.wait()
    return d["end"]["sum_received"]["bits_per_second"] / 8e9


def copy(kind):
    """The first copy of a 2 GiB guest, 1800 MiB of it filled."""
    speeds, peers = [], []
    with m.world(shm="6G") as w:
        g = m.work(w.a, f"fill 1800 {kind}", mem=2048)
        mctest.wait_for("the fill", lambda: "work: filled" in g.console(), 60)
        for _ in range(m.RUNS):
            peers.append(iperf(w))
            m.sc.protect(w.a, w.b)
            d = m.watch(w.a, 0)["copy"]
            mctest.check(d["committed"] > d["began"] > 0, f"the first copy can't be timed: {d}")
            speeds.append(d["bytes"] / (d["committed"] - d["began"]))
            m.unprotect(w)
            os.unlink(root(w.b, "/dev/shm/mct-ram-vm"))  # what the next standby holds already isn't copied
        mctest.check(min(speeds) > max(speeds) / 10, f"not all were full copies: {speeds}")
    return {f"fullcopy_{kind}": entry(
        speeds, "GB/s", "iperf3, one stream", statistics.median(peers),
        f"populated bytes of a 2 GiB guest ({d['bytes'] / m.MIB:.0f} MiB, mostly {kind} pages) from link up to the first "
        "commit, one stage worker")}, {f"copy_{kind}": {"ours": speeds, "iperf3": peers}}


def copy_random():
    return copy("random")


def copy_zero():
    return copy("zero")


BENCHES = {"failover": failover, "copy_random": copy_random, "copy_zero": copy_zero}
