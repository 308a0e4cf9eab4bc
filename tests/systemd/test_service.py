# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages under a real systemd, in a machine with Debian's kernel."""

import glob
import os
import re
import shutil
import time

import mctest
from kernelvm import VM
from mctest import check

ROOT = f"{mctest.TOP}/build/systemd"
MC = "mcctl"
# A second service stands for the other host: its own bus, folders and port.
OTHER = "unix:path=/run/other/bus"
# A machine within an emulated one stands still at times.
PATIENT = "--failure-timeout 5000 --restart-grace 3000"

BUS_CONF = f"""<busconfig><type>custom</type><listen>{OTHER}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
<allow own="*"/></policy></busconfig>"""


def image():
    """Folder of the root file system with the packages in it."""
    mctest.run(f"{mctest.TOP}/tests/systemd/build-root", ROOT, timeout=600)
    debs = [d for d in glob.glob(f"{mctest.TOP}/build/deb/*.deb") if "dbgsym" not in d and "-libvirt_" not in d]
    check(len(debs) == 2, f"make deb first: {debs}")
    shutil.rmtree(f"{ROOT}/root/debs", ignore_errors=True)
    os.makedirs(f"{ROOT}/root/debs")
    for d in debs:
        shutil.copy(d, f"{ROOT}/root/debs/")
    return f"{ROOT}/root"


def qemu(vm, name, incoming=False):
    """Starts a QEMU with nothing but firmware and a NIC, as somebody else's unit would."""
    vm.sh(f"ip tuntap add {name} mode tap && ip link set {name} up; "
          f"systemd-run -q --unit={name} --collect qemu-system-x86_64 -accel tcg,tb-size=16 -overcommit mem-lock=on "
          f"-object memory-backend-memfd,id=ram,size=32M,share=on -machine q35,memory-backend=ram,suppress-vmdesc=on "
          f"-m 32M -nodefaults -vga none -display none -qmp unix:/run/{name}.qmp,server=on,wait=off "
          f"-netdev dgram,id=n0,local.type=unix,local.path=/run/{name}.q0,remote.type=unix,remote.path=/run/{name}.r0 "
          f"-device virtio-net-pci,netdev=n0,romfile= "
          + ("-incoming defer -global migration.send-configuration=off" if incoming else ""))
    # There is a moment between the socket's name and its first listener.
    wait(vm, f"ss -xlH src /run/{name}.qmp | grep -q .")


def wait(vm, script, timeout=60):
    """Until a shell command succeeds."""
    try:
        vm.sh(f"i=0; until {script}; do i=$((i+1)); [ $i -lt {timeout * 5} ] || exit 1; sleep 0.2; done",
              timeout=timeout + 30)
    except mctest.Failure as e:
        log = vm.sh("journalctl -b --no-pager | uniq -f 4 | tail -100; free -m; systemctl --no-pager --failed", ok=False).out
        raise mctest.Failure(f"not within {timeout} s: {script}: {e}\n{log}") from e


def out(vm, script, **kw):
    """Output of a shell command."""
    return vm.sh(script, **kw).out


def test_packages():
    """Install, D-Bus activation, protected guests, restart, hardening, polkit, exporter, failover, purge."""
    with VM(root=image(), modules=["tun"], mem=1024, smp=2, name="systemd") as vm:
        vm.run("systemctl", "is-system-running", "--wait", ok=False, timeout=180)
        before = out(vm, "find /etc /usr /var/lib /run -xdev -newer /debs 2>/dev/null | grep -i microcheckpoint | cat")
        check(not before.strip(), before)
        print(out(vm, "dpkg -i /debs/*.deb 2>&1 | tail -5", timeout=240))
        check("microcheckpoint" in out(vm, "getent passwd microcheckpoint"), "no user")
        for step in (activation, protect, restart, hardening, polkit, exporter, failover, purge):
            begun = time.monotonic()
            step(vm)
            print(f"{step.__name__}: {time.monotonic() - begun:.1f} s")


test_packages.limit = 480


def activation(vm):
    """The first call starts the service."""
    vm.sh("systemctl stop mc-supervisor; ! systemctl is-active -q mc-supervisor")
    check("GUEST" in out(vm, f"{MC} status", timeout=120), "status")
    check(out(vm, "systemctl show -P Result,ActiveState,StatusErrno mc-supervisor; systemctl is-active mc-supervisor")
          .strip().endswith("active"), "D-Bus activation")
    check("READY" not in out(vm, "systemctl show -P SubState mc-supervisor"), "state")
    vm.sh(f"{MC} doctor || test $? = 1")


