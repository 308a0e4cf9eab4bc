# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests under load: how often, how slowly, and how late their output is."""

import bisect
import statistics
import time

import measure as m
import mctest
from measure import entry, percentile

NAMES = {"rate_redis": ("rate_redis", "rate_redis_work"), "rate_idle": ("rate_idle",),
         "redis_25": ("pause_redis_p50", "pause_redis_p99", "rate_redis_25ms"),
         "slowdown_cpu": ("slowdown_cpu",), "slowdown_mem": ("slowdown_mem",),
         "redis_rps": ("redis_rps", "redis_rps_p1"), "output_delay": ("output_delay", "output_delay_closed")}


def released_per_second(d, seconds, n):
    """Epochs released in each of n equal parts of the time: from a part's first to the next one's first, by their stamps."""
    at = sorted(e["stamp"][6] for e in d["epochs"] if e["state"] == "RELEASED")
    mctest.check(len(at) > n, f"only {len(at)} epochs were released")
    first = [bisect.bisect_left(at, at[0] + i * seconds / n * 1e9) for i in range(n + 1)]
    mctest.check(first[n] < len(at), f"no epoch was released after {seconds} s")
    return [(b - a) / (at[b] - at[a]) * 1e9 for a, b in zip(first, first[1:])]


def rate_redis():
    """10 ms under redis-benchmark's load for a minute."""
    with m.world() as w:
        m.sc.boot(w.a)
        m.protect(w, 10)
        redis = mctest.Redis(w)
        with m.redis_load(w):
            time.sleep(1)
            t, n = m.commands_done(redis)
            d = m.watch(w.a, 61)
            t2, n2 = m.commands_done(redis)
            protected = (n2 - n) / (t2 - t)
        m.unprotect(w)
        with m.redis_load(w):
            time.sleep(1)
            t, n = m.commands_done(redis)
            time.sleep(5)
            t2, n2 = m.commands_done(redis)
            passing = (n2 - n) / (t2 - t)
        redis.close()
    load = "redis-benchmark -c 50 -P 16 -d 64 -t set,get"
    return {
        "rate_redis": entry(released_per_second(d, 60, 6), "epochs/s", "100", 100.0,
                            f"committed and released for 60 s at 10 ms, {load}"),
        "rate_redis_work": entry([protected], "commands/s", "same guest, gate passing", passing,
                                 "what redis got done meanwhile"),
    }, {"redis10": {"pause": m.pauses(d["epochs"]), "pages": [e["pages"] for e in d["epochs"]],
                    "stamps": [e["stamp"] for e in d["epochs"]][:2000], "wire": [e["wire"] for e in d["epochs"]],
                    "phases": {k: statistics.median(e["phase"][k] for e in d["epochs"]) / 1e6
                               for k in d["epochs"][0]["phase"]}}}


def redis_25():
    """The demo's interval under load: pauses, and forty epochs a second."""
    with m.world() as w:
        g = m.sc.boot(w.a)
        m.protect(w, 25)
        with m.redis_load(w):
            time.sleep(1)
            d = m.watch(w.a, 20)
            m.unprotect(w)
            bare = m.peer_pauses(w.a, g, "bare", 200, 25)
    runs = m.parts(m.pauses(d["epochs"]))
    how = "redis guest at 25 ms, redis-benchmark -c 50 -P 16 -d 64 -t set,get; peer: bare stop+save+cont every 25 ms, same load"
    return {
        "pause_redis_p50": entry([percentile(r, .5) for r in runs], "ms", "bare stop+save+cont p50", percentile(bare, .5), how),
        "pause_redis_p99": entry([percentile(r, .99) for r in runs], "ms", "bare stop+save+cont p99", percentile(bare, .99), how),
        "rate_redis_25ms": entry(released_per_second(d, 18, 6), "epochs/s", "40", 40.0,
                                 "committed and released, the same run"),
    }, {"pause_redis25": m.pauses(d["epochs"])}


def rate_idle():
    with m.world() as w:
        m.sc.boot(w.a)
        m.protect(w, 5)
        d = m.watch(w.a, 61)
    return {"rate_idle": entry(released_per_second(d, 60, 6), "epochs/s", "200", 200.0,
                               "committed and released for 60 s at 5 ms, idle redis guest")}, {}


def slowdown(name, what, how):
    with m.world() as w:
        m.work(w.a, what)
        m.protect(w, 25)
        r = m.Rounds(w)
        protected = r.rates(m.RUNS, 2)
        m.unprotect(w)
        bare = r.rates(m.RUNS, 2)
        r.close()
    return {name: entry([1e3 / v for v in protected], "ms", "same guest unprotected",
                        1e3 / statistics.median(bare), how)}, {}


def slowdown_cpu():
    return slowdown("slowdown_cpu", "cpu", "time of a round of a compute loop at 25 ms")


def slowdown_mem():
    return slowdown("slowdown_mem", "mem 8", "time of a round over 8 MiB that are written all the time, 25 ms")


def redis_rps():
    with m.world() as w:
        m.sc.boot(w.a)
        m.protect(w, 25)
        held = {p: [m.redis_benchmark(w, n, p) for _ in range(m.RUNS)] for p, n in ((16, 20000), (1, 1500))}
        m.unprotect(w)
        passing = {p: [m.redis_benchmark(w, n, p) for _ in range(m.RUNS)] for p, n in ((16, 20000), (1, 5000))}
    how = "redis-benchmark -c 50 -P {} -d 64 -t set,get through the gate at 25 ms"
    return {
        "redis_rps": entry(held[16], "requests/s", "same, gate passing", statistics.median(passing[16]),
                           how.format(16)),
        "redis_rps_p1": entry(held[1], "requests/s", "same, gate passing", statistics.median(passing[1]),
                              how.format(1) + " (one request an interval and connection is the limit)"),
    }, {}


def output_delay():
    """UDP requests; what protection adds to the time until the answer."""
    series = {}
    with m.world() as w:
        m.work(w.a, "echo")
        m.protect(w, 25)

        def ask(*args):
            d = m.run_json(m.program("delay"), *args, prefix=m.client(w))
            mctest.check(len(d["ms"]) > 0.98 * d["sent"], f"{d['sent'] - len(d['ms'])} of {d['sent']} got no answer")
            return d["ms"]

        for interval in (5, 10, 50, 100, 25):
            w.a.mcctl("set", "vm", f"interval={interval}")
            time.sleep(0.5)
            series[interval] = ask("open", m.GUEST, 7003, 100, 12 if interval == 25 else 4)
        closed = ask("closed", m.GUEST, 7003, 4)
        m.unprotect(w)
        plain = ask("open", m.GUEST, 7003, 100, 4)
        plain_closed = ask("closed", m.GUEST, 7003, 3)
    base, base_closed = percentile(plain, .5), percentile(plain_closed, .5)
    return {
        "output_delay": entry([percentile(r, .5) - base for r in m.parts(series[25])], "ms", "interval / 2 + 3 ms",
                              15.5, f"added to a request's median, open loop (Poisson, 100/s), 25 ms; unprotected "
                                    f"{base:.2f} ms"),
        "output_delay_closed": entry([percentile(r, .5) - base_closed for r in m.parts(closed)], "ms",
                                     "interval / 2 + 3 ms", 15.5, "the same in a closed loop"),
    }, {"delay": series, "delay_plain": plain}


BENCHES = {"rate_redis": rate_redis, "redis_25": redis_25, "rate_idle": rate_idle, "slowdown_cpu": slowdown_cpu,
           "slowdown_mem": slowdown_mem, "redis_rps": redis_rps, "output_delay": output_delay}
