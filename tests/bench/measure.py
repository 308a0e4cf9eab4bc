# SPDX-License-Identifier: GPL-2.0-or-later
"""What all measurements share: results, goals, programs, guests, epochs from the arena."""

import contextlib
import glob
import json
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import mctest  # noqa: E402
import scenario as sc  # noqa: E402

RUNS = 5
GUEST = f"{mctest.LAN}.50"
MIB = 1 << 20

# name: (comparison, goal) of value / peer_value
GOALS = {
    "pause_idle_p50": ("<=", 1.2), "pause_idle_p99": ("<=", 1.5), "pause_vs_migrate": ("<=", 0.4),
    "pause_dirty64": ("<=", 2), "pause_dirty64_sum": ("<=", 3), "pause_ram8g": ("<=", 2),
    "rate_redis": (">=", 1), "rate_redis_work": (">=", 0.5), "rate_idle": (">=", 1),
    "slowdown_cpu": ("<=", 1.15), "slowdown_mem": ("<=", 1.3), "redis_rps": (">=", 0.7),
    "output_delay": ("<=", 1), "failover": ("<=", 1.5), "failover_1g": ("<=", 1.2),
    "ring_spsc": ("<=", 1), "ring_spsc_1": ("<=", 1), "ring_wakeup": ("<=", 1.2),
    "stage_ratio": ("<=", 0.25), "stage_random": ("<=", 1.01), "stage_speed": (">=", 4),
    "fullcopy_random": (">=", 0.45), "fullcopy_zero": (">=", 2), "mem_primary": ("<=", 1), "mem_backup": ("<=", 1),
    "cpu_idle": ("<=", 1), "gate_barrier": ("<=", 1), "gate_rate": (">=", 0.7), "gate_rate_bits": (">=", 0.7), "rdma_goodput": (">=", 0.8),
}


def met(name, ratio):
    """True or False; None when the name has no goal. A ratio counts to 0.001: stamps jitter by that."""
    if name not in GOALS or ratio is None:
        return None
    op, goal = GOALS[name]
    ratio = round(ratio, 3)
    return ratio <= goal if op == "<=" else ratio >= goal


def entry(values, unit, peer, peer_value, how):
    """One result in the form of bench.json; the median is the value."""
    m = statistics.median(values)
    return {"value": round(m, 4), "unit": unit, "peer": peer, "peer_value": round(peer_value, 4),
            "ratio": round(m / peer_value, 4) if peer_value else None, "min": round(min(values), 4),
            "median": round(m, 4), "max": round(max(values), 4), "n": len(values), "how": how}


def percentile(values, q):
    """Nearest rank."""
    v = sorted(values)
    return v[min(len(v) - 1, int(q * len(v)))]


def parts(values, n=RUNS):
    """n equal runs out of one long series."""
    step = len(values) // n
    return [values[i * step:(i + 1) * step] for i in range(n)]


def program(name):
    return os.path.join(mctest.BUILD, f"bench-{name}")


