# SPDX-License-Identifier: GPL-2.0-or-later
"""Which gate a guest gets, and what is said where the one that is asked for can't be had."""

import os
import re
import subprocess

import mctest
from mctest import check
from test_refuse import BIOS, refused


def network_state(host):
    """All but the timers of a bridge."""
    text = "".join(host.run(*cmd.split()) for cmd in ("ip -d link", "tc qdisc", "tc filter show dev tap0 ingress"))
    return re.sub(r"_timer *[\d.]*", "", text)


def kernel_has_plug(host):
    """Tried on an interface of its own."""
    host.run("ip", "link", "add", "probe", "type", "ifb")
    ok = subprocess.run([*host.enter(), "tc", "qdisc", "add", "dev", "probe", "root", "plug", "limit", "1000"],
                        stderr=subprocess.DEVNULL, check=False).returncode == 0
    host.run("ip", "link", "del", "probe")
    return ok


def tap_guest(host, **kw):
    return host.guest("vm", nic_backend="tap,ifname=tap0,script=no,downscript=no", **{**BIOS, **kw})


def protect_args(world, guest, *extra):
    return ["protect", "vm", "--qmp", guest.qmp_path, "--peer", f"{world.b.addr}:{mctest.PORT}", "--insecure", *extra]


def test_tap_without_plug():
    """On a kernel without sch_plug a tap is refused, whether it was named or found, and nothing is left half done."""
    with mctest.World() as w:
        w.a.start()
        g = tap_guest(w.a)
        if kernel_has_plug(w.a):
            out = w.a.mcctl(*protect_args(w, g), "--dry-run").stdout
            check("can be protected" in out, f"a kernel with sch_plug refuses: {out}")
            return
        mctest.wait_for("the tap's carrier", lambda: "LOWER_UP" in w.a.run("ip", "link", "show", "tap0"))
        before = network_state(w.a)
        for gate in ([], ["--nic", "tap0"], ["--gate", "auto"], ["--gate", "plug"]):
            refused(w.a, protect_args(w, g, *gate), "sch_plug", "--relay", "--gate none")
        check(network_state(w.a) == before, f"the network changed from {before} to {network_state(w.a)}")
        refused(w.a, protect_args(w, g, "--gate", "relay"), "n0", "tap0", "--nic tap0")
        refused(w.a, protect_args(w, g, "--nic", "tap9"), "tap9", "no network back end of that name")
        refused(w.a, protect_args(w, g, "--nic", "tap0", "--gate", "none"), "gate none excludes")
        check("can be protected" in w.a.mcctl(*protect_args(w, g, "--gate", "none"), "--dry-run").stdout, "gate none")
        check(g.status() == "running", f"guest is {g.status()}")


def test_tap_by_descriptor():
    """A tap that QEMU was given as a descriptor is found by the descriptor, in whatever namespace it is."""
    with mctest.World() as w:
        w.a.start()
        # The tap is opened in the host's network namespace, QEMU then runs in the client's.
        prog = ("import fcntl,os,struct,sys\nfd=os.open('/dev/net/tun',os.O_RDWR)\n"
                "fcntl.ioctl(fd,0x400454ca,struct.pack('16sH22x',b'tap0',0x5002))\n"
                "os.dup2(fd,9,True)\nos.execvp(sys.argv[1],sys.argv[1:])")
        g = tap_guest(w.a)
        args = [a.replace("ifname=tap0,script=no,downscript=no", "fd=9") for a in g.args]
        g.kill()
        for f in (g.qmp_path, g.qmp2_path):
            os.unlink(f)
        p = w.a.spawn("python3", "-c", prog, "nsenter", f"--net=/run/netns/{w.client}", "--", *args,
                      log=f"{g.dir}/qemu2.log")
        mctest.wait_for("QMP", lambda: w.a.mcctl("standby-args", "vm", "--qmp", g.qmp_path, ok=False).returncode == 0 or
                        check(p.poll() is None, open(f"{g.dir}/qemu2.log", encoding="utf-8").read()), every=0.2)
        # The sentence of the refusal, or of the acceptance, tells that tap0 was found.
        if kernel_has_plug(w.a):
            check("can be protected" in w.a.mcctl(*protect_args(w, g), "--dry-run").stdout, "dry run")
        else:
            refused(w.a, protect_args(w, g), "sch_plug")
            refused(w.a, protect_args(w, g, "--gate", "relay"), "n0", "--nic tap0")
        p.kill()
        p.wait()
