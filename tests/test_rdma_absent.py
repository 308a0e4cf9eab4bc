# SPDX-License-Identifier: GPL-2.0-or-later
"""RDMA where there is no device (tests/kernel/test_rdma.py is for where there is one)."""

import os

import mctest
import scenario as sc
from mctest import check


def test_rdma_absent():
    """rdma is refused at once, with the remedy; auto and rdma-copy go on without, and events say why."""
    check(not os.path.isdir("/sys/class/infiniband") or not os.listdir("/sys/class/infiniband"), "this machine has an RDMA device")
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = w.a.guest("vm", bios=True, serial=False, nics=0, mem=128)
        s = w.b.guest("vm", bios=True, serial=False, nics=0, mem=128, incoming=True)
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, "--insecure", "--transport", "auto")
        args = ["protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--gate", "none", "--interval", 20]
        for how, words in (([], ("insecure", "psk-file")), (["--insecure"], ("no RDMA device", "rdma_ucm", "transport tcp", "auto"))):
            r = w.a.mcctl(*args, "--transport", "rdma", *how, ok=False)
            check(r.returncode == 1 and all(x in r.stderr for x in words), f"{how}: {r.returncode} {r.stderr}")
        w.a.mcctl(*args, "--transport", "auto", "--insecure", "--rdma-copy")
        w.a.wait_state("PROTECTED")
        events = w.a.mcctl("events", "vm").stdout
        check("TCP is used, RDMA isn't possible" in events and "no RDMA device" in events, events)
        check("pages are copied by memcpy: No such device" in events, events)
        check("none" in w.a.status()["Security"], w.a.status()["Security"])
        sc.epochs_go_on(w.a, 20)
        g.kill()
        w.b.wait_state("ACTIVE", timeout=5)
        check(s.status() == "running", f"standby is {s.status()}")
