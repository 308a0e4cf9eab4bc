# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole product on Debian's kernel."""

from kernelhosts import Hosts
from mctest import check, wait_for


def test_softdirty_pipeline():
    """Protection by soft-dirty bits: a guest that isn't locked refused, capture killed, primary killed, memory whole."""
    with Hosts() as w:
        w.guest("a")
        w.ready()
        w.guest("a", "loose", locked=False)
        loose = ["protect", "loose", "--qmp", "/run/a/loose.qmp", "--peer", "127.0.0.1:7912", "--gate", "none",
                 "--dry-run"]
        wait_for("refusal of a guest that isn't locked", lambda: w.refused("a", loose, "mem-lock=on"), 60)
        w.qemu["a", "loose"].kill()

        w.protect("a", "b")
        check(w.status("a")["Tracker"] == "soft-dirty", f"tracked by {w.status('a')['Tracker']}")
        w.epochs_go_on("a", 5)
        w.vm.sh("kill -9 $(pidof mc-capture)")
        w.epochs_go_on("a", 5)
        before = w.memory_is_good("a")
        w.qemu["a", "vm"].kill()
        w.wait_status("b", State="ACTIVE")
        wait_for("generations that the primary had not come to", lambda: w.report("b")[0] > before, 60)
        w.memory_is_good("b")
