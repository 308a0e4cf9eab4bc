# SPDX-License-Identifier: GPL-2.0-or-later
"""Pauses, what they are made of, memory and CPU at idle."""

import statistics
import threading
import time

import measure as m
from measure import MIB, entry, parts, pauses, percentile

NAMES = {"idle": ("pause_idle_p50", "pause_idle_p99", "pause_vs_migrate", "cpu_idle", "mem_primary"),
         "dirty": ("pause_dirty64", "pause_dirty64_sum", "mem_backup"),
         "ram": ("pause_ram8g", "pause_ram8g_per_gib")}
PAUSE = "from sending stop to the answer to cont, as capture stamps it"


def cpu_of(w, seconds):
    """Cores used by all our processes of both ends."""
    pids = m.all_pids(w.a) + m.all_pids(w.b)
    cpu, t = m.cpu_seconds(pids), time.monotonic()
    d = m.watch(w.a, seconds)
    return (m.cpu_seconds(pids) - cpu) / (time.monotonic() - t), d


def idle():
    """An idle 512 MiB guest at 100 ms; its peers before and after, on the same guest."""
    with m.world() as w:
        g = m.sc.boot(w.a, mem=512)
        time.sleep(1)
        bare = m.peer_pauses(w.a, g, "bare", 80, 100)
        m.protect(w, 100)
        time.sleep(1)
        used, epochs, mem = [], [], []
        for _ in range(m.RUNS):
            cpu, d = cpu_of(w, 8)
            used.append(cpu)
            epochs += d["epochs"]
            mem.append(sum(m.memory(w.a)))
        slabs = w.a.status()["Slabs"]
        m.unprotect(w)
        bare += m.peer_pauses(w.a, g, "bare", 80, 100)
        # Last: what follows a migration isn't what was before.
        migrate = m.peer_pauses(w.a, g, "migrate", 40, 100)
    runs = parts(pauses(epochs))
    p50, p99 = [percentile(r, .5) for r in runs], percentile(pauses(epochs), .99)
    how = f"{PAUSE}; idle 512 MiB guest, 100 ms; peer: the same by a C client that sends all three at once"
    e99 = entry([percentile(r, .99) for r in runs], "ms", "bare stop+save+cont p99", percentile(bare, .99),
                how + f"; value: p99 of all {len(epochs)} epochs")
    e99["value"] = round(p99, 4)
    e99["ratio"] = round(p99 / e99["peer_value"], 4)
    return {
        "pause_idle_p50": entry(p50, "ms", "bare stop+save+cont p50", percentile(bare, .5), how),
        "pause_idle_p99": e99,
        "pause_vs_migrate": entry(p50, "ms", "stop, migrate x-ignore-shared to fd:, cont; p50", percentile(migrate, .5),
                                  f"{PAUSE}; the peer copies no RAM"),
        "cpu_idle": entry(used, "cores", "limit", 0.02, "all processes of both ends, supervisors too"),
        "mem_primary": entry([v / MIB for v in mem], "MiB", "delta_cache + 2 slabs + 16 MiB", 64 + 2 * 5 + 16,
                             f"arena as allocated + private memory of all processes, idle; {slabs} slabs held"),
    }, {"pause_idle": pauses(epochs), "pause_bare": bare, "pause_migrate": migrate,
        "phases": {k: statistics.median(e["phase"][k] for e in epochs) / 1e6 for k in epochs[0]["phase"]},
        "wire_idle": [e["wire"] for e in epochs], "stamps_idle": [e["stamp"] for e in epochs]}


class Sampler(threading.Thread):
    """The backup's memory beyond the guest's RAM, sampled while the guest works."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.host, self.most, self.end = host, 0, threading.Event()

    def run(self):
        while not self.end.wait(0.1):
            self.most = max(self.most, sum(m.memory(self.host)))

    def stop(self):
        self.end.set()
        self.join()
        return self.most


def dirty_run(mib, seconds):
    """Epochs of a guest that writes a word into each page of mib MiB every 100 ms."""
    with m.world() as w:
        m.work(w.a, f"pages {mib} 100" if mib else "echo", mem=256)
        m.protect(w, 100)
        time.sleep(12)  # what the first copy needed is given back by then
        s = Sampler(w.b)
        s.start()
        d = m.watch(w.a, seconds)
        return [e for e in d["epochs"] if e["state"] == "RELEASED"], s.stop()


def dirty():
    """64 MiB written in 100 ms: pre-scan, copy while the guest runs, short pause."""
    series = {}
    for mib in (0, 4, 16, 64):
        epochs, most = dirty_run(mib, 12 if mib in (0, 64) else 5)
        series[mib] = {"longest": pauses(epochs, "longest"), "sum": pauses(epochs),
                       "pages": [e["pages"] for e in epochs], "wire": [e["wire"] for e in epochs]}
    own = percentile(series[0]["longest"], .5)
    longest = [percentile(r, .5) for r in parts(series[64]["longest"])]
    total = [percentile(r, .5) for r in parts(series[64]["sum"])]
    pages = statistics.median(series[64]["pages"])
    largest = max(e["raw"] for e in epochs)
    how = (f"64 MiB guest memory, a word in each page once and evenly per 100 ms of its clock; {pages:.0f} pages an "
           f"epoch, {len(epochs)} epochs")
    return {
        "pause_dirty64": entry(longest, "ms", "own idle pause", own, "longest single stop, p50; " + how),
        "pause_dirty64_sum": entry(total, "ms", "own idle pause", own, "sum of all stops, p50; " + how),
        "mem_backup": entry([most / MIB], "MiB", "2x the largest epoch + 16 MiB", 2 * largest / MIB + 16,
                            f"most of arena + private memory while it went on; largest epoch {largest / MIB:.1f} MiB"),
    }, {"dirty": series}


def ram_run(mem, touched):
    with m.world(shm="11G") as w:
        g = m.work(w.a, f"fill {touched} zero", mem=mem)
        m.mctest.wait_for("the fill", lambda: "work: filled" in g.console(), 60)
        m.protect(w, 100, *(("--max-memory", "1G") if mem > 4096 else ()))
        d = m.watch(w.a, 8)
        return pauses(d["epochs"]), [e["phase"] for e in d["epochs"]]


def ram():
    """8 GiB with 4 GiB touched beside 1 GiB."""
    series = {}
    phases = {}
    for mem, touched in ((1024, 512), (4096, 2048), (8192, 4096)):
        series[mem], ph = ram_run(mem, touched)
        phases[mem] = {k: statistics.median(p[k] for p in ph) / 1e6 for k in ph[0]}
    small, big = percentile(series[1024], .5), [percentile(r, .5) for r in parts(series[8192])]
    return {
        "pause_ram8g": entry(big, "ms", "own, 1 GiB guest, 512 MiB touched", small,
                             "p50, idle 8 GiB guest of which 4 GiB are touched, 100 ms"),
        "pause_ram8g_per_gib": entry([(b - small) / 7 for b in big], "ms/GiB", "scan of 1 GiB in the 1 GiB guest",
                                     phases[1024]["log_dirty_time"], "what a GiB more adds to the pause"),
    }, {"ram": series, "ram_phases": phases}


BENCHES = {"idle": idle, "dirty": dirty, "ram": ram}
