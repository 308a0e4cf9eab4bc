# SPDX-License-Identifier: GPL-2.0-or-later
"""The transport by RDMA, on soft RoCE: one machine with both ends, or one each."""

import re

from kernelvm import VM, link
from mctest import BUILD, check

MODULES = ["rdma_cm", "rdma_ucm", "ib_uverbs", "crc32_generic", "rdma_rxe"]
FILES = [(f"{BUILD}/mc-transport", "/mc/mc-transport"), (f"{BUILD}/tests/transport-end", "/mc/tests/transport-end")]
ADDR, PORT = "10.9.0.1", 7911


def machine(**kw):
    """A machine with one RDMA device, on a dummy network device."""
    vm = VM(modules=[*MODULES, "dummy"], files=FILES, parts=["rdma", "ip"], mem=kw.pop("mem", 768), **kw)
    vm.sh(f"ip link set lo up; ip link add d0 type dummy; ip addr add {ADDR}/24 dev d0; ip link set d0 mtu 9000 up;"
          "rdma link add rxe0 type rxe netdev d0")
    return vm


class End:
    """A transport-end; see tests/kernel/transport-end.c for what it can be told."""

    def __init__(self, vm, side, *options, addr=ADDR):
        self.job = vm.spawn("/mc/tests/transport-end", side, addr, PORT, *options)
        self.side, self.answers = side, 0
        self.answer()

    def answer(self, timeout=60):
        self.answers += 1
        self.job.vm._wait(f"answer of {self.side}: {self.job.out[-500:]}{self.job.err[-2000:]}",
                          lambda: self.job.out.count("\n") >= self.answers or self.job.status is not None, timeout)
        lines = self.job.out.splitlines()
        check(len(lines) >= self.answers, f"{self.side} ended: {self.job.out[-500:]}{self.job.err[-2000:]}")
        text = lines[self.answers - 1]
        check(text.startswith(("ok", "ready")), f"{self.side}: {text}\n{self.job.err[-3000:]}")
        return dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", text))

    def send(self, line):
        self.job.write(line.encode() + b"\n")

    def __call__(self, line, timeout=60):
        self.send(line)
        return self.answer(timeout)

    def end(self):
        self.send("quit")
        r = self.job.wait()
        check(r.status == 0, f"{self.side} ended with {r.status}: {r.err[-3000:]}")


def test_rdma_epochs():
    with machine() as vm:
        b, p = End(vm, "backup"), End(vm, "primary")
        p("up")
        p("sync 10 1048576")
        for n, k, size in ((3, 1, 1), (3, 1, 4096), (3, 5, 300001), (2, 20, 1048576)):
            print(p(f"epochs {n} {k} {size}"), flush=True)
        print(p("stats"))
        print(b("stats"))
        p.end()
        b.end()
