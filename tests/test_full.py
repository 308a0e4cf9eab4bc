# SPDX-License-Identifier: GPL-2.0-or-later
"""Full memory and full disks: nothing dies, nothing is lost, the error names the place."""

import mctest
import scenario as sc
from mctest import check
from test_service import stage_props

IN_PAIRS = True  # what has a limit here has one of seconds


def fill(host, folder, leave=0):
    """Leaves no more than `leave` bytes in a file system; again: takes what was given back meanwhile."""
    host.run("sh", "-c", f"touch {folder}/fill; until fallocate -l $(($(stat -c %s {folder}/fill) + "
                         f"$(df --output=avail -B1 {folder} | tail -1) - {leave})) {folder}/fill; do :; done")


def test_shm_fills_up_meanwhile():
    """Epochs that find no memory are given up and their pages carried over; with room again they go on."""
    ram = {"ram": "memfd"}  # the guest's own RAM lies elsewhere
    with mctest.World(shm="300M") as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, work="mc.redis=1 mc.memcheck=96", **ram)
        sc.protect(w.a, w.b, "--shrink-delay", 1, standby_kw=ram)
        redis = mctest.Redis(w)
        mem = mctest.MemCheck(w)
        sc.write_for(redis, 1)
        pids = sorted(p for p, _ in w.a.worker_pids())
        w.a.mcctl("set", "vm", "interval=1000")  # far more to copy in an epoch than there are slabs for

        def starved():
            for host in (w.a, w.b):
                fill(host, "/dev/shm")  # the pools of the first copy shrink by and by
            return stage_props(w.a, "capture")["aborts"] > 1
        mctest.wait_for("epochs without memory", starved, 30, every=0.2)
        w.a.mcctl("set", "vm", "interval=50")
        for host in (w.a, w.b):
            host.run("rm", "/dev/shm/fill")
        sc.epochs_go_on(w.a, 10, timeout=20)
        check(sorted(p for p, _ in w.a.worker_pids()) == pids, "a process died of a full /dev/shm")
        sc.runs(g)
        sc.write_for(redis, 0.5)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
        sc.no_bad_words(mem)


def test_full_state_directory():
    """A term that can't be written durably is not used: refused by name, the guest runs on."""
    with mctest.World() as w:
        w.a.run("mount", "-t", "tmpfs", "-o", "size=64k", "state", w.a.state_dir)
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        sc.standby(w.b, g)
        fill(w.a, w.a.state_dir)
        r = w.a.mcctl(*sc.protect_args(w.a, w.b), ok=False)
        check(r.returncode == 1 and w.a.state_dir in r.stderr, f"protect: {r.returncode} {r.stderr}")
        check(w.a.mcctl("status", "vm", ok=False).returncode == 1, "a guest is left in the list")
        sc.runs(g)
        w.a.run("rm", f"{w.a.state_dir}/fill")
        w.a.mcctl(*sc.protect_args(w.a, w.b))
        w.a.wait_state("PROTECTED", timeout=60)
        fill(w.a, w.a.state_dir)
        sc.epochs_go_on(w.a, 10)  # the history can't be written any more: nothing else stops
        check(w.a.state() == "PROTECTED", f"state {w.a.state()}")
