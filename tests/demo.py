#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest outlives two hosts: the demonstration behind `make demo`.

Boots a Linux guest with a redis-server, protects it, kills everything on its host, shows it
live on; protects it again the other way, then cuts the cables of its host and kills it.
One TCP connection of a client lasts through all of it.  Ends with build/demo.json.
"""

import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
import mctest  # noqa: E402
from mctest import check  # noqa: E402

INTERVAL_MS = 25
RESTART_GRACE_MS = 60
FAILURE_TIMEOUT_MS = 500


class Story:
    """Prints the timeline and keeps the figures."""

    def __init__(self):
        self.start = time.monotonic()
        self.figures = {}

    def tell(self, text):
        print(f"{time.monotonic() - self.start:7.3f} s  {text}", flush=True)


def protect(story, world, src, dst, guest_kw):
    """Starts a standby on dst and protects the guest of src to it."""
    standby = dst.guest("vm", incoming=True, **guest_kw)
    dst.mcctl("standby", "vm", "--qmp", standby.qmp_path, *standby.relay_args(), "--insecure")
    src.mcctl("protect", "vm", "--qmp", src.guests["vm"].qmp_path, "--peer", f"{dst.addr}:{mctest.PORT}",
              "--interval", INTERVAL_MS, "--insecure", *src.guests["vm"].relay_args())
    src.wait_state("PROTECTED")
    story.tell(f"PROTECTED: host {src.name} -> host {dst.name}, every {INTERVAL_MS} ms")
    return standby


def write_for(redis, seconds):
    """Writes for a while; returns the longest time between two acknowledgements, ns."""
    end = time.monotonic() + seconds
    last = time.monotonic_ns()
    gap = 0
    while time.monotonic() < end:
        redis.write()
        now = time.monotonic_ns()
        gap = max(gap, now - last)
        last = now
    return gap


def disaster(story, redis, src, dst, cut):
    """Kills src while the client writes; returns (ms to the standby running, client's gap in ms)."""
    write_for(redis, 2 + random.random())
    before = src.status()
    story.tell(f"client: {redis.acked} values acknowledged; epoch {before['CommittedEpoch']} committed; "
               f"pause p50 {before['PauseP50'] / 1e6:.2f} ms, p99 {before['PauseP99'] / 1e6:.2f} ms")
    if cut:
        t0 = src.cut()
        story.tell(f"host {src.name}: all cables cut")
        src.kill_everything()
    else:
        t0 = src.kill_everything()
    story.tell(f"host {src.name}: SIGKILL to everything on it")
    gap = write_for(redis, 3)
    dst.wait_state("ACTIVE", timeout=5)
    running = dst.status()["TookOver"]
    story.tell(f"host {dst.name}: guest running {(running - t0) / 1e6:.1f} ms after; "
               f"client's longest wait {gap / 1e6:.0f} ms")
    return before, (running - t0) / 1e6, gap / 1e6


def main():
    story = Story()
    guest_kw = {"mem": 256, "serial": False, "append": f"mc.ip={mctest.LAN}.50/24 mc.redis=1"}
    with mctest.World() as world:
        a, b = world.a, world.b
        a.start()
        b.start()
        story.tell("two hosts and a client are up")
        a.guest("vm", **guest_kw)
        protect(story, world, a, b, guest_kw)
        redis = mctest.Redis(world)
        story.tell("client: connected to redis in the guest, writes numbered values")

        before, failover, gap = disaster(story, redis, a, b, cut=False)
        lost = redis.lost()
        story.tell(f"client: same connection goes on; {redis.acked} acknowledged, {lost} lost")

        a.start()
        story.tell("host a is back; the guest is protected the other way")
        protect(story, world, b, a, guest_kw)
        _, power, gap2 = disaster(story, redis, b, a, cut=True)
        lost += redis.lost()
        story.tell(f"client: same connection goes on; {redis.acked} acknowledged, {lost} lost")
        redis.close()

    result = {
        "epochs": before["CommittedEpoch"], "interval_ms": INTERVAL_MS,
        "pause_ms_p50": round(before["PauseP50"] / 1e6, 3), "pause_ms_p99": round(before["PauseP99"] / 1e6, 3),
        "failover_ms": round(failover, 1), "failover_power_ms": round(power, 1),
        "client_gap_ms": round(max(gap, gap2), 1), "acked": redis.acked, "lost": lost,
        "connection_survived": True,
    }
    path = os.path.join(mctest.TOP, "build", "demo.json")
    with open(path, "w", encoding="ascii") as f:
        json.dump(result, f)
        f.write("\n")
    print(json.dumps(result))
    check(lost == 0, f"{lost} acknowledged values lost")
    if failover > RESTART_GRACE_MS + 50:
        print(f"note: failover took longer than restart_grace + 50 ms: {failover:.1f}")
    if power > FAILURE_TIMEOUT_MS + 50:
        print(f"note: failover after the cut took longer than failure_timeout + 50 ms: {power:.1f}")
    return 0


if __name__ == "__main__":
    mctest.end_on_sigterm()
    try:
        sys.exit(main())
    except mctest.Failure as e:
        print(f"demo: {e}", file=sys.stderr)
        sys.exit(1)
