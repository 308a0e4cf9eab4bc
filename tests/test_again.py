# SPDX-License-Identifier: GPL-2.0-or-later
"""A standby or a guest that was started anew: a full copy under a new term, without being told."""

import json
import time

import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is


def prop(host, name):
    """A property of the guest, from the bus."""
    out = host.run("busctl", f"--address={host.bus}", "--json=short", "get-property", "org.microcheckpoint1",
                   "/org/microcheckpoint1/guest/vm", "org.microcheckpoint1.Guest", name)
    return json.loads(out)["data"]


def call(host, *args):
    """A method of the manager; what it answers."""
    return host.run("busctl", f"--address={host.bus}", "call", "org.microcheckpoint1", "/org/microcheckpoint1",
                    "org.microcheckpoint1.Manager", *args)


def test_standby_restarts():
    """The new one has an empty RAM: it isn't taken for the old one, but filled, under a new term."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        s = sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.2)
        term, copied = prop(w.a, "Term"), prop(w.a, "SyncDone")
        s.kill()
        w.a.wait_state("DEGRADED", timeout=5)
        check(prop(w.a, "Reason") == "standby-lost", f"reason {prop(w.a, 'Reason')}")
        w.b.wait_state("STOPPED", timeout=5)
        sc.write_for(redis, 0.2)
        w.b.run("rm", "-f", f"/dev/shm/{mctest.PREFIX}-ram-vm")  # a RAM in a file would still hold the copy
        work = g.args[g.args.index("-append") + 1].split("mitigations=off ", 1)[-1].replace("console=ttyS0 ", "")
        s = w.b.guest("vm", incoming=True, append=work)
        # DEGRADED until there is a standby: nothing is tried on the guest before.
        mctest.wait_for("the new protection", lambda: prop(w.a, "State") != "DEGRADED", 15, every=0.05)
        check(prop(w.a, "State") in ("SYNCING", "PROTECTED"), f"state {prop(w.a, 'State')}")
        w.a.wait_state("PROTECTED", timeout=10)
        check(prop(w.a, "Term") > term, f"term {prop(w.a, 'Term')} after {term}")
        check(prop(w.a, "SyncDone") > copied // 2, f"{prop(w.a, 'SyncDone')} bytes copied, {copied} the first time")
        check(s.status() == "inmigrate", f"standby is {s.status()}")
        sc.runs(g)
        sc.write_for(redis, 0.3)
        w.a.kill_everything()
        sc.write_for(redis, 0.3)
        check(redis.lost() == 0, "values lost")


def test_guest_restarts():
    """Switched off and on again it is protected again; what an operator ended stays ended."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        kw = {"bios": True, "serial": False, "nics": 0, "mem": 64}
        g, s = w.a.guest("vm", **kw), w.b.guest("vm", incoming=True, **kw)
        call(w.b, "Standby", "sa{sv}", "vm", "2", "qmp", "s", s.qmp_path, "insecure", "b", "true")
        call(w.a, "Protect", "sa{sv}", "vm", "4", "qmp", "s", g.qmp_path, "peer", "s", f"{w.b.addr}:{mctest.PORT}",
             "gate", "s", "none", "insecure", "b", "true")
        w.a.wait_state("PROTECTED")
        term = prop(w.a, "Term")
        g.qmp.cmd("quit")
        w.a.wait_state("ENDED", timeout=5)
        w.b.wait_state("ENDED", timeout=5)
        g.kill()
        g = w.a.guest("vm", **kw)
        w.b.wait_state("WAITING", timeout=5)
        w.a.wait_state("PROTECTED", timeout=15)
        check(prop(w.a, "Term") > term, f"term {prop(w.a, 'Term')} after {term}")
        check(any(word in w.a.mcctl("events", "vm").stdout for word in ("protection begins, by itself",)), "the history")
        w.b.wait_state("PROTECTED", timeout=5)
        call(w.a, "Unprotect", "s", "vm")
        w.b.wait_state("ENDED", timeout=5)
        time.sleep(3)
        check(prop(w.a, "State") == "ENDED" and prop(w.b, "State") == "ENDED", "an operator was overruled")