def protect(vm):
    """A guest of this service, its standby with another one in the same machine."""
    vm.sh(f"mkdir -p /run/other; cat > /run/other/bus.conf <<'END'\n{BUS_CONF}\nEND\n"
          "systemd-run -q --unit=other-bus dbus-daemon --config-file=/run/other/bus.conf --nofork")
    wait(vm, "test -S /run/other/bus")
    vm.sh(f"systemd-run -q --unit=other --property=KillMode=process /usr/sbin/mc-supervisor --bus={OTHER} "
          "--runtime-dir /run/other/run --state-dir /run/other/state --listen 127.0.0.1:7912 --conf-dir /nonexistent")
    wait(vm, f"{MC} --bus={OTHER} status")
    qemu(vm, "vm")
    qemu(vm, "standby", incoming=True)
    # A QEMU that has just begun to listen may be too slow for the first try.
    wait(vm, f"{MC} --bus={OTHER} standby vm --qmp /run/standby.qmp --relay n0=unix:/run/standby.r0,tap=standby {PATIENT}")
    vm.sh("printf 'role = primary\\nqmp = /run/vm.qmp\\npeer = 127.0.0.1:7912\\nrelay = n0=unix:/run/vm.r0,tap=vm\\ninterval = 200\\n"
          "failure-timeout = 5000\\nrestart-grace = 3000\\n' > /etc/microcheckpoint/guests.d/vm.conf")
    vm.sh(f"{MC} check-config && systemctl reload mc-supervisor", timeout=60)
    wait(vm, f"{MC} status vm | grep -q 'State *PROTECTED'", 40)


def epochs(vm):
    """{number: (state, seconds since it was begun, why it was aborted)} of the primary's newest epochs, from its journal."""
    text = out(vm, "for f in /dev/shm/microcheckpoint-*-vm; do mcctl arena --file $f | grep -q 'guest vm, primary' || continue; "
                   "mcctl arena --file $f; done")
    rows = re.findall(r"^ +(\d+) ([A-Z]+) .* ([\d.]+)(?:  (.*))?$", text.split("journal:")[1].split("rings:")[0], re.M)
    return {int(n): (state, float(ms) / 1000, why) for n, state, ms, why in rows}


def restart(vm):
    """systemctl restart keeps the protection, and not one epoch is missed; so it is with a crash."""
    pids = "pgrep -x 'mc-(capture|transport|stage|netgate)' | sort | tr '\\n' ' '"
    was, term = out(vm, pids), out(vm, f"{MC} status vm | grep '^Term'")
    for how in ("systemctl restart mc-supervisor", "systemctl kill -s KILL --kill-whom=main mc-supervisor"):
        first = max(epochs(vm))
        vm.sh(how, timeout=60)
        wait(vm, f"{MC} status vm | grep -q 'State *PROTECTED'", 30)
        check(out(vm, pids) == was, f"{how}: processes were {was}, are {out(vm, pids)}")
        check(out(vm, f"{MC} status vm | grep '^Term'") == term, f"{how}: it was begun again")
        vm.sh(f"{MC} checkpoint vm", timeout=60)
        seen = {n: e for n, e in epochs(vm).items() if n >= first}
        begun = [age for _, (_, age, _) in sorted(seen.items())]
        gap = max(a - b for a, b in zip(begun, begun[1:]))
        print(f"{how}: epochs {first} to {max(seen)}, at most {gap * 1000:.0f} ms from one to the next")
        check(sorted(seen) == list(range(first, max(seen) + 1)) and len(seen) > 3, f"{how}: {seen}")
        # A gate that had no CPU for its 20 ms is this machine's doing, and the next epoch has its pages.
        check(all(state != "ABORTED" or why == "Timer expired" for state, _, why in seen.values()), f"{how}: {seen}")
        # Well within the lease (failure-timeout), however slow a machine within a machine is.
        check(gap < 2.5, f"{how}: no epoch for {gap} s: {seen}")
    log = out(vm, "journalctl -b -o json GUEST=vm --no-pager")
    check('"EVENT":"state"' in log and '"MESSAGE_ID"' in log and '"DECIDED_BY"' in log, f"fields: {log[-1500:]}")
    check("is protected" in out(vm, "journalctl -b -x GUEST=vm --no-pager"), "catalog")


