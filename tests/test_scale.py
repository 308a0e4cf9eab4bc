# SPDX-License-Identifier: GPL-2.0-or-later
"""More and fewer workers while the guest is protected, and what the arena says meanwhile."""

import json

import mctest
import scenario as sc
from mctest import check

LOAD = "mc.redis=1 mc.memcheck=64:100"


def prop(host, stage, name):
    """A metric of a process."""
    out = host.run("busctl", f"--address={host.bus}", "--json=short", "get-property", "org.microcheckpoint1",
                   f"/org/microcheckpoint1/guest/vm/{stage}/0", "org.microcheckpoint1.Stage", name)
    return json.loads(out)["data"]


def arena(host, *args):
    """What `mcctl arena` prints."""
    return host.mcctl("arena", *(args or ("vm",))).stdout


def epochs(text):
    """The journal in a dump: (epoch, state, ms ago) of each record."""
    part = text.split("journal:")[1].split("rings:")[0].splitlines()[2:]
    return [(int(w[0]), w[1], float(w[12])) for w in (line.split() for line in part)]


def liveness(text):
    """Role: whether its process is alive."""
    part = text.split("processes\n")[1].split("journal")[0].splitlines()[1:]
    return {w[0]: w[3] for w in map(str.split, part)}


def gaps(text):
    """Milliseconds between the beginnings of consecutive epochs."""
    ago = [e[2] for e in epochs(text)]
    return [a - b for a, b in zip(ago, ago[1:])]


def test_stage_workers_under_load():
    """1 to 16 and back, again and again: no page lost, no epoch refused, no stall; then the host dies."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work=LOAD)
        mem = mctest.MemCheck(w)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        sc.write_for(redis, 1)
        before = max(gaps(arena(w.a)))
        worst = 0
        for n in (16, 3, 1, 8, 1):
            w.a.mcctl("workers", "vm", "stage", n)
            sc.write_for(redis, 0.4)
            worst = max(worst, max(gaps(arena(w.a))[-30:]))
            check(w.a.status()["Workers"] == n, f"{w.a.status()['Workers']} workers, not {n}")
        mctest.wait_for("one worker", lambda: len(w.a.worker_pids("stage")) == 1, 5)
        # One interval beyond what the machine does anyhow.
        check(worst < before + sc.INTERVAL_MS + 200, f"an epoch began {worst:.0f} ms after the one before; "
              f"{before:.0f} ms without changes")
        look_at_arenas(w)
        for what in ("netgate", "capture"):
            r = w.a.mcctl("workers", "vm", what, 2, ok=False)
            check(r.returncode == 1 and "exactly 1" in r.stderr, f"{what}: {r.returncode} {r.stderr}")
        sc.no_bad_words(mem)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "values lost")
        sc.no_bad_words(mem)
        dead_arena(w)


def connections(host):
    """Established replication connections of the primary."""
    out = host.run("ss", "-Htn", "state", "established", "dport", "=", f":{mctest.PORT}")
    return len(out.splitlines())


def test_streams_and_decoders_under_load():
    """More and fewer connections and decoding threads while epochs flow: nothing lost, repeated or refused."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work="mc.redis=1 mc.memcheck=64:200")
        mem = mctest.MemCheck(w)
        # Small slabs: many of them in every epoch.
        s = w.b.guest("vm", nics=1, incoming=True, append=f"mc.ip={mctest.LAN}.50/24 mc.redis=1 mc.memcheck=64:200")
        small = ["--slab-size", "256K", "--max-memory", "400M"]
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args(), "--insecure", *small, "--decoders", 2)
        w.a.mcctl(*sc.protect_args(w.a, w.b), *small, "--streams", 3)
        w.a.wait_state("PROTECTED")
        check(connections(w.a) == 3, f"{connections(w.a)} connections instead of 3")
        redis = mctest.Redis(w)
        sc.write_for(redis, 0.5)
        before = max(gaps(arena(w.a)))
        worst = 0
        for streams, decoders in ((8, 16), (1, 1), (3, 2)):
            w.a.mcctl("workers", "vm", "transport", streams)
            w.b.mcctl("workers", "vm", "restore", decoders)
            mctest.wait_for(f"{streams} connections", lambda n=streams: connections(w.a) == n, 5)
            sc.write_for(redis, 0.4)
            worst = max(worst, max(gaps(arena(w.a))[-20:]))
        check(w.a.status()["Streams"] == 3 and w.b.status()["Decoders"] == 2, "the properties")
        text = arena(w.a) + arena(w.b)
        check("ABORTED" not in text, f"an epoch was aborted:\n{text}")
        check(worst < before + sc.INTERVAL_MS + 200, f"an epoch began {worst:.0f} ms after the one before; "
              f"{before:.0f} ms without changes")
        for host, what, n in ((w.a, "transport", 9), (w.b, "restore", 17), (w.a, "restore", 2), (w.b, "transport", 2)):
            check(host.mcctl("workers", "vm", what, n, ok=False).returncode == 1, f"{what} {n} on {host.name}")
        # One that breaks takes the link with it, and everything is sent again.
        reconnects = prop(w.a, "transport", "reconnects")
        w.a.run("ss", "-K", "dport", "=", f":{mctest.PORT}")
        if prop(w.a, "transport", "reconnects") != reconnects:
            mctest.wait_for("three connections", lambda: connections(w.a) == 3, 5)
        sc.epochs_go_on(w.a, 5)
        sc.no_bad_words(mem)
        w.a.kill_everything()
        sc.write_for(redis, 0.5)
        check(redis.lost() == 0, "values lost")
        sc.no_bad_words(mem)


def look_at_arenas(w):
    """Of the living."""
    text = arena(w.a)
    for word in ("guest vm, primary", "PROTECTED (first-commit)", "capture", "transport", "RELEASED", "shadow:"):
        check(word in text, f"no '{word}' in:\n{text}")
    check("DAMAGED" not in text, text)
    check(liveness(text)["capture"] == "yes", text)
    text = arena(w.b)
    check("guest vm, backup" in text and "restore" in text, text)


def dead_arena(w):
    """All of its processes are gone; then damaged ones."""
    text = arena(w.a)
    check("PROTECTED" in text and epochs(text), text)
    check(len(liveness(text)) >= 4 and set(liveness(text).values()) == {"no"}, text)
    path = text.split(":")[0]
    copy = f"{w.a.dir}/arena"
    w.a.run("cp", "--sparse=always", path, copy)
    check(arena(w.a, "--file", copy).startswith(f"{copy}: guest ?, primary"), "a copy without its configuration")
    w.a.run("cp", f"{path}:config", f"{copy}:config")
    check(arena(w.a, "--file", copy).split("\n", 1)[1].startswith("  slab-size"), "a copy")
    check(arena(w.a, "--file", copy).startswith(f"{copy}: guest vm, primary"), "a copy with it")
    with open(copy, "r+b") as f:
        data = f.read(64 << 20)
        at = data.find((0x6c6e72756f6a636d).to_bytes(8, "little"))
        check(at > 0, "no journal in the arena")
        f.seek(at)
        f.write(b"damaged!")
    check("journal: DAMAGED" in arena(w.a, "--file", copy), "a damaged journal isn't shown")
    with open(copy, "r+b") as f:
        f.write(b"\xff" * 4096)
    r = w.a.mcctl("arena", "--file", copy, ok=False)
    check(r.returncode == 1 and "not an arena" in r.stderr, f"{r.returncode} {r.stderr}")
    check(w.a.mcctl("arena", "nobody", ok=False).returncode == 1, "an arena of nobody")
