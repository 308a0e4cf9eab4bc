# SPDX-License-Identifier: GPL-2.0-or-later
"""The transport by RDMA, on soft RoCE: one machine with both ends, or one each."""

import random
import re
import time

from kernelvm import VM, link
from mctest import BUILD, check, run, TOP

MODULES = ["rdma_cm", "rdma_ucm", "ib_uverbs", "crc32_generic", "rdma_rxe"]
TOOLS = ["transport-end", "rdma-attacker", "rdma-copy"]
ADDR, PORT, UNIT = "10.9.0.1", 7911, 1 << 20


def files():
    run("nice", "make", "-s", "-C", TOP, *(f"build/tests/{t}" for t in TOOLS), timeout=300)
    return [(f"{BUILD}/mc-transport", "/mc/mc-transport"), *((f"{BUILD}/tests/{t}", f"/mc/tests/{t}") for t in TOOLS)]


def machine(**kw):
    """A machine with one RDMA device, on a dummy network device."""
    vm = VM(modules=[*MODULES, "dummy"], files=files(), parts=["rdma", "ip"], mem=kw.pop("mem", 768), **kw)
    vm.sh(f"ip link set lo up; ip link add d0 type dummy; ip addr add {ADDR}/24 dev d0; ip link set d0 mtu 9000 up;"
          "rdma link add rxe0 type rxe netdev d0; chmod 1777 /tmp")
    return vm


class End:
    """A transport-end; see tests/kernel/transport-end.c for what it can be told."""

    def __init__(self, vm, side, *options, addr=ADDR):
        self.vm, self.side, self.answers = vm, side, 0
        self.job = vm.spawn("/mc/tests/transport-end", side, addr, PORT, *options)
        self.pid = self.answer()["end"]

    def answer(self, timeout=90):
        self.answers += 1
        self.vm._wait(f"answer of {self.side}: {self.job.out[-500:]}{self.job.err[-2000:]}",
                      lambda: self.job.out.count("\n") >= self.answers or self.job.status is not None, timeout)
        lines = self.job.out.splitlines()
        check(len(lines) >= self.answers, f"{self.side} ended: {self.job.out[-500:]}{self.job.err[-2000:]}")
        text = lines[self.answers - 1]
        check(text.startswith(("ok", "ready")), f"{self.side}: {text}\n{self.job.err[-3000:]}")
        return {k: int(v) if v.isdigit() else v for k, v in re.findall(r"(\w+)=(.*?)(?= \w+=|$)", text)}

    def send(self, line):
        self.job.write(line.encode() + b"\n")

    def __call__(self, line, timeout=90):
        self.send(line)
        return self.answer(timeout)

    def kill_transport(self):
        """kill -9 at whatever it does; it is started again."""
        self.vm.run("sh", "-c", f"kill -9 $(pgrep -P {self.pid} mc-transport)", ok=False)

    def end(self):
        self.send("quit")
        r = self.job.wait()
        check(r.status == 0, f"{self.side} ended with {r.status}: {r.err[-3000:]}")


def pair(vm, *options, backup=()):
    b, p = End(vm, "backup", *options, *backup), End(vm, "primary", *options)
    p("up")
    return b, p


def finish(b, p):
    """Both ends agree on what was committed, all of it as it was sent."""
    sb, sp = b("stats"), p("stats")
    check(sb["bad"] == 0, f"content differs: {sb}\n{b.job.err[-2000:]}")
    p.end()
    b.end()
    return sb, sp


