# SPDX-License-Identifier: GPL-2.0-or-later
"""What talks to a guest from the client's side, and counts what it is told."""

import socket
import struct

from .basics import Failure, check, wait_for
from .qemu import LAN


class Redis:
    """One TCP connection to the guest's redis; values numbered, what was acknowledged recorded."""

    def __init__(self, world, addr=f"{LAN}.50", timeout=30):
        self.world = world
        self.acked = 0
        self.sock = None

        def connect():
            try:
                s = world.in_client(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                s.settimeout(2)
                s.connect((addr, 6379))
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return s
            except OSError:
                return None
        self.sock = wait_for("redis in the guest", connect, timeout)
        self.sock.settimeout(20)
        self.buf = b""

    def _line(self):
        while b"\r\n" not in self.buf:
            d = self.sock.recv(65536)
            if not d:
                raise Failure("redis closed the connection")
            self.buf += d
        line, self.buf = self.buf.split(b"\r\n", 1)
        return line

    def cmd(self, *args):
        m = b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in
                                              (x if isinstance(x, bytes) else str(x).encode() for x in args))
        self.sock.sendall(m)
        r = self._line()
        if r[:1] == b"$":
            if r == b"$-1":
                return None
            n = int(r[1:])
            while len(self.buf) < n + 2:
                self.buf += self.sock.recv(65536)
            v, self.buf = self.buf[:n], self.buf[n + 2:]
            return v
        return r

    def write(self):
        """Writes the next value; it counts once it is acknowledged."""
        n = self.acked + 1
        check(self.cmd("SET", f"n:{n}", f"value-{n}") == b"+OK", f"SET n:{n}")
        self.acked = n

    def lost(self):
        """How many acknowledged values the guest doesn't hold."""
        return sum(self.cmd("GET", f"n:{n}") != b"value-%d" % n for n in range(1, self.acked + 1))

    def close(self):
        self.sock.close()


class MemCheck:
    """Reads the result of the memory checker in the guest."""

    def __init__(self, world, addr=f"{LAN}.50"):
        self.sock = world.in_client(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.sock.settimeout(0.25)
        self.addr = (addr, 7001)

    def read(self, timeout=20):
        """(generation, words checked, bad words)"""
        def once():
            try:
                self.sock.sendto(b"?", self.addr)
                return tuple(map(int, self.sock.recv(256).split()))
            except (TimeoutError, OSError):
                return None
        return wait_for("memory checker's answer", once, timeout)

    def close(self):
        self.sock.close()


class CounterWatch:
    """Sees the guest's counter on the client's bridge, by kind of packet and NIC."""

    def __init__(self, world):
        self.sock = world.in_client(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self.sock.bind(("br0", 0))
        self.sock.setblocking(False)
        self.highest = {}
        self.back = []
        self.received = 0

    def poll(self):
        """Takes in everything that came; a count below the highest seen goes to self.back."""
        while True:
            try:
                frame = self.sock.recv(65536)
            except BlockingIOError:
                return
            i = frame.find(b"MCNT")
            if i < 0 or len(frame) < i + 16:
                continue
            nic, count = struct.unpack_from("<IQ", frame, i + 4)
            kind = {0x0800: "udp4", 0x86dd: "udp6", 0x0806: "arp"}.get(struct.unpack_from(">H", frame, 12)[0], "?")
            key = (kind, nic)
            self.received += 1
            if count < self.highest.get(key, 0):
                self.back.append((key, self.highest[key], count))
            self.highest[key] = max(self.highest.get(key, 0), count)

    def close(self):
        self.sock.close()
