# SPDX-License-Identifier: GPL-2.0-or-later
"""What TLS costs: the link by itself, and a protected guest's epochs, beside plain TCP in the same run."""

import os
import statistics
import tempfile

import measure as m
from measure import entry

import certs

SLABS = 2 << 30
CAPTURING, COMMITTED = 1, 5  # enum mc_epoch_state
KEY = "0123456789abcdef0123456789abcdef"


def link():
    """Two processes and one TCP connection on loopback, no guest."""
    with tempfile.TemporaryDirectory() as d:
        creds = certs.Authority(f"{d}/ca").host(f"{d}/tls", "bench", "127.0.0.1")
        certs.psk(f"{creds}/keys.psk", bench=KEY)
        d = {kind: m.run_json(m.program("tls"), kind, creds, SLABS) for kind in ("plain", "x509", "psk")}
    mid = {kind: {k: statistics.median(v) for k, v in r.items()} for kind, r in d.items()}
    return {
        "tls_throughput": entry(d["x509"]["gb_s"], "GB/s", "own, plain TCP", mid["plain"]["gb_s"],
                                "slabs of 1 MiB over one connection on loopback, AES-128-GCM, checksums on both ends"),
        "tls_rtt": entry(d["x509"]["rtt_us"], "us", "own, plain TCP", mid["plain"]["rtt_us"], "PING to PONG, loopback, both ends on one CPU"),
        "tls_connect": entry(d["x509"]["connect_ms"], "ms", "own, plain TCP", mid["plain"]["connect_ms"],
                             "connect() to the first answer: ECDSA P-256 certificates on both ends, full handshake; both on one CPU"),
        "tls_connect_psk": entry(d["psk"]["connect_ms"], "ms", "own, plain TCP", mid["plain"]["connect_ms"],
                                 "connect() to the first answer: pre-shared key with ECDHE; both on one CPU"),
    }, {f"tls_{k}": r for k, r in d.items()}


def commits():
    """Pause to commit of the same guest under the same work, plain and with TLS in turn."""
    plain, secure = [], []
    with m.world() as w:
        ca = certs.Authority(f"{w.dir}/ca")
        dirs = [ca.host(f"{h.dir}/tls", f"host-{h.name}", h.addr) for h in (w.a, w.b)]
        g = m.work(w.a, "pages 1 50")
        for i in range(6):
            s = w.b.guest("vm", mem=g.mem, nics=g.nics, incoming=True, append=g.args[g.args.index("-append") + 1].split(
                "mitigations=off ", 1)[-1].replace("console=ttyS0 ", ""))
            a, b = (["--insecure"],) * 2 if i % 2 == 0 else (["--tls-dir", d] for d in dirs)
            w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args(), *b)
            w.a.mcctl("protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{m.mctest.PORT}", "--interval", 50,
                      *m.sc.accept(), *g.relay_args(), *a)
            w.a.wait_state("PROTECTED", timeout=60)
            values = [(e["stamp"][COMMITTED] - e["stamp"][CAPTURING]) / 1e6 for e in m.watch(w.a, 5)["epochs"]
                      if e["state"] in ("COMMITTED", "RELEASED")]
            (plain if i % 2 == 0 else secure).append(statistics.median(values))
            m.unprotect(w)
    return {"tls_commit": entry(secure, "ms", "own, plain TCP", statistics.median(plain),
                                "median of pause to commit, 1 MiB of dirty pages an epoch at 50 ms, three turns of 5 s each")}, {
        "tls_commit": {"plain": plain, "tls": secure}}


NAMES = {"tls_link": ("tls_throughput", "tls_rtt", "tls_connect", "tls_connect_psk"), "tls_commit": ("tls_commit",)}
BENCHES = {"tls_link": link, "tls_commit": commits}
