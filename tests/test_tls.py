# SPDX-License-Identifier: GPL-2.0-or-later
"""Links with TLS: who may replicate, who may not, and what both ends say about it."""

import os
import signal
import socket
import time

import certs
import mctest
import scenario as sc
from mctest import PORT, check

IN_PAIRS = True  # nothing here depends on how fast the machine is

BIOS = {"mem": 64, "serial": False, "bios": True, "nics": 0}
KEY = "0123456789abcdef0123456789abcdef"
GATE = ["--gate", "none"]


class Hosts:
    """Both hosts with a bare guest and its standby, and a CA that signs for them."""

    def __init__(self, w):
        self.w, self.a, self.b = w, w.a, w.b
        self.ca = certs.Authority(f"{w.dir}/ca")
        self.tls_a = self.ca.host(f"{w.a.dir}/tls", "host-a", w.a.addr)
        self.tls_b = self.ca.host(f"{w.b.dir}/tls", "host-b", w.b.addr)
        w.a.start()
        w.b.start()
        self.guest = w.a.guest("vm", **BIOS)
        self.standby_qemu = None

    def standby(self, *args, ok=True):
        """A fresh standby with these words about security."""
        if self.standby_qemu:
            self.b.mcctl("unprotect", "vm", ok=False)
            self.standby_qemu.kill()
        self.standby_qemu = self.b.guest("vm", incoming=True, **BIOS)
        return self.b.mcctl("standby", "vm", "--qmp", self.standby_qemu.qmp_path, *GATE, *args, ok=ok)

    def protect(self, *args, ok=True):
        return self.a.mcctl("protect", "vm", "--qmp", self.guest.qmp_path, "--peer", f"{self.b.addr}:{PORT}",
                            "--interval", 25, *GATE, *args, ok=ok)

    def protected(self, *args):
        """Protects until PROTECTED."""
        self.protect(*args)
        self.a.wait_state("PROTECTED", timeout=30)

    def unprotect(self):
        self.a.mcctl("unprotect", "vm")

    def refused(self, backup, primary, at_primary=(), at_backup=()):
        """These two don't come together: the primary STOPPED, both tell why, the guest runs."""
        if backup is not None:
            self.standby(*backup)
        before = len(self.b.supervisor_log())
        self.protect(*primary)
        self.a.wait_state("STOPPED", timeout=15)
        text = self.a.status()["Message"]
        for word in at_primary:
            check(word in text, f"'{word}' isn't told on the primary: {text}")
        log = self.b.supervisor_log()[before:]
        for word in at_backup:
            check(word in log, f"'{word}' isn't told on the backup: {log}")
        check(self.b.state() == "WAITING", f"the standby is {self.b.state()}")
        check(self.guest.status() == "running", f"guest is {self.guest.status()}")
        self.unprotect()


def test_certificates():
    """Mutual certificates: protected, both ends say by whom; transports killed on either end; failover."""
    with mctest.World() as w:
        h = Hosts(w)
        # What the default of 60 ms leaves to a busy machine is for the benchmarks to say.
        h.standby("--tls-dir", h.tls_b, "--restart-grace", 1000)
        h.protected("--tls-dir", h.tls_a)
        for host, peer in ((w.a, "CN=host-b"), (w.b, "CN=host-a")):
            text = host.status()["Security"]
            check("TLS1.3" in text and peer in text, f"{host.name}: {text}")
        for host in (w.a, w.b):
            for pid, _ in host.worker_pids("transport"):
                os.kill(pid, signal.SIGKILL)
            sc.epochs_go_on(w.a, 5)
            check(w.a.state() == "PROTECTED" and w.b.state() == "PROTECTED", f"killed on {host.name}: "
                  f"{w.a.state()} {w.b.state()}")
        for host in (w.a, w.b):
            for pid, _ in host.worker_pids("transport"):
                check(keys_of(pid) == [], f"the transport on {host.name} keeps a file of keys open")
        h.guest.kill()
        w.b.wait_state("ACTIVE", timeout=10)
        check(h.standby_qemu.status() == "running", f"standby is {h.standby_qemu.status()}")


