# SPDX-License-Identifier: GPL-2.0-or-later
"""The transport by RDMA on soft RoCE, in a machine with Debian's kernel, beside perftest and our TCP in the same machine."""

import os
import re
import statistics
import sys

import measure as m

sys.path.insert(0, os.path.join(m.mctest.TOP, "tests", "kernel"))

NAMES = {"rdma": ("rdma_goodput", "rdma_vs_tcp", "rdma_commit", "rdma_commit_tcp", "rdma_copy")}
MESSAGE = m.MIB  # bytes of one RDMA WRITE of a slab
EPOCHS, SLABS, RUNS = 6, 8, 5


def perftest(vm, tool, size, n):
    """The line of results of one run, as numbers."""
    args = [tool, "-R", "-s", size, "-n", n, "-F"]
    server = vm.spawn(*args)
    # What it prints comes late through a pipe: the client tries until it listens.
    r = vm.sh(f"for i in $(seq 50); do {' '.join(map(str, args))} 10.9.0.1 && exit 0; sleep 0.2; done; exit 1", timeout=120)
    server.wait(30)
    line = [x for x in r.out.splitlines() if re.match(rf"\s*{size}\s", x)]
    m.mctest.check(line, f"{tool}: {r.out}")
    return [float(x) for x in line[-1].split()]


def ours(test, vm, transport):
    """MiB/s and ms to a commit of one page."""
    b, p = test.pair(vm, f"transport={transport}", "slabs=40", "sparse", backup=["transport=auto"])
    p(f"epochs 2 {SLABS} {MESSAGE}")
    r = p(f"epochs {EPOCHS} {SLABS} {MESSAGE} 2")
    small = p("epochs 30 1 4096 1")
    sb, sp = test.finish(b, p)
    m.mctest.check((sp["copied"] == 0) == (transport == "rdma"), f"{transport}: copied {sp['copied']}")
    m.mctest.check((sb["copied"] == 0) == (transport == "rdma"), f"{transport}: copied {sb['copied']}")
    return r["bytes"] / m.MIB / (r["ns"] / 1e9), small["p50"] / 1e6


def copies(vm):
    """us to copy a page by the device, and by memcpy: single pages and runs of 16."""
    out = {}
    for run in (1, 16):
        r = vm.run("/mc/tests/rdma-copy", "time", 1000, run).out
        out[run] = [int(re.search(rf"{k}=(\d+)", r)[1]) / 1e6 for k in ("device_ns", "memcpy_ns")]
    return out


def rdma():
    import test_rdma as test  # pylint: disable=import-outside-toplevel  # boots nothing, but wants the kernel
    bw, lat, fast, commit, tcp, tcp_commit = [], [], [], [], [], []
    with test.machine(mem=1024, programs=["ib_write_lat"]) as vm:
        for _ in range(RUNS):
            bw.append(perftest(vm, "ib_write_bw", MESSAGE, 50)[3])
            lat.append(perftest(vm, "ib_write_lat", 4096, 100)[4] / 1000)
            for transport, rate, delay in (("rdma", fast, commit), ("tcp", tcp, tcp_commit)):
                r = ours(test, vm, transport)
                rate.append(r[0])
                delay.append(r[1])
        copied = copies(vm)
    where = "soft RoCE under emulation, both ends on one device, MTU 9000"
    new = {
        "rdma_goodput": m.entry(fast, "MiB/s", "ib_write_bw, 1 MiB", statistics.median(bw),
                                f"epochs of {SLABS} slabs of 1 MiB, two in flight; {where}"),
        "rdma_vs_tcp": m.entry(fast, "MiB/s", "our TCP", statistics.median(tcp), f"the same epochs by TCP; {where}"),
        "rdma_commit": m.entry(commit, "ms", "ib_write_lat 4096, one way", statistics.median(lat),
                               f"epoch of one page, from staged to committed; {where}"),
        "rdma_commit_tcp": m.entry(commit, "ms", "our TCP", statistics.median(tcp_commit), f"the same by TCP; {where}"),
    }
    new["rdma_copy"] = m.entry([copied[1][0]], "us/page", "memcpy", copied[1][1],
                               "rdma-copy of single pages; runs of 16: "
                               f"{copied[16][0]:.2f} us/page, memcpy {copied[16][1]:.2f}; soft RoCE copies by the CPU, so it can't pay here")
    return new, {"rdma": {"goodput": fast, "ib_write_bw": bw, "tcp": tcp}}


BENCHES = {"rdma": rdma}
