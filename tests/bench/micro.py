# SPDX-License-Identifier: GPL-2.0-or-later
"""Rings, wake-ups and the codec: programs of their own, no guest."""

import os
import statistics

import mctest
from measure import entry, program, run_json

NAMES = {"rings": ("ring_spsc", "ring_spsc_1"), "wakeups": ("ring_wakeup", "ring_wakeup_loop"),
         "codec": ("stage_ratio", "stage_random", "stage_speed", "stage_decode")}


def rings():
    out = {}
    data = run_json(program("ring"))
    for burst, name in (("32", "ring_spsc"), ("1", "ring_spsc_1")):
        d = {k: statistics.median(v) for k, v in data[burst].items()}
        best = min(("ck", "rte"), key=lambda k: d[k])
        label = {"ck": "ck_ring SPSC", "rte": "rte_ring SP/SC"}
        other = "rte" if best == "ck" else "ck"
        out[name] = entry(data[burst]["ours"], "ns", f"{label[best]} ({label[other]}: {d[other]:.1f})", d[best],
                          f"a handle, two pinned processes, bursts of {burst}, contents checked")
    return out, {"ring": data}


def wakeups():
    d = run_json(program("wakeup"))
    bare = statistics.median(d["bare"])
    how = "from push to the handle in the hand of a sleeping process, median of 1000"
    return {"ring_wakeup": entry(d["ring"], "us", "bare eventfd", bare, how),
            "ring_wakeup_loop": entry(d["loop"], "us", "bare eventfd", bare, how + ", in an sd-event loop")}, {}


def codec():
    d = run_json(program("stage"), os.path.join(mctest.TOP, "tests", "bench", "redis.trace.zst"))
    raw, zstd = d["raw_bytes"], statistics.median(d["zstd"])
    how = "page trace of a redis guest (tests/bench/redis.trace.zst), deltas with a 64 MiB cache, level -1, one worker"
    return {
        "stage_ratio": entry([d["wire"] / MIB], "MiB", "ZSTD_compress -1, raw pages", d["zstd_wire"] / MIB,
                             how + f"; raw {raw / MIB:.1f} MiB"),
        "stage_random": entry([d["random_wire"] / MIB], "MiB", "raw", d["random_bytes"] / MIB, "random pages, encoded"),
        "stage_speed": entry(d["encode"], "GB/s", "ZSTD_compress -1, raw pages", zstd, how),
        "stage_decode": entry(d["decode"], "GB/s", "ZSTD_compress -1, raw pages", zstd,
                              "the same decoded and verified, content compared"),
    }, {"stage": d}


MIB = 1 << 20
BENCHES = {"rings": rings, "wakeups": wakeups, "codec": codec}
