# SPDX-License-Identifier: GPL-2.0-or-later
"""One connection to a bus, many calls at once: prints how often each answer came, by the error's name or `ok`.

usage: flood.py SOCKET NUMBER PATH INTERFACE MEMBER
"""

import collections
import os
import socket
import struct
import sys

DESTINATION = "org.microcheckpoint1"


def field(code, sig, value):
    """A header field, aligned to 8 as the struct that it is."""
    v = value.encode()
    return struct.pack("<BB", code, 1) + sig.encode() + b"\0" + struct.pack("<I", len(v)) + v + b"\0"


def call(serial, destination, path, interface, member):
    """A method call without arguments."""
    fields = b""
    for f in (field(1, "o", path), field(2, "s", interface), field(3, "s", member), field(6, "s", destination)):
        fields += b"\0" * (-len(fields) % 8) + f
    head = b"l\1\0\1" + struct.pack("<III", 0, serial, len(fields)) + fields
    return head + b"\0" * (-len(head) % 8)


def messages(sock):
    """(type, fields by code) of what comes, for ever."""
    buf = b""
    while True:
        while len(buf) < 16:
            buf += sock.recv(65536)
        body, _, length = struct.unpack_from("<III", buf, 4)
        total = 16 + length + (-length % 8) + body
        while len(buf) < total:
            buf += sock.recv(65536)
        at, fields = 16, {}
        while at < 16 + length:
            at += -at % 8
            code, sig = buf[at], buf[at + 2:at + 3]
            at += 4
            if sig == b"g":
                n = buf[at]
                at += 1 + n + 1
            elif sig == b"u":
                at += -at % 4
                fields[code] = struct.unpack_from("<I", buf, at)[0]
                at += 4
            else:
                at += -at % 4
                n = struct.unpack_from("<I", buf, at)[0]
                fields[code] = buf[at + 4:at + 4 + n].decode()
                at += 4 + n + 1
        yield buf[1], fields
        buf = buf[total:]


def main():
    path, number, obj, interface, member = sys.argv[1], int(sys.argv[2]), *sys.argv[3:6]
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(path)
    sock.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    assert sock.recv(4096).startswith(b"OK"), "authentication"
    sock.sendall(b"BEGIN\r\n" + call(1, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello"))
    sock.sendall(b"".join(call(2 + i, DESTINATION, obj, interface, member) for i in range(number)))
    seen = collections.Counter()
    for kind, fields in messages(sock):
        if kind in (2, 3) and fields.get(5, 0) > 1:
            seen["ok" if kind == 2 else fields[4]] += 1
        if sum(seen.values()) == number:
            break
    for name, n in sorted(seen.items()):
        print(n, name)


if __name__ == "__main__":
    main()
