# SPDX-License-Identifier: GPL-2.0-or-later
"""What tracking by soft-dirty bits costs, on Debian's kernel: emulated, so only the ratio says something."""

import json
import statistics

import measure as m
from kernelhosts import Hosts
from measure import entry

NAMES = {"softdirty": ("pause_softdirty", "scan_softdirty")}


def run_json(vm, *args):
    return json.loads(vm.run(*args, timeout=120).out)


def softdirty():
    files = [(m.program(p), f"/bin/bench-{p}") for p in ("peer", "watch")]
    with Hosts(files) as w:
        w.guest("a")
        w.ready()
        bare = run_json(w.vm, "bench-peer", "bare", "/run/a/vm.qmp", 60, 50)
        w.protect("a", "b")
        arena = f"/proc/{w.pid('a', 'mc-capture')}/fd/3"
        epochs = [e for e in run_json(w.vm, "bench-watch", arena, 15)["epochs"] if e["state"] in ("COMMITTED", "RELEASED")]
    pauses = m.pauses(epochs)
    scans = [e["phase"]["log_dirty_time"] / 1e6 for e in epochs]
    rest = [p - s for p, s in zip(pauses, scans)]
    how = "256 of 8192 pages (32 MiB) written over and over, 100 ms, emulated Debian kernel"
    return {
        "pause_softdirty": entry([m.percentile(r, .5) for r in m.parts(pauses)], "ms", "bare stop+save+cont p50",
                                 m.percentile(bare, .5), how),
        "scan_softdirty": entry([statistics.median(r) for r in m.parts(scans)], "ms", "the rest of the same pauses",
                                statistics.median(rest), how),
    }, {"pause_softdirty": pauses, "scan_softdirty": scans}


BENCHES = {"softdirty": softdirty}
