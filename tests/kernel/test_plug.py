# SPDX-License-Identifier: GPL-2.0-or-later
"""The plug gate with a real sch_plug: plug*.c in a machine with one CPU and with two."""

import os
import re

from kernelvm import VM
from mctest import TOP, check, run

IN_PAIRS = True  # nothing here depends on how fast the machine is

MODULES = ["tun", "ifb numifbs=0", "sch_plug", "act_mirred", "act_gact", "cls_u32", "sch_ingress", "bridge", "veth", "dummy"]
FAULTS = os.path.join(TOP, "build-faults")


def _run(smp, *groups):
    run("flock", f"{TOP}/build", "make", "-s", "-C", TOP, "FAULTS=1", f"B={FAULTS}", f"{FAULTS}/netgate/kernel-plug", timeout=170)
    files = [(f"{FAULTS}/netgate/kernel-plug", "/t/netgate/kernel-plug"), (f"{FAULTS}/mc-netgate", "/t/mc-netgate")]
    with VM(modules=MODULES, files=files, parts=["ip"], smp=smp) as vm:
        for group in groups:
            r = vm.run("/t/netgate/kernel-plug", group, ok=False, timeout=120)
            check(r.status == 0, f"{group}: exit {r.status}:\n{r.out[-1000:]}\n{r.err[-3000:]}")
            # cmocka says how many ran: a group that lost its tests is no success.
            check(int(re.search(r"Running (\d+) test", r.out + r.err).group(1)) >= 4, f"{group}: {r.out}")


def test_order_and_harm():
    """Which packets come out and when, flaps, removed parts, leaks, bad input, network as before."""
    _run(1, "order", "harm")


def test_deaths():
    """Killed at every fault point."""
    _run(1, "death")


def test_two_cpus():
    """Nothing early and nothing stranded while another CPU sends and releases drain; mc-netgate from begin to end."""
    _run(2, "order", "process")
