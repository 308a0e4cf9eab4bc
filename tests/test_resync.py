# SPDX-License-Identifier: GPL-2.0-or-later
"""A first copy to a standby that was filled before: only what differs is sent, and it is the guest all the same."""

import os
import re
import signal

import mctest
import scenario as sc
from mctest import check

MIB = 1 << 20
LOAD = "mc.redis=1 mc.memcheck=32:20 mc.counter=2000"


def equal_pages(host, nth):
    """(equal, compared) of the nth comparison, by the history; None: it isn't over yet."""
    found = re.findall(r"resync by page hashes: (\d+) of (\d+) pages equal", host.mcctl("events", "vm").stdout)
    return tuple(map(int, found[nth])) if len(found) > nth else None


def test_copy_again():
    """A copy that broke off, and one after unprotect, to the same standby, send a small part of it."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, work=LOAD, mem=192)
        s = sc.standby(w.b, g)
        w.a.mcctl(*sc.protect_args(w.a, w.b, "--max-bandwidth", "32M"))
        mctest.wait_for("most of the first copy", lambda: w.a.status()["SyncDone"] > w.a.status()["SyncTotal"] * 0.6, 20)
        check(w.a.state() == "SYNCING", f"state {w.a.state()}: the copy was over before it could break off")
        whole = w.a.status()["SyncTotal"]
        w.a.mcctl("set", "vm", "max-bandwidth=0")
        os.kill(w.a.worker_pids("transport")[0][0], signal.SIGKILL)
        w.a.wait_state("PROTECTED", timeout=20)
        equal, compared = equal_pages(w.a, 0)
        check(equal > compared * 0.4, f"{equal} of {compared} pages equal after most of the copy was there")
        check(w.a.mcctl("events", "vm").stdout.count("process-died") == 1, "more died than was killed")
        mem, watch = mctest.MemCheck(w), mctest.CounterWatch(w)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.3)
        w.a.mcctl("unprotect", "vm")
        w.b.wait_state("ENDED", timeout=5)
        sc.write_for(redis, 0.3)
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args(), "--insecure")
        w.a.mcctl(*sc.protect_args(w.a, w.b))
        w.a.wait_state("PROTECTED", timeout=20)
        again = w.a.status()["SyncDone"]
        equal, compared = equal_pages(w.a, 1)
        check(equal > compared * 0.7, f"{equal} of {compared} pages equal")
        check(again < whole / 2, f"{again / MIB:.1f} MiB copied again, {whole / MIB:.1f} MiB the first time")
        sc.write_for(redis, 0.5)
        sc.no_bad_words(mem)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
        check(sc.no_bad_words(mem) > 0, "the memory checker didn't get far")
        watch.poll()
        check(not watch.back, f"counts taken back: {watch.back[:3]}")
