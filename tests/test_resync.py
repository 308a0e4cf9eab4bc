# SPDX-License-Identifier: GPL-2.0-or-later
"""Resync by page hashes: of a first copy, and of an epoch that is too large, only what differs is sent."""

import os
import re
import signal
import socket

import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is

MIB = 1 << 20
SMALL = ["--slab-size", "256K", "--delta-cache", "4M", "--failure-timeout", 1000, "--restart-grace", 250]
RESYNC = r"resync by page hashes: (\d+) of (\d+) pages equal"


def equal_pages(host, nth):
    """(equal, compared) of the nth comparison, by the history; None: it isn't over yet."""
    found = re.findall(RESYNC, host.mcctl("events", "vm").stdout)
    return tuple(map(int, found[nth])) if len(found) > nth else None


def rewrite(w):
    """Has the guest write 20 MB once more, as they are."""
    def connect():
        try:
            s = w.in_client(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            s.settimeout(2)
            s.connect((f"{mctest.LAN}.50", 7010))
            return s
        except OSError:
            return None
    mctest.wait_for("the guest to listen", connect, 30).close()


def filled_guest(w):
    """A guest with 20 MB in a file and their copy."""
    cmd = ("head^-c^20000000^/dev/urandom>/tmp/x;cp^/tmp/x^/tmp/y;echo^filled;"
           "while^nc^-l^-p^7010^</dev/null;do^dd^if=/tmp/x^of=/tmp/y^conv=notrunc^bs=1M;done")
    g = sc.boot(w.a, work=f"mc.redis=1 mc.memcheck=16:8 mc.counter=2000 mc.run={cmd}", mem=192)
    mctest.wait_for("the guest's memory to be filled", lambda: "filled" in g.console(), 30)
    return g


def broken_copy(w):
    """A first copy that breaks off: what came of it isn't sent again."""
    w.a.mcctl(*sc.protect_args(w.a, w.b, *SMALL, "--max-memory", "96M", "--on-overload", "hold", "--abort-limit", 2,
                               "--max-bandwidth", "64M"))
    mctest.wait_for("most of the first copy", lambda: w.a.status()["SyncDone"] > w.a.status()["SyncTotal"] * 0.6, 20)
    check(w.a.state() == "SYNCING", f"state {w.a.state()}: the copy was over before it could break off")
    w.a.mcctl("set", "vm", "max-bandwidth=0")
    os.kill(w.a.worker_pids("transport")[0][0], signal.SIGKILL)
    w.a.wait_state("PROTECTED", timeout=20)
    equal, compared = equal_pages(w.a, 0)
    check(equal > compared * 0.4, f"{equal} of {compared} pages equal after most of the copy was there")
    check(w.a.mcctl("events", "vm").stdout.count("process-died") == 1, "more died than was killed")


def too_large_but_equal(w, g, redis):
    """An epoch above what the backup takes, but which it has already: no policy is needed."""
    w.a.mcctl("set", "vm", "interval=300")
    for nth in (1, 2):
        rewrite(w)
        mctest.wait_for("a comparison", lambda n=nth: equal_pages(w.a, n), 15, every=0.05)
        equal, compared = equal_pages(w.a, nth)
        check(equal > 20_000_000 // 4096 * 0.9, f"{equal} of {compared} pages equal after all was written once more")
        sc.epochs_go_on(w.a, 1)
        sc.write_for(redis, 0.1)
    check("held" not in w.a.mcctl("events", "vm").stdout, "the overload policy was applied")
    check((w.a.state(), g.status()) == ("PROTECTED", "running"), f"{w.a.state()}, the guest is {g.status()}")
    w.a.mcctl("set", "vm", "interval=25")


def protected_again(w, s):
    """The same standby once more."""
    w.a.mcctl("unprotect", "vm")
    w.b.wait_state("ENDED", timeout=5)
    w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args(), "--insecure", *SMALL, "--max-memory", "24M")
    n = len(re.findall(RESYNC, w.a.mcctl("events", "vm").stdout))
    w.a.mcctl(*sc.protect_args(w.a, w.b, *SMALL, "--max-memory", "96M"))
    w.a.wait_state("PROTECTED", timeout=20)
    equal, compared = equal_pages(w.a, n)
    check(equal > compared * 0.7, f"{equal} of {compared} pages equal")
    again, whole = w.a.status()["SyncDone"], compared * 4096
    check(again < whole / 2, f"{again / MIB:.1f} of {whole / MIB:.1f} MiB copied again")


def test_resync():
    """What the standby has is not sent again, and it is the guest all the same."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = filled_guest(w)
        s = sc.standby(w.b, g, *SMALL, "--max-memory", "24M")
        broken_copy(w)
        mem, watch, redis = mctest.MemCheck(w), mctest.CounterWatch(w), mctest.Redis(w)
        sc.write_for(redis, 0.2)
        too_large_but_equal(w, g, redis)
        protected_again(w, s)
        sc.write_for(redis, 0.3)
        sc.no_bad_words(mem)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
        check(sc.no_bad_words(mem) > 0, "the memory checker didn't get far")
        watch.poll()
        check(not watch.back, f"counts taken back: {watch.back[:3]}")
