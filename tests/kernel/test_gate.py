# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own gate as an operator meets it: what is refused, what processes may, what a dead one leaves."""

from kernelhosts import PORT, Hosts
from mctest import check, wait_for

IN_PAIRS = True  # nothing here depends on how fast the machine is

NET_ADMIN, SYS_ADMIN = 1 << 12, 1 << 21
# The upgraded program: another ABI, and all that needs none.
OTHER_ABI = """#!/bin/sh
case $1 in --clear) exec /bin/netgate.old "$@" ;; esac
exit 3
"""


def refusals(w):
    """Each with the remedy, and the network as it was."""
    protect = ["protect", "vm", "--qmp", "/run/a/vm.qmp", "--peer", f"127.0.0.1:{PORT['b']}", "--dry-run"]
    mcg = f"mcg{w.vm.get('/sys/class/net/tapa/ifindex').decode().strip()}"
    plug = w.vm.sh("find /lib/modules -name 'sch_plug.ko'").out.strip()
    ifb = w.vm.sh("find /lib/modules -name 'ifb.ko'").out.strip()
    for words, before, after in (
            (["redirection of others", "clsact"], "tc qdisc add dev tapa clsact", "tc qdisc del dev tapa clsact"),
            ([mcg, "rename it"], f"ip link add {mcg} type veth peer name x", f"ip link del {mcg}"),
            (["sch_plug", "modprobe"], f"rmmod sch_plug; mv {plug} /plug", f"mv /plug {plug}"),
            (["no ifb", "modprobe"], f"rmmod ifb; mv {ifb} /ifb", f"mv /ifb {ifb}")):
        w.vm.sh(before)
        state = w.network("a")
        wait_for(f"refusal: {words}", lambda s=words: w.refused("a", protect, *s), 60)
        check(w.network("a") == state, f"refused, but changed: {state}\n--- now\n{w.network('a')}")
        w.vm.sh(after)


def capabilities(w, host):
    """(uid, effective capabilities) of a host's netgate."""
    text = w.vm.get(f"/proc/{w.pid(host, 'mc-netgate')}/status").decode()
    words = dict(line.split(":", 1) for line in text.splitlines())
    return int(words["Uid"].split()[1]), int(words["CapEff"], 16)


def test_gate_operation():
    """Bad input; another user's netgate keeps what it needs; one that is given up leaves no guest without its network."""
    with Hosts(gated=True) as w:
        w.guest("a")
        w.ready()
        w.frames_go_on("a", 3)
        refusals(w)

        w.protect("a", "b")
        check(capabilities(w, "a") == (65534, NET_ADMIN), f"netgate of a: {capabilities(w, 'a')}")
        check(capabilities(w, "b") == (65534, NET_ADMIN | SYS_ADMIN), f"netgate of b: {capabilities(w, 'b')}")
        w.frames_go_on("a")
        w.vm.sh("mv /bin/mc-netgate /bin/netgate.old")
        w.vm.put("/bin/mc-netgate", OTHER_ABI, 0o755)
        w.vm.run("kill", "-9", w.pid("a", "mc-netgate"))
        w.wait_status("a", State="DEGRADED")
        w.network_is_as_before("a")
        w.frames_go_on("a")
        events = w.mcctl("a", "events", "vm").out
        check("another ABI" in events and "gate-cleared" in events, events)

        w.vm.sh("mv /bin/netgate.old /bin/mc-netgate")
        w.mcctl("a", "restart", "vm", "netgate")
        wait_for("a gate of the restarted netgate", lambda: " mcg" in w.network("a"), 30)
        w.frames_go_on("a")
        # It won't end when it is asked to, and leaves its gate.
        w.vm.run("kill", "-STOP", w.pid("a", "mc-netgate"))
        w.mcctl("a", "unprotect", "vm")
        w.network_is_as_before("a")
        w.frames_go_on("a")
