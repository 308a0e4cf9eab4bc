# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole product on Debian's kernel."""

from kernelhosts import Hosts
from mctest import check, wait_for

IN_PAIRS = True  # nothing here depends on how fast the machine is


def loose_guest_is_refused(w):
    """A guest whose RAM isn't locked."""
    w.guest("a", "loose", locked=False, nic=False)
    loose = ["protect", "loose", "--qmp", "/run/a/loose.qmp", "--peer", "127.0.0.1:7912", "--gate", "none",
             "--dry-run"]
    wait_for("refusal of a guest that isn't locked", lambda: w.refused("a", loose, "mem-lock=on"), 60)
    w.qemu["a", "loose"].kill()


def gate_holds(w, host):
    """While no epoch is taken nothing comes out, and what the limit has no room for is counted."""
    w.mcctl(host, "hold", "vm")
    w.mcctl(host, "set", "vm", "gate-limit=65536")

    def nothing_comes_out():
        before = w.seen(host)
        w.memory_is_good(host, 50)  # generations, each with a frame of 1500 bytes
        return w.seen(host) == before
    wait_for("the gate to hold while no epoch is taken", nothing_comes_out, 30)
    wait_for("frames that the limit has no room for", lambda: w.metric(host, "netgate_gate_drops_total") > 0, 30)
    w.mcctl(host, "set", "vm", "gate-limit=125000000")
    w.mcctl(host, "resume", "vm")
    w.frames_go_on(host)


def test_pipeline():
    """Soft-dirty bits and plug gate: capture killed, host killed, protected the other way; no frame is ever taken back."""
    with Hosts(gated=True) as w:
        w.guest("a")
        w.ready()
        w.frames_go_on("a", 3)
        loose_guest_is_refused(w)
        w.protect("a", "b")
        s = w.status("a")
        check((s["Tracker"], s["Gate"]) == ("soft-dirty", "plug"), f"tracked by {s['Tracker']}, gate {s['Gate']}")
        w.frames_go_on("a")
        w.vm.sh("kill -9 $(pidof mc-capture)")
        w.epochs_go_on("a", 5)
        gate_holds(w, "a")
        before = w.memory_is_good("a")
        check(w.metric("a", "netgate_leaks_total") == 0, "the gate of a counts leaks")

        w.die("a")
        w.wait_status("b", State="ACTIVE")
        w.frames_go_on("b")
        a, b = w.seen("a"), w.seen("b")
        check(a[3] == 0 and b[3] == 0, f"generations went back: {a}, {b}")
        check(b[1] > a[2], f"generation {a[2]} came out of a, but b went on from an epoch before {b[1]}")
        wait_for("generations that the primary had not come to", lambda: w.report("b")[0] > before, 60)
        w.memory_is_good("b")

        w.start("a")
        w.ready()
        w.protect("b", "a")
        w.frames_go_on("b")
        w.mcctl("b", "unprotect", "vm")
        w.mcctl("a", "unprotect", "vm")
        for h in "ba":
            w.network_is_as_before(h)
        w.frames_go_on("b")
        w.memory_is_good("b")
