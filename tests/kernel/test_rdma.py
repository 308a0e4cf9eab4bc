# SPDX-License-Identifier: GPL-2.0-or-later
"""The transport by RDMA, on soft RoCE: one machine with both ends, or one each."""

import random
import re
import time

from kernelhosts import Hosts
from kernelvm import VM, link
from mctest import BUILD, check, run, TOP, wait_for

IN_PAIRS = True  # nothing here depends on how fast the machine is

# A device leaves its users in the opposite order of this: the connection manager tells before ib_uverbs waits.
MODULES = ["ib_uverbs", "rdma_cm", "rdma_ucm", "crc32_generic", "rdma_rxe"]
TOOLS = ["transport-end", "rdma-attacker", "rdma-copy"]
ADDR, PORT, UNIT = "10.9.0.1", 7911, 1 << 20
# One RDMA device, on a dummy network device.
DEVICE = (f"ip link set lo up; ip link add d0 type dummy; ip addr add {ADDR}/24 dev d0; ip link set d0 mtu 9000 up;"
          "rdma link add rxe0 type rxe netdev d0")


def files():
    run("flock", f"{TOP}/build", "make", "-s", "-C", TOP, *(f"build/tests/{t}" for t in TOOLS), timeout=300)
    return [(f"{BUILD}/mc-transport", "/mc/mc-transport"), *((f"{BUILD}/tests/{t}", f"/mc/tests/{t}") for t in TOOLS)]


def machine(**kw):
    """A machine with one RDMA device."""
    vm = VM(modules=[*MODULES, "dummy"], files=files(), parts=["rdma", "ip"], mem=kw.pop("mem", 768), **kw)
    vm.sh(f"{DEVICE}; chmod 1777 /tmp")
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
        """kill -9 at whatever it does; it is started again as soon as that was seen."""
        word, before = "mc-transport ended with status 0x9", self.job.err.count("mc-transport ended")
        self.vm.sh(f"kill -9 $(cat /proc/{self.pid}/task/{self.pid}/children)")
        self.vm._wait(f"{word} on {self.side}", lambda: self.job.err.count(word) > before, 20)

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


def starved_receiver(vm):
    """A backup without memory says so, though its link reads on: the epoch is refused, then the link closed."""
    b, p = pair(vm, "timeout=600", "slabs=24")
    p("epochs 1 1 100")
    b("hog")
    p("begin 10 100000")  # more than it lent already
    p("aborted 2")
    check("no memory" in p.job.err and "--max-memory" in b.job.err, f"{p.job.err}\n{b.job.err}")
    b("down")
    check("no memory for what it sends" in b.job.err, b.job.err)
    b("unhog")
    p("up")
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
    b("hold")  # nothing is committed, so that the epochs are under way
    p.send("epochs 8 6 800000")
    vm.sh("ip link set d0 down")
    p.vm._wait("broken link", lambda: "link to" in p.job.err, 20)
    vm.sh("ip link set d0 up")
    b("go")
    p.answer()
    check("TCP is used" in p.job.err, p.job.err)
    sb, sp = finish(b, p)
    check(sb["committed"] == 10 and sp["reconnects"] >= 1, f"{sb} {sp}")
    vm.sh("rdma link delete rxe0; rdma link add rxe0 type rxe netdev d0")


def device_removed(vm):
    """The device is taken away while slabs are on their way: a lost link.  With a device again, and transports that know it, it goes on."""
    b, p = pair(vm, "timeout=5000")  # the removal is what they hear of first, not silence
    p("epochs 2 2 100000")
    b("hold")  # nothing is committed, so that the epochs are under way
    p.send("epochs 8 6 800000")
    delete = vm.spawn("rdma", "link", "delete", "rxe0")
    p.vm._wait("broken links", lambda: "link to" in p.job.err and "link from" in b.job.err, 20)
    # Who learns it first ends the connection, which the other may see before.
    check("device was removed" in p.job.err + b.job.err, f"{p.job.err}\n{b.job.err}")
    # rxe waits for those who have the device open; librdmacm has it open as long as the process lives.
    p.kill_transport()
    b.kill_transport()
    check(delete.wait(20).status == 0, delete.err)
    b("go")
    vm.sh("rdma link add rxe0 type rxe netdev d0")
    p.answer()
    sb, _ = finish(b, p)
    check(sb["committed"] == 10, f"{sb}")


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
        for fn in (sizes_growth_and_shrink, slow_receiver, starved_receiver, kills, attacks, copy_by_device, limits_and_fall_back,
                   device_removed, device_down):
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


def test_rdma_failover():
    """The whole product by RDMA and a pre-shared key, pages copied by the device: the primary's side dies, memory whole."""
    with Hosts(addr=ADDR, link=DEVICE, modules=[*MODULES, "dummy"], parts=["rdma"]) as w:
        w.vm.put("/run/keys.psk", b"host_a:" + b"5a" * 32 + b"\n")
        w.vm.sh("chmod 600 /run/keys.psk")
        w.guest("a")
        w.ready()
        w.protect("a", "b", "--transport", "rdma", "--psk-file", "/run/keys.psk", "--failure-timeout", 3000,
                  primary=["--rdma-copy", "--poll"])
        check("RDMA" in w.status("a")["Security"], f"the link: {w.status('a')['Security']}")
        w.epochs_go_on("a", 5)
        w.vm.sh("kill -9 $(pidof mc-capture)")
        w.epochs_go_on("a", 5)
        before = w.memory_is_good("a")
        check(w.metric("a", "capture_rdma_copied_bytes_total") > 100 * 4096, "the device copied next to nothing")
        check(w.metric("a", "transport_pinned_bytes") >= 1 << 20, "no slab is registered")
        check(w.metric("a", "transport_slab_bytes_copied_total") == 0, "slabs were copied")
        events = w.mcctl("a", "events", "vm").out
        check("rdma-copy" not in events and "hung" not in events, events)
        w.die("a")
        w.wait_status("b", State="ACTIVE")
        check(not w.vm.run("pidof", "mc-capture", "mc-stage", ok=False).out, "the primary's side lives")
        wait_for("generations that the primary had not come to", lambda: w.report("b")[0] > before, 60)
        w.memory_is_good("b")