def test_restart_of_transport():
    """A transport that is restarted, or dies, is back with a new handshake before anybody thinks of a takeover."""
    with mctest.World() as w:
        h = Hosts(w)
        # The restart grace is the default: 60 ms.
        h.standby("--tls-dir", h.tls_b)
        h.protected("--tls-dir", h.tls_a)
        for host in (w.a, w.b):
            for asked in (True, False):
                old = host.worker_pids("transport")
                if asked:
                    host.mcctl("restart", "vm", "transport")
                else:
                    os.kill(old[0][0], signal.SIGKILL)
                sc.epochs_go_on(w.a, 3)
                check(host.worker_pids("transport") != old, f"the transport on {host.name} goes on")
                check(w.a.state() == "PROTECTED" and w.b.state() == "PROTECTED", f"{'restart' if asked else 'kill'} on "
                      f"{host.name}: {w.a.state()} {w.b.state()}")
                check("TLS1.3" in w.a.status()["Security"], w.a.status()["Security"])


def keys_of(pid):
    """Open files of a process that hold credentials."""
    links = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]
    return [text for text in links if text.endswith(".pem") or "creds" in text]


def test_certificates_refused():
    """Wrong CA, expired, revoked, wrong name, wrong purpose, not allowed: each told on both ends."""
    with mctest.World() as w:
        h = Hosts(w)
        good_b = ["--tls-dir", h.tls_b]
        other = certs.Authority(f"{w.dir}/other", "another CA").host(f"{w.dir}/tls-other", "host-a", w.a.addr)
        h.refused(good_b, ["--tls-dir", other], ["certificate", "issuer is unknown"])
        old = h.ca.host(f"{w.dir}/tls-old", "host-a", w.a.addr, ends=("client",),
                        lines='activation_date = "2020-01-01 00:00:00"\nexpiration_date = "2020-02-01 00:00:00"\n')
        h.refused(None, ["--tls-dir", old], ["refused this host's certificate"], ["expired"])
        named = h.ca.host(f"{w.dir}/tls-named", "host-a", "192.0.2.77", ends=("client",))
        h.refused(None, ["--tls-dir", named], ["refused this host's certificate"], [w.a.addr, "tls-peer-name"])
        h.refused(None, ["--tls-dir", h.tls_a, "--tls-peer-name", "elsewhere.example"],
                  ["elsewhere.example", "tls-peer-name"])
        swapped = h.ca.host(f"{w.dir}/tls-swapped", "host-a", w.a.addr, ends=())
        for part in ("cert", "key"):
            os.symlink(f"{h.tls_a}/server-{part}.pem", f"{swapped}/client-{part}.pem")
        h.refused(None, ["--tls-dir", swapped], ["refused this host's certificate"], ["purpose"])
        h.refused([*good_b, "--allow-peer", "CN=somebody", "--allow-peer", "else"], ["--tls-dir", h.tls_a],
                  ["allow-peer"], ["CN=host-a may not replicate guest vm"])
        h.ca.revoke(h.tls_b, f"{h.tls_a}/client-cert.pem")
        h.refused(good_b, ["--tls-dir", h.tls_a], ["refused this host's certificate"], ["revoked"])
        os.unlink(f"{h.tls_b}/ca-crl.pem")
        # Named by allow-peer, it may come from anywhere; and the same guest is protected after all that.
        h.standby(*good_b, "--allow-peer", "CN=host-a")
        h.protected("--tls-dir", named)
        check("CN=host-a" in w.b.status()["Security"], w.b.status()["Security"])