def hardening(vm):
    """What systemd makes of the units; the processes are the unprivileged user's."""
    for unit, most in (("mc-supervisor.service", 5.5), ("mc-exporter.service", 2.0)):
        text = out(vm, f"systemd-analyze security --no-pager {unit} | tail -1", timeout=60)
        score = float(re.search(r"(\d+\.\d+)", text)[1])
        print(f"systemd-analyze security {unit}: {score}")
        check(score <= most, f"{unit}: {score}")
    users = out(vm, "ps -o user=,comm= -C mc-capture,mc-stage,mc-transport,mc-restore")
    check(len(users.splitlines()) >= 4 and all(u.startswith("microch") for u in users.splitlines()), users)


def polkit(vm):
    """Somebody else is asked for at polkit; a rule lets him, and no further than it says."""
    vm.sh("useradd -r oncall")
    as_him = f"setpriv --reuid=oncall --regid=oncall --clear-groups {MC}"
    for call, action in (("hold vm", "protect"), ("failover vm", "failover"), ("resolve vm demote", "resolve"), ("status", "read")):
        r = vm.sh(f"{as_him} {call}", ok=False)
        check(r.status == 1 and f"org.microcheckpoint1.{action}" in r.err, f"a stranger's {call}: {r.status} {r.out}{r.err}")
    vm.sh("mkdir -p /etc/polkit-1/rules.d; cat > /etc/polkit-1/rules.d/50-mc.rules <<'END'\n"
          "polkit.addRule(function(action, subject) { if (action.id == 'org.microcheckpoint1.protect' && "
          "subject.user == 'oncall') return polkit.Result.YES; });\nEND\n"
          "chmod 755 /etc/polkit-1/rules.d; systemctl restart polkit")
    wait(vm, f"{as_him} hold vm", 30)
    vm.sh(f"{as_him} resume vm && ! {as_him} failover vm")
    check('"uid ' in out(vm, f"{MC} events vm --json"), "the history doesn't name him")


def exporter(vm):
    """The socket's first connection starts it; it answers as the unprivileged user."""
    text = out(vm, "bash -c \"exec 3<>/dev/tcp/127.0.0.1/9817; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3\"",
               timeout=60)
    check('microcheckpoint_guest_state{guest="vm",role="primary",state="PROTECTED"} 1' in text, text[:400])


def failover(vm):
    """A standby of this service takes over, under all that its unit forbids."""
    qemu(vm, "vm2")
    qemu(vm, "standby2", incoming=True)
    wait(vm, f"{MC} standby vm2 --qmp /run/standby2.qmp --relay n0=unix:/run/standby2.r0,tap=standby2 {PATIENT}")
    wait(vm, f"{MC} --bus={OTHER} protect vm2 --qmp /run/vm2.qmp --peer 127.0.0.1:7911 --relay n0=unix:/run/vm2.r0,tap=vm2 "
          f"--interval 200 {PATIENT}")
    wait(vm, f"{MC} status vm2 | grep -q 'State *PROTECTED'", 40)
    vm.sh("systemctl kill -s KILL vm2")
    wait(vm, f"{MC} status vm2 | grep -q 'State *ACTIVE'", 20)
    vm.sh(f"{MC} unprotect vm2")


def purge(vm):
    """Not while a guest is protected; afterwards nothing is left."""
    r = vm.sh("dpkg --purge microcheckpoint-exporter && dpkg --purge microcheckpoint", ok=False, timeout=120)
    check(r.status != 0 and MC in out(vm, "command -v mcctl"), "purged under a protected guest")
    # Who calls right after a restart finds the guest, and what he decided stays so.
    vm.sh(f"systemctl restart mc-supervisor && {MC} unprotect vm && {MC} unprotect vm && ! {MC} status vm 2>/dev/null", timeout=60)
    # The other host ends by itself.
    vm.sh(f"for g in vm vm2; do {MC} --bus={OTHER} unprotect $g; done", ok=False, timeout=60)
    vm.sh("systemctl stop other; pkill -x 'mc-.*'; rm -rf /run/other", ok=False)
    print(out(vm, "dpkg --purge microcheckpoint 2>&1 | tail -3", timeout=120))
    left = out(vm, "find / -xdev -iname '*microcheckpoint*' -not -path '/debs/*'; find /run /dev/shm /tmp -iname '*microcheckpoint*'; "
                   "pgrep -l '^mc-'; getent passwd microcheckpoint; getent group microcheckpoint; "
                   "find /etc /usr /var /run -xdev -name 'mc-*'; systemctl list-units --all --plain --no-legend 'mc-*'", ok=False)
    check(not left.strip(), f"left behind: {left}")
