# SPDX-License-Identifier: GPL-2.0-or-later
"""What every test needs, whatever it tests."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
BUILD = os.environ.get("MC_BUILD", os.path.join(TOP, "build"))

LIBC = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """A test's assertion that did not hold."""


def check(ok, text):
    if not ok:
        raise Failure(text)


def run(*args, **kw):
    """Runs a command that must succeed; returns its output."""
    r = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       timeout=kw.pop("timeout", 60), check=False, **kw)
    if r.returncode:
        raise Failure(f"{' '.join(args)}: exit {r.returncode}: {r.stdout.strip()}")
    return r.stdout


def wait_for(what, fn, timeout=10.0, every=0.01):
    """Polls fn until it returns something true; the time limit is a failure."""
    end = time.monotonic() + timeout
    while True:
        r = fn()
        if r:
            return r
        if time.monotonic() > end:
            raise Failure(f"not within {timeout} s: {what}")
        time.sleep(every)


def alive(pid):
    """True when the process runs (a zombie doesn't)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def end_on_sigterm():
    """SIGTERM, like Ctrl-C, ends in good order: nothing is left behind."""
    def end(_sig, _frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(143)
    signal.signal(signal.SIGTERM, end)


def kvm_usable():
    return os.path.isdir("/sys/module/kvm_intel") or os.path.isdir("/sys/module/kvm_amd")


def child_setup():
    """In a child before it runs its program: nothing survives the test."""
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class StallWatch(threading.Thread):
    """Measures how long this machine gave a thread that only sleeps no processor.

    A machine that stands still looks to every timer in the system under test like a dead
    peer; a test that failed meanwhile has said nothing.
    """

    TICK = 0.02

    def __init__(self):
        super().__init__(daemon=True)
        self.longest = 0.0
        self.start()

    def run(self):
        while True:
            t = time.monotonic()
            time.sleep(self.TICK)
            self.longest = max(self.longest, time.monotonic() - t - self.TICK)

    def reset(self):
        """Begins anew; returns the longest stall since the last call, seconds."""
        longest, self.longest = self.longest, 0.0
        return longest
