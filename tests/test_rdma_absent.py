# SPDX-License-Identifier: GPL-2.0-or-later
"""RDMA where there is no device (tests/kernel/test_rdma.py is for where there is one)."""

import mctest
import scenario as sc
from mctest import check


def test_rdma_absent():
    """auto and rdma-copy go on without, and say so; rdma is refused, with the reason."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = w.a.guest("vm", bios=True, serial=False, nics=0, mem=128)
        s = w.b.guest("vm", bios=True, serial=False, nics=0, mem=128, incoming=True)
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, "--insecure", "--transport", "auto")
        args = ["protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--gate", "none", "--interval", 20]
        r = w.a.mcctl(*args, "--transport", "rdma", ok=False)
        check(r.returncode == 1 and "insecure" in r.stderr and "psk-file" in r.stderr, f"{r.stderr}")
        w.a.mcctl(*args, "--transport", "rdma", "--insecure", ok=False)
        w.a.wait_state("STOPPED", timeout=20)
        text = w.a.mcctl("status", "vm", "--json").stdout + w.a.supervisor_log()
        check("RDMA" in text, f"no reason: {text[-2000:]}")
        w.a.mcctl("unprotect", "vm", ok=False)
        w.a.mcctl(*args, "--transport", "auto", "--insecure", "--rdma-copy")
        w.a.wait_state("PROTECTED")
        log = w.a.supervisor_log()
        check("TCP is used" in log, f"no word of the transport: {log[-2000:]}")
        check("memcpy is used" in log, f"no word of rdma-copy: {log[-2000:]}")
        sc.epochs_go_on(w.a, 20)
        g.kill()
        w.b.wait_state("ACTIVE", timeout=5)
        check(s.status() == "running", f"standby is {s.status()}")