def sizes_growth_and_shrink(vm):
    b, p = pair(vm)
    p(f"sync 12 {UNIT}")
    for slabs, size in ((1, 1), (1, 4096), (3, 65537), (7, UNIT), (25, UNIT)):
        p(f"epochs 3 {slabs} {size}")
    grown = p("stats")
    check(grown["held"] >= 25 and grown["pinned"] >= 25 * UNIT, f"registered as the pool grew: {grown}")
    check(grown["waits"] > 0, f"25 slabs need more credits than are given ahead: {grown}")
    # What the pool gives back is not pinned any more; what comes in its place is registered again.
    check(p("shrink")["shrunk"] >= 20, "the pool gave nothing back")
    p("epochs 2 1 1000")
    small = p("stats")
    check(small["pinned"] < grown["pinned"] / 4, f"still pinned: {small}")
    for _ in range(4):
        p("epochs 2 12 900000")
        p("shrink")
    sb, sp = finish(b, p)
    check(sb["copied"] == 0 and sp["copied"] == 0, f"slabs were copied: {sb} {sp}")
    check(sb["received"] == sp["sent"], f"sent and received differ: {sb} {sp}")
    check(sb["pinned"] <= 18 * UNIT, f"more is pinned than the slots: {sb}")


def slow_receiver(vm):
    b, p = pair(vm, "timeout=1000", "slabs=24")
    p("epochs 1 1 100")
    b("hold")
    p(f"begin 8 {UNIT}")
    p(f"begin 8 {UNIT}")
    time.sleep(2.5)  # longer than failure_timeout: the link lives by its PINGs
    sb, sp = b("stats"), p("stats")
    check(sp["committed"] == 1 and sp["waits"] > 0, f"nothing waited for credits: {sp}")
    check(sb["used"] <= 13, f"the receiver took more than its half: {sb}")
    check(sp["reconnects"] == 0, f"the link broke: {sp}")
    b("go")
    p("committed 3")
    finish(b, p)


def kills(vm):
    b, p = pair(vm)
    p("epochs 2 2 100000")
    rnd = random.Random(4)
    for i in range(6):
        p.send("epochs 6 6 400000")
        time.sleep(rnd.uniform(0, 0.6))
        (b, p)[i % 2].kill_transport()
        p.answer()
    sb, _ = finish(b, p)
    check(sb["committed"] == 38, f"{sb}")


def device_down(vm):
    """The network device is switched off and on.  rxe's own connection manager doesn't survive that: auto goes on by TCP."""
    b, p = pair(vm, "transport=auto", "timeout=1000")
    p("epochs 2 2 100000")
    p.send("epochs 8 6 800000")
    vm.sh("ip link set d0 down")
    p.vm._wait("broken link", lambda: "link to" in p.job.err, 20)
    vm.sh("ip link set d0 up")
    p.answer()
    check("TCP is used" in p.job.err, p.job.err)
    sb, sp = finish(b, p)
    check(sb["committed"] == 10 and sp["reconnects"] >= 1, f"{sb} {sp}")
    vm.sh("rdma link delete rxe0; rdma link add rxe0 type rxe netdev d0")


def attacks(vm):
    b = End(vm, "backup")
    for what in ("token", "version", "rkey", "outside", "late", "slot", "head", "credit"):
        if what == "late":
            b("hold")
        r = vm.run("/mc/tests/rdma-attacker", ADDR, PORT, UNIT, 5000, what, ok=False)
        check(r.status == 0, f"attack {what}: {r.status} {r.err}\n{b.job.err[-1500:]}")
        if what == "late":
            b("go")
            check(b("stats")["bad"] == 0, f"a slab was changed after it had been checked: {b.job.err[-500:]}")
        b("down")
    # None of it did any harm.
    p = End(vm, "primary")
    p("up")
    p("epochs 3 3 300000")
    finish(b, p)
    for words in ("another token", "another version", "a slot that it was not given", "field out of range",
                  "CREDIT for a slot that is in use"):
        check(words in b.job.err, f"the log doesn't say '{words}': {b.job.err[-3000:]}")


