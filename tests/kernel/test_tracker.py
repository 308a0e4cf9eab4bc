# SPDX-License-Identifier: GPL-2.0-or-later
"""The soft-dirty tracker on a kernel that has nothing better."""

from kernelvm import VM
from mctest import BUILD, check

IN_PAIRS = True  # nothing here depends on how fast the machine is


def test_softdirty_tracker():
    """The tracker's own tests, with the machine's huge page policy in their hands."""
    with VM(files=[(f"{BUILD}/capture/test-tracker", "/bin/test-tracker")]) as vm:
        r = vm.run("env", "MC_TEST_MACHINE=1", "CMOCKA_MESSAGE_OUTPUT=TAP", "test-tracker", ok=False)
        check(r.status == 0, f"exit {r.status}: {r.out}{r.err}")
        for name in ("exact", "killed", "dropped_entry", "unlocked_is_refused", "huge_pages"):
            check(f"- test_{name}_softdirty" in r.out, f"{name} was not run: {r.out}")
        check("_uffd" not in r.out, f"this kernel should have no PAGEMAP_SCAN: {r.out}")
