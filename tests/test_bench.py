# SPDX-License-Identifier: GPL-2.0-or-later
"""The measurements' own checks of what they move, and what doesn't depend on the machine."""

import json
import os
import subprocess
import sys

import mctest
from mctest import TOP, check

sys.path.insert(0, os.path.join(TOP, "tests", "bench"))


def test_codec_on_the_trace():
    """Every page of the trace comes out as it went in, in at most a quarter of zstd's bytes."""
    mctest.run("make", "-C", TOP, "build/bench-stage", timeout=120)
    out = mctest.run(os.path.join(TOP, "build", "bench-stage"), os.path.join(TOP, "tests", "bench", "redis.trace.zst"))
    d = json.loads(out)
    check(d["wire"] <= 0.25 * d["zstd_wire"], f"{d['wire']} bytes, zstd -1 on raw pages {d['zstd_wire']}")
    check(d["random_wire"] <= 1.01 * d["random_bytes"], f"{d['random_wire']} of {d['random_bytes']} random bytes")


def test_bench_names():
    """Every goal belongs to a measurement, and an unknown name is refused with the known ones."""
    import measure
    run = os.path.join(TOP, "tests", "bench", "run")
    names = mctest.run(run, "--list").replace(":", "").split()
    missing = [n for n in measure.GOALS if n not in names]
    check(not missing, f"goals that nothing measures: {missing}")
    r = subprocess.run([run, "nonsense"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    check(r.returncode == 1 and "unknown: nonsense" in r.stderr, f"exit {r.returncode}: {r.stderr}")
    made = measure.entry([3, 1, 2], "ms", "peer", 4, "how")
    check(made["value"] == 2 and made["ratio"] == 0.5 and made["min"] == 1 and made["max"] == 3 and made["n"] == 3,
          f"{made}")
    check(measure.met("failover", 1.5) and not measure.met("rate_idle", 0.99) and measure.met("failover_host", 1) is None,
          "goals are not compared as they say")
