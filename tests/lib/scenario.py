# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps that several tests take."""

import time

import mctest
from mctest import LAN, PORT, check

INTERVAL_MS = 25
IPS = f"mc.ip={LAN}.50/24,10.79.0.50/24"


def boot(host, nics=1, work="mc.redis=1", mem=256, **kw):
    """Boots the Linux test guest on a host."""
    ips = IPS if nics == 2 else IPS.split(",", maxsplit=1)[0]
    g = host.guest("vm", mem=mem, nics=nics, append=f"{ips} {work}", **kw)
    word = "Ready to accept" if "mc.redis=1" in work else "guest: up"
    mctest.wait_for("the guest's boot", lambda: word in g.console(), 30)
    return g


def accept():
    """The test guests have a serial console, whose output isn't held."""
    return ["--accept", "isa-serial"]


def standby(host, like, *extra, **kw):
    """Starts a standby QEMU made like the guest `like` and hands it to the supervisor."""
    work = like.args[like.args.index("-append") + 1] if "-append" in like.args else ""
    g = host.guest("vm", mem=like.mem, nics=like.nics, incoming=True,
                   append=work.split("mitigations=off ", 1)[-1].replace("console=ttyS0 ", ""), **kw)
    host.mcctl("standby", "vm", "--qmp", g.qmp_path, *g.relay_args(), "--insecure", *extra)
    return g


def protect_args(src, dst, *extra):
    """The arguments of `mcctl protect`."""
    g = src.guests["vm"]
    return ["protect", "vm", "--qmp", g.qmp_path, "--peer", f"{dst.addr}:{PORT}", "--interval", INTERVAL_MS,
            "--insecure", *accept(), *g.relay_args(), *extra]


def protect(src, dst, *extra, standby_args=(), standby_kw=None):
    """Standby on dst, protection from src to it, until PROTECTED."""
    s = standby(dst, src.guests["vm"], *standby_args, **(standby_kw or {}))
    src.mcctl(*protect_args(src, dst, *extra))
    src.wait_state("PROTECTED", timeout=60)
    return s


def epochs_go_on(host, n=5, timeout=10, name="vm"):
    """Waits until n more epochs are committed."""
    start = host.status(name)["CommittedEpoch"]
    mctest.wait_for(f"{n} more epochs on {host.name} after {start}",
                    lambda: host.status(name)["CommittedEpoch"] >= start + n, timeout, every=0.05)


def runs(guest):
    """A guest isn't paused, for longer than an epoch's pause."""
    mctest.wait_for("the guest to run", lambda: guest.status() == "running", 1, every=0.002)


def no_bad_words(memcheck):
    """The guest's own memory check found nothing; returns its generation."""
    generation, checked, bad = memcheck.read()
    check(bad == 0, f"{bad} bad words in generation {generation} of {checked} checked")
    return generation


def write_for(redis, seconds):
    """Client's write load; returns the longest wait in seconds."""
    end = time.monotonic() + seconds
    longest = 0
    while time.monotonic() < end:
        t = time.monotonic()
        redis.write()
        longest = max(longest, time.monotonic() - t)
    return longest
