# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests' library: two hosts on one machine (world), their guests (qemu), clients, and basics."""

from . import basics
from .basics import BUILD, TOP, Failure, StallWatch, alive, check, child_setup, end_on_sigterm, kvm_usable, run, wait_for
from .clients import CounterWatch, MemCheck, Redis
from .qemu import GUEST, LAN, PREFIX, Guest, Qmp
from .world import PORT, REPL, Host, World

__all__ = ["BUILD", "CounterWatch", "Failure", "GUEST", "Guest", "Host", "LAN", "MemCheck", "PORT", "PREFIX", "Qmp", "REPL",
           "Redis", "StallWatch", "TOP", "World", "alive", "basics", "check", "child_setup", "end_on_sigterm", "kvm_usable",
           "run", "wait_for"]