def limits_and_fall_back(vm):
    # RLIMIT_MEMLOCK: said with the remedy; auto goes on with TCP.
    b, p = pair(vm, "transport=auto", backup=["transport=auto"])
    finish(b, p)
    b = End(vm, "backup", "transport=auto")
    p = End(vm, "primary", "transport=auto", "memlock=1000000")
    p("up")
    p("epochs 3 3 300000")
    check("RLIMIT_MEMLOCK" in p.job.err and "LimitMEMLOCK=" in p.job.err and "TCP is used" in p.job.err, p.job.err)
    _, sp = finish(b, p)
    check(sp["copied"] == 2700000, f"{sp}")
    # Without the word insecure neither side offers it.
    b, p = End(vm, "backup", "secure"), End(vm, "primary")
    p("stopped")
    check("insecure" in p("stats")["refusal"], p("stats")["refusal"])
    p.end()
    b.end()
    b, p = End(vm, "backup", "transport=tcp"), End(vm, "primary", "transport=auto")
    p("up")
    check("takes TCP only" in p.job.err, p.job.err)
    finish(b, p)


def copy_by_device(vm):
    """capture's rdma-copy: what arrives is what was there, also when the device goes away meanwhile."""
    print("  " + vm.run("/mc/tests/rdma-copy", "check").out.strip(), flush=True)
    job = vm.spawn("/mc/tests/rdma-copy", "lose")
    job.wait_for("ready")
    vm.sh("ip link set d0 down")
    job.write(b"go\n")
    r = job.wait()
    check(r.status == 0 and "ok failed" in r.out, f"{r.status} {r.out} {r.err}")
    vm.sh("ip link set d0 up; rdma link delete rxe0; rdma link add rxe0 type rxe netdev d0")


def test_rdma_one_host():
    with machine() as vm:
        for fn in (sizes_growth_and_shrink, slow_receiver, kills, attacks, copy_by_device, limits_and_fall_back, device_down):
            t = time.monotonic()
            fn(vm)
            print(f"  {fn.__name__}: {time.monotonic() - t:.1f} s", flush=True)


def host(nic, n):
    vm = VM(modules=[*MODULES, "cls_matchall", "act_gact", "sch_ingress"], files=files(), parts=["rdma", "ip"], mem=384, nics=[nic],
            name=f"host{n}")
    vm.sh(f"ip link set lo up; ip addr add 10.9.0.{n}/24 dev eth0; ip link set eth0 up; rdma link add rxe0 type rxe netdev eth0;"
          "tc qdisc add dev eth0 clsact")
    return vm


def test_rdma_two_hosts():
    """Two kernels: replication, a cable that carries nothing for a while, a host that loses its power."""
    a, z = link()
    with host(a, 1) as one, host(z, 2) as two:
        opts = ["timeout=3000", f"unit={256 << 10}"]
        b, p = End(two, "backup", *opts, addr="10.9.0.2"), End(one, "primary", *opts, addr="10.9.0.2")
        p("up")
        p("sync 4 200000")
        p("epochs 3 1 1")
        p("epochs 2 6 250000")
        b("hold")  # nothing is committed, so the epochs are under way when the cable goes silent
        p.send("epochs 8 4 200000")
        for vm in (one, two):
            vm.sh("tc filter add dev eth0 ingress protocol all prio 1 matchall action drop")
        one._wait("broken link", lambda: "link to" in p.job.err, 20)
        check("doesn't answer" in p.job.err or "is silent" in p.job.err, p.job.err)
        for vm in (one, two):
            vm.sh("tc filter del dev eth0 ingress prio 1")
        b("go")
        p.answer()
        sb, sp = b("stats"), p("stats")
        check(sb["bad"] == 0 and sb["committed"] == 13 and sp["reconnects"] >= 1, f"{sb} {sp}")
        check(sb["copied"] == 0 and sp["copied"] == 0, f"{sb} {sp}")
        p.send("epochs 50 4 200000")
        began = time.monotonic()
        two.crash()
        one._wait("lost peer", lambda: p.job.err.count("link to") >= 2, 20)
        took = time.monotonic() - began
        check(took < 6, f"{took:.1f} s until the dead host was noticed")