def test_encrypted_and_plain():
    """A plain peer at an encrypted port, an encrypted one at a plain port, certificates and a key."""
    with mctest.World() as w:
        h = Hosts(w)
        keys = certs.psk(f"{w.dir}/keys.psk", qemu=KEY)
        h.refused(["--tls-dir", h.tls_b], ["--insecure"], ["only encrypted links"], ["without encryption"])
        h.refused(None, ["--psk-file", keys], ["one end may have certificates"], ["one end may have certificates"])
        h.refused(["--insecure"], ["--tls-dir", h.tls_a], ["without TLS"], ["without TLS"])
        h.refused(["--psk-file", keys], ["--tls-dir", h.tls_a], ["handshake"], ["handshake"])
        # Neither: not loopback, not asked for by name.
        h.refused([], ["--insecure"], ["would not be encrypted"], ["would not be encrypted"])
        # A HELLO can't be slipped in behind the message that asks for TLS, nor garbage.
        h.standby("--tls-dir", h.tls_b)
        start = bytes.fromhex("4d43575001000c004000000000000000") + bytes(32) + b"vm".ljust(64, b"\0")
        for junk in (start, start + b"MCWP\x01\x00\x01\x00" + bytes(400), start[:60], start + os.urandom(3000)):
            w.a.run("python3", "-c", "import socket,sys\ns=socket.create_connection((sys.argv[1],int(sys.argv[2])),2)\n"
                    "s.sendall(bytes.fromhex(sys.argv[3]))\ns.settimeout(0.3)\n"
                    "try:\n while s.recv(100): pass\nexcept OSError: pass", w.b.addr, str(PORT), junk.hex())
        check(w.b.state() == "WAITING", f"the standby is {w.b.state()}")
        h.protected("--tls-dir", h.tls_a)


def test_preshared_key():
    """PSK: protected; an unknown identity, another key, an identity that isn't allowed; no file, bad files."""
    with mctest.World() as w:
        h = Hosts(w)
        keys = certs.psk(f"{w.dir}/keys.psk", first=KEY[::-1], host_a=KEY)
        h.standby("--psk-file", keys)
        h.refused(None, ["--psk-file", certs.psk(f"{w.dir}/stranger.psk", stranger=KEY)], ["identity"], ["stranger"])
        h.refused(None, ["--psk-file", certs.psk(f"{w.dir}/wrong.psk", host_a=KEY[::-1])], ["another key"],
                  ["another key"])
        h.refused(["--psk-file", keys, "--allow-peer", "host_a"], ["--psk-file", keys], ["allow-peer"],
                  ["first may not replicate guest vm"])
        h.protected("--psk-file", keys, "--psk-identity", "host_a")
        check("host_a" in w.b.status()["Security"], w.b.status()["Security"])
        sc.epochs_go_on(w.a, 5)
        h.unprotect()
        w.a.mcctl("unprotect", "vm", ok=False)
        for path, words in ((f"{w.dir}/none.psk", ["none.psk", "No such file"]),
                            (certs.psk(f"{w.dir}/open.psk", a=KEY), ["open.psk", "chmod"])):
            if "open" in path:
                os.chmod(path, 0o644)
            r = h.protect("--psk-file", path, ok=False)
            check(r.returncode == 1, f"{path} was taken")
            for word in words:
                check(word in r.stderr, f"'{word}' isn't told: {r.stderr}")
        r = h.protect("--psk-file", keys, "--tls-dir", h.tls_a, ok=False)
        check(r.returncode == 1 and "not with" in r.stderr, r.stderr)
        r = h.protect("--psk-file", keys, "--insecure", ok=False)
        check(r.returncode == 1 and "excludes" in r.stderr, r.stderr)
        check(h.guest.status() == "running", f"guest is {h.guest.status()}")


def test_silent_connection():
    """Who connects and says nothing more is let go, and keeps nobody out."""
    with mctest.World() as w:
        h = Hosts(w)
        h.standby("--tls-dir", h.tls_b)
        start = bytes.fromhex("4d43575001000c004000000000000000") + bytes(32) + b"vm".ljust(64, b"\0")
        idle = w.a.spawn("python3", "-c", "import socket,sys,time\ns=socket.create_connection((sys.argv[1],7911))\n"
                         "s.sendall(bytes.fromhex(sys.argv[2]))\nt=time.monotonic()\n"
                         "try:\n while s.recv(100): pass\nexcept OSError: pass\nprint(time.monotonic()-t)", w.b.addr,
                         start.hex(), log=f"{w.dir}/idle.log")
        h.protected("--tls-dir", h.tls_a)
        check(idle.wait(15) == 0, "the silent connection was not closed")