def run_json(*args, prefix=()):
    """Runs a bench program and returns what it printed."""
    r = subprocess.run([*prefix, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                       timeout=300, check=False)
    mctest.check(r.returncode == 0, f"{args}: exit {r.returncode}: {r.stderr.strip()}")
    return json.loads(r.stdout)


def client(world):
    """Prefix that runs a program in the client's network."""
    return ["ip", "netns", "exec", world.client]


def arena_path(host):
    """The arena of guest vm on this host, as seen from outside its mount namespace."""
    found = [p for p in glob.glob(f"/proc/{host.holder.pid}/root/dev/shm/*vm") if "ram" not in os.path.basename(p)]
    mctest.check(len(found) == 1, f"arena of host {host.name}: {found}")
    return found[0]


def watch(host, seconds):
    """Epochs that end meanwhile, and metrics."""
    return run_json(program("watch"), arena_path(host), seconds)


def pauses(epochs, key="pause"):
    """ms"""
    return [e[key] / 1e6 for e in epochs if e["state"] in ("COMMITTED", "RELEASED")]


def peer_pauses(host, guest, kind, n, gap):
    """ms of a C client that does nothing but pause the guest."""
    return run_json(program("peer"), kind, guest.qmp_path, n, gap, prefix=host.enter())


@contextlib.contextmanager
def world(shm="2G"):
    """Two hosts with their supervisors."""
    with mctest.World(shm=shm) as w:
        w.a.start()
        w.b.start()
        yield w


def protect(w, interval, *extra):
    """Protects vm and lets it run for a second."""
    s = sc.protect(w.a, w.b, *extra)
    w.a.mcctl("set", "vm", f"interval={interval}")
    time.sleep(1)
    return s


def unprotect(w):
    """Ends the protection: the gate passes, the guest runs on; the standby's QEMU ends."""
    w.a.mcctl("unprotect", "vm")
    w.a.wait_state("ENDED")
    w.b.guests["vm"].kill()
    w.b.mcctl("unprotect", "vm", ok=False)


def work(host, what, mem=256, **kw):
    """Boots a guest that runs tests/guest/work."""
    return sc.boot(host, work="mc.run=work^" + what.replace(" ", "^"), mem=mem, **kw)


def cpu_seconds(pids):
    """CPU seconds that processes have used."""
    total = 0
    for p in pids:
        with contextlib.suppress(OSError), open(f"/proc/{p}/stat", encoding="ascii") as f:
            v = f.read().rsplit(")", 1)[1].split()
            total += int(v[11]) + int(v[12])
    return total / os.sysconf("SC_CLK_TCK")


def all_pids(host):
    """Every process of ours on a host, guards as well."""
    out = []
    for p in host.pids():
        with contextlib.suppress(OSError), open(f"/proc/{p}/cmdline", encoding="utf-8") as f:
            if os.path.basename(f.read().split("\0")[0]).startswith("mc-"):
                out.append(p)
    return out


def private_bytes(pids):
    """Anonymous memory of processes, and memfds that they made."""
    total, seen = 0, set()
    for p in pids:
        with contextlib.suppress(OSError):
            with open(f"/proc/{p}/smaps_rollup", encoding="ascii") as f:
                total += sum(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss_Anon:"))
            for fd in glob.glob(f"/proc/{p}/fd/*"):
                with contextlib.suppress(OSError):
                    st = os.stat(fd)
                    if "/memfd:" in os.readlink(fd) and st.st_ino not in seen:
                        seen.add(st.st_ino)
                        total += st.st_blocks * 512
    return total


def memory(host):
    """Bytes: arena as allocated, and private memory of all processes."""
    return os.stat(arena_path(host)).st_blocks * 512, private_bytes(all_pids(host))


class Rounds:
    """Rounds that the guest's work has done, by this host's clock."""

    def __init__(self, w):
        import socket
        self.sock = w.in_client(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.sock.settimeout(2)
        self.n = 0

    def read(self):
        """(when it was asked, rounds by then)"""
        for _ in range(10):
            self.n += 1
            tag = f"r{self.n}"
            t = time.monotonic()
            self.sock.sendto(tag.encode(), (GUEST, 7003))
            with contextlib.suppress(OSError):
                while True:
                    a = self.sock.recv(256).decode("ascii", "replace").split()
                    if a[0] == tag:
                        return t, int(a[1])
        raise mctest.Failure("the guest's work doesn't answer")

    def rates(self, runs, seconds):
        """Rounds a second in each of several runs."""
        out = []
        t, n = self.read()
        for _ in range(runs):
            time.sleep(seconds)
            t2, n2 = self.read()
            out.append((n2 - n) / (t2 - t))
            t, n = t2, n2
        return out

    def close(self):
        self.sock.close()


def redis_benchmark(w, n, pipeline, tests="set,get"):
    """Requests a second over all tests, as redis-benchmark counts them."""
    r = subprocess.run([*client(w), "redis-benchmark", "-h", GUEST, "-c", "50", "-P", str(pipeline), "-d", "64",
                        "-t", tests, "-n", str(n), "--csv"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                       text=True, timeout=120, check=True)
    rps = [float(line.split('","')[1].strip('"')) for line in r.stdout.splitlines() if line[1:4] in ("SET", "GET")]
    mctest.check(len(rps) == len(tests.split(",")), f"redis-benchmark printed {r.stdout}")
    return len(rps) / sum(1 / v for v in rps)


@contextlib.contextmanager
def redis_load(w, pipeline=16):
    """redis-benchmark's load until the block is left."""
    p = subprocess.Popen([*client(w), "redis-benchmark", "-h", GUEST, "-q", "-c", "50", "-P", str(pipeline), "-d", "64",
                          "-l", "-t", "set,get"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield p
    finally:
        p.kill()
        p.wait()


def commands_done(redis):
    """Commands that redis in the guest has processed, and when it was asked."""
    t = time.monotonic()
    for line in redis.cmd("INFO", "stats").split(b"\r\n"):
        if line.startswith(b"total_commands_processed:"):
            return t, int(line.split(b":")[1])
    raise mctest.Failure("redis INFO has no total_commands_processed")
