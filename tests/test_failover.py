# SPDX-License-Identifier: GPL-2.0-or-later
"""What the product is for: hosts die, the guest goes on, nothing that was told is lost."""

import random
import time

import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is

KILLS = 20
LOAD = "mc.redis=1 mc.memcheck=64:200 mc.counter=2000"


def test_twenty_kills_to_and_fro():
    """Kills the host at random moments under load, protects again the other way, 20 times."""
    with mctest.World(taps=2) as w:
        src, dst = w.a, w.b
        w.a.start()
        w.b.start()
        sc.boot(src, nics=2, work=LOAD)
        mem = mctest.MemCheck(w)
        watch = mctest.CounterWatch(w)
        term = 0
        redis = None
        for i in range(KILLS):
            sc.protect(src, dst)
            redis = redis or mctest.Redis(w)
            now = src.status()["Term"]
            check(now > term, f"term {now} after {term}")
            term = now
            sc.write_for(redis, 0.3 + random.random())
            watch.poll()
            src.kill_everything()
            watch.poll()
            sc.write_for(redis, 0.5)
            check(dst.state() == "ACTIVE", f"kill {i}: standby is {dst.state()}")
            lost = redis.lost() if i in (0, KILLS - 1) else 0
            check(lost == 0, f"kill {i}: {lost} acknowledged values lost")
            sc.no_bad_words(mem)
            watch.poll()
            check(not watch.back, f"kill {i}: counts taken back: {watch.back[:3]}")
            src.start()
            src, dst = dst, src
        kinds = {k for k, _ in watch.highest}
        check(kinds == {"udp4", "udp6", "arp"} and len(watch.highest) == 6, f"seen only {watch.highest.keys()}")
        check(watch.received > 1000, f"only {watch.received} counts seen")


test_twenty_kills_to_and_fro.limit = 400


def test_cables_cut():
    """A power loss: silence, then takeover; the old primary, still alive, never speaks again."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        guest = sc.boot(w.a, work=LOAD)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 1)
        t = w.a.cut()
        w.b.wait_state("ACTIVE", timeout=5)
        ms = (w.b.status()["TookOver"] - t) / 1e6
        check(450 < ms < 700, f"takeover {ms:.0f} ms after the cut")
        sc.write_for(redis, 1)
        check(redis.lost() == 0, "acknowledged values lost")
        check(w.a.state() == "HELD", f"old primary is {w.a.state()}, not HELD")
        check(guest.status() == "paused", "guest of the old primary runs on")
        w.a.plug_in()
        w.a.wait_state("STOPPED", timeout=10)
        check(guest.status() == "paused", "guest of the old primary runs after STOPPED")
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost after the old host came back")


def test_short_cut_keeps_protection():
    """A link that is gone for less than the time-out costs delay, nothing else."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, work=LOAD)
        mem = mctest.MemCheck(w)
        # TCP tries again after 0.2, 0.6 s: on a slow machine the default would be over by then.
        patient = ("--failure-timeout", "1500")
        sc.standby(w.b, g, *patient)
        w.a.mcctl(*sc.protect_args(w.a, w.b, *patient))
        w.a.wait_state("PROTECTED", timeout=30)
        redis = mctest.Redis(w)
        for _ in range(3):
            w.a.run("ip", "link", "set", "repl", "down")
            time.sleep(0.2)
            w.a.run("ip", "link", "set", "repl", "up")
            sc.write_for(redis, 1)
        check(w.a.state() == "PROTECTED" and w.b.state() == "PROTECTED",
              f"states {w.a.state()} and {w.b.state()}")
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
        sc.no_bad_words(mem)


def test_no_takeover_before_first_commit():
    """A primary that dies during the first copy leaves a standby that waits, not one that runs."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, mem=512)
        s = sc.standby(w.b, w.a.guests["vm"])
        w.a.mcctl(*sc.protect_args(w.a, w.b, "--max-bandwidth", 5000000))
        check(w.a.state() == "SYNCING", f"state {w.a.state()}")
        w.a.kill_everything()
        time.sleep(1.5)
        check(s.status() == "inmigrate", f"standby is {s.status()}")
        check(w.b.state() in ("WAITING", "SYNCING"), f"state {w.b.state()}")
        r = w.b.mcctl("failover", "vm", ok=False)
        check(r.returncode == 1 and r.stderr.strip(), "failover before the first commit was not refused")
        check(s.status() == "inmigrate", f"standby is {s.status()} after a refused failover")


def test_operators_failover():
    """`mcctl failover` on the backup: takes over, the old primary stops."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        guest = sc.boot(w.a)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.5)
        w.b.mcctl("failover", "vm")
        w.b.wait_state("ACTIVE", timeout=5)
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
        w.a.wait_state("STOPPED", timeout=5)
        check(guest.status() == "paused", "the old guest runs on")


def test_survivor_reboots():
    """The standby has its firmware, too: a guest that is reset after a failover comes up again."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, reboot=True)
        s = sc.protect(w.a, w.b, standby_kw={"reboot": True})
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.3)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
        redis.close()
        s.qmp.cmd("system_reset")
        mctest.wait_for("the survivor's second boot", lambda: "Ready to accept" in s.console(), 60)
        redis = mctest.Redis(w)
        redis.write()


def test_poweroff_is_an_end():
    """A guest that powers itself off ends the protection; the standby doesn't start it again."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work="mc.redis=1 mc.poweroff=8")
        s = sc.protect(w.a, w.b)
        w.a.wait_state("ENDED", timeout=20)
        check(w.a.status()["Reason"] == "guest-shutdown", f"reason {w.a.status()['Reason']}")
        w.b.wait_state("ENDED", timeout=5)
        time.sleep(1)
        check(s.proc.poll() is not None or s.status() == "inmigrate", f"standby is {s.status()}")


def test_quit_is_an_end():
    """QMP quit by an operator: an end as well."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        s = sc.protect(w.a, w.b)
        g.qmp.sock.sendall(b'{"execute":"quit"}\n')
        w.a.wait_state("ENDED", timeout=10)
        w.b.wait_state("ENDED", timeout=5)
        time.sleep(1)
        check(s.status() == "inmigrate", f"standby is {s.status()}")


def test_qemu_death_fails_over():
    """Only QEMU dies: the backup takes over at once (END), without waiting for any time-out."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.5)
        t = time.monotonic_ns()
        g.kill()
        w.b.wait_state("ACTIVE", timeout=5)
        ms = (w.b.status()["TookOver"] - t) / 1e6
        check(ms < 100, f"took over {ms:.0f} ms after QEMU died")
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "acknowledged values lost")
