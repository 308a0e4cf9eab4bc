# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad input: a clear error that names the remedy, the guest running on, nothing half done."""

import os
import socket
import subprocess
import time

import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is

BIOS = {"bios": True, "serial": False, "mem": 128}


def refused(host, args, *words, name="vm"):
    """mcctl must fail with exit 1 and a sentence that holds all the words; no guest is left."""
    r = host.mcctl(*args, ok=False)
    text = r.stderr.lower()
    check(r.returncode == 1, f"{args}: exit {r.returncode}, not 1: {r.stderr} {r.stdout}")
    for word in words:
        check(word.lower() in text, f"{args}: error lacks '{word}': {r.stderr.strip()}")
    check(host.mcctl("status", name, ok=False).returncode == 1, f"{args}: guest {name} is left in the list")
    check(not host.worker_pids("capture"), "a mc-capture is left")


def guest_is_refused(world, words, extra_args=(), protect_args=(), **kw):
    """A guest of this kind can't be protected, and runs on."""
    g = world.a.guest("vm", **{**BIOS, **kw}, extra=extra_args)
    args = ["protect", "vm", "--qmp", g.qmp_path, "--peer", f"{world.b.addr}:{mctest.PORT}", "--insecure"]
    args += list(protect_args) or g.relay_args() or ["--gate", "none"]
    refused(world.a, args, *words)
    check(g.status() == "running", f"guest is {g.status()}")
    shown = world.a.mcctl(*args, "--dry-run", ok=False)
    check(shown.returncode == 1, f"--dry-run accepts what is refused: {shown.stdout}")
    g.kill()


def test_guests_that_cannot_be_protected():
    """Each kind of guest that would be protected by half is refused by name."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        disk = f"{w.dir}/disk"
        with open(disk, "wb") as f:
            f.truncate(1 << 20)
        guest_is_refused(w, ["share=on"], ram="private")
        guest_is_refused(w, ["vga"], ["-device", "VGA"])
        guest_is_refused(w, ["disk"], ["-drive", f"file={disk},format=raw,if=virtio"])
        guest_is_refused(w, ["user"], nic_backend="user", protect_args=["--gate", "none"])
        guest_is_refused(w, ["virtio-balloon"], ["-device", "virtio-balloon-pci"])
        guest_is_refused(w, ["isa-serial"], serial=True)
        guest_is_refused(w, ["soft-dirty"], protect_args=["--tracker", "soft-dirty", "--gate", "none"], nics=0)
        guest_is_refused(w, ["n0", "relay"], protect_args=["--relay", "n9=unix:/tmp/x,tap=tap0"])


def test_not_a_monitor():
    """A QMP socket that isn't there, isn't QEMU's, or is in use."""
    with mctest.World() as w:
        w.a.start()
        peer = ["--peer", f"{w.b.addr}:{mctest.PORT}", "--insecure", "--gate", "none"]
        refused(w.a, ["protect", "vm", "--qmp", f"{w.dir}/none", *peer], "no QMP socket", f"{w.dir}/none")
        fake = socket.socket(socket.AF_UNIX)
        fake.bind(f"{w.dir}/fake")
        fake.listen(4)
        refused(w.a, ["protect", "vm", "--qmp", f"{w.dir}/fake", *peer], "in use", "second")
        liar = subprocess.Popen(
            ["python3", "-c", "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\n"
             "print('up',flush=True)\nwhile 1:\n c,_=s.accept()\n c.sendall(b'SSH-2.0-x\\n')\n c.close()",
             f"{w.dir}/liar"], stdout=subprocess.PIPE)
        liar.stdout.readline()
        refused(w.a, ["protect", "vm", "--qmp", f"{w.dir}/liar", *peer], "QMP")
        liar.kill()
        liar.wait()
        liar.stdout.close()
        g = w.a.guest("vm", **BIOS)
        user = mctest.Qmp(g.qmp_path)
        refused(w.a, ["protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--insecure",
                      *g.relay_args()], "in use", "second")
        user.close()
        fake.close()
        refused(w.a, ["protect", "vm", "--qmp", f"{w.dir}/fake", *peer], "nobody listens", f"{w.dir}/fake")
        check(g.status() == "running", f"guest is {g.status()}")


def test_standby_that_differs():
    """A standby that isn't the same machine is refused before anything is copied, by what differs."""
    def one(w, words, **kw):
        s = w.b.guest("vm", **{**BIOS, "incoming": True, **kw})
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args(), "--insecure")
        w.a.mcctl("protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--insecure",
                  *g.relay_args(), ok=False)
        mctest.wait_for("refusal", lambda: w.a.mcctl("status", "vm", ok=False).returncode or
                        w.a.state() == "STOPPED", 10, every=0.05)
        text = w.a.mcctl("events", "vm", ok=False).stdout + w.a.mcctl("status", "vm", "--json", ok=False).stdout
        for word in words:
            check(word.lower() in text.lower(), f"{kw}: '{word}' is not told: {text[-1500:]}")
        check(g.status() == "running", f"guest is {g.status()}")
        w.a.mcctl("unprotect", "vm", ok=False)
        w.b.mcctl("unprotect", "vm", ok=False)
        s.kill()

    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = w.a.guest("vm", **BIOS)
        one(w, ["ram"], mem=256)
        one(w, ["machine"], machine="pc")
        one(w, ["cpu"], extra=["-cpu", "Nehalem"])
        one(w, ["virtio-rng"], extra=["-device", "virtio-rng-pci"])
        s = sc_standby_slab(w)
        r = w.a.mcctl("protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--insecure",
                      *g.relay_args(), ok=False)
        text = r.stderr
        if r.returncode == 0:
            w.a.wait_state("STOPPED", timeout=10)
            text = w.a.mcctl("status", "vm", "--json").stdout + w.a.mcctl("events", "vm").stdout
        check("slab" in text.lower(), f"slab size is not told: {text}")
        check(g.status() == "running", f"guest is {g.status()}")
        s.kill()


def sc_standby_slab(w):
    """A standby whose slabs have another size."""
    s = w.b.guest("vm", **BIOS, incoming=True)
    w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args(), "--insecure", "--slab-size", 2 << 20)
    return s


def test_standby_that_runs_is_refused():
    """Only a QEMU that waits for incoming state can be a standby."""
    with mctest.World() as w:
        w.b.start()
        g = w.b.guest("vm", **BIOS)
        refused(w.b, ["standby", "vm", "--qmp", g.qmp_path, *g.relay_args()], "incoming")
        check(g.status() == "running", f"guest is {g.status()}")


def test_unknown_guest_and_nonsense():
    """Unknown names, bad values, unknown options: exit codes and sentences."""
    with mctest.World() as w:
        w.a.start()
        for cmd in ("checkpoint", "hold", "resume", "unprotect", "failover", "status", "events"):
            r = w.a.mcctl(cmd, "nobody", ok=False)
            check(r.returncode == 1 and "nobody" in r.stderr, f"{cmd} nobody: {r.returncode} {r.stderr}")
        for args in (["frobnicate"], ["protect"], ["status", "--what"], ["set", "vm"], ["workers", "vm", "stage"]):
            r = w.a.mcctl(*args, ok=False)
            check(r.returncode == 2, f"{args}: exit {r.returncode}")
        g = w.a.guest("vm", **BIOS)
        base = ["protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", *g.relay_args()]
        for extra, word in ((["--interval", "0"], "interval"), (["--interval", "x"], "interval"),
                            (["--slab-size", "5000"], "slab-size"), (["--max-memory", "1"], "max-memory"),
                            (["--on-overload", "panic"], "on-overload"), (["--workers", "99"], "workers")):
            r = w.a.mcctl(*base, *extra, ok=False)
            check(r.returncode in (1, 2) and word in r.stderr, f"{extra}: {r.returncode} {r.stderr}")
        r = w.a.mcctl("protect", "../etc", "--qmp", g.qmp_path, "--peer", "1.2.3.4", "--gate", "none", ok=False)
        check(r.returncode in (1, 2) and "name" in r.stderr.lower(), f"bad name: {r.stderr}")
        # What the other host says of itself is told as that; the entry's end has its author.
        w.b.start()
        w.a.mcctl(*base, "--insecure")
        w.a.wait_state("STOPPED", timeout=10)
        check(w.a.status()["Message"] == f"the backup {w.b.addr}:{mctest.PORT} refuses: no standby for guest 'vm' on this host; run mcctl standby "
              "there first", w.a.status()["Message"])
        check(f"a connection from {w.a.addr}:" in w.b.supervisor_log(), w.b.supervisor_log())
        w.a.mcctl("unprotect", "vm")
        last = w.a.mcctl("events", "vm").stdout.splitlines()[-1]
        check("uid 0" in last and "removes the entry, which was STOPPED" in last, last)
        check(g.status() == "running", f"guest is {g.status()}")


def test_plain_tcp_needs_the_word_insecure():
    """Unencrypted replication to another host has to be asked for by name."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = w.a.guest("vm", **BIOS)
        s = w.b.guest("vm", **BIOS, incoming=True)
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, *s.relay_args())
        refused(w.a, ["protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}",
                      *g.relay_args()], "insecure")


def test_full_shm():
    """/dev/shm full: refused with the numbers, nothing left behind, the guest runs on."""
    with mctest.World(shm="200M") as w:
        w.a.start()
        w.b.start()
        g = w.a.guest("vm", **BIOS)
        fill = w.a.run("sh", "-c", "fallocate -l $(($(df --output=avail -B1 /dev/shm | tail -1) - 4000000)) "
                       "/dev/shm/fill; df /dev/shm | tail -1")
        before = w.a.run("ls", "/dev/shm")
        refused(w.a, ["protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--insecure",
                      *g.relay_args()], "/dev/shm")
        check(w.a.run("ls", "/dev/shm") == before, f"something is left in /dev/shm: {fill}")
        check(g.status() == "running", f"guest is {g.status()}")


def test_two_supervisors():
    """Two supervisors can't protect the same guest, nor share a runtime directory."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        sc.protect(w.a, w.b)
        second = w.a.spawn(f"{mctest.BUILD}/mc-supervisor", f"--bus={w.a.bus}", "--runtime-dir", w.a.run_dir,
                           "--state-dir", w.a.state_dir, "--listen", f"[::]:{mctest.PORT + 1}",
                           log=f"{w.a.dir}/second.log")
        check(second.wait(10) != 0, "a second supervisor on the same runtime directory started")
        with open(f"{w.a.dir}/second.log", encoding="utf-8") as f:
            check(w.a.run_dir in f.read(), "the error doesn't name the directory")
        for path in (g.qmp_path, g.qmp2_path):
            r = w.b.mcctl("protect", "other", "--qmp", path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--insecure",
                          *sc.accept(), *g.relay_args(), ok=False, timeout=30)
            check(r.returncode == 1, f"the same guest protected twice by {path}: {r.stdout} {r.stderr}")
        sc.epochs_go_on(w.a, 5)
        check(w.a.state() == "PROTECTED", f"state {w.a.state()}")


def test_foreign_pause_is_left_alone():
    """Somebody else's `stop` is not undone by us, and protection goes on after their `cont`."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        sc.protect(w.a, w.b)
        redis = mctest.Redis(w)
        g.qmp.cmd("stop")
        time.sleep(0.5)
        check(g.status() == "paused", "our cont undid an operator's stop")
        g.qmp.cmd("cont")
        sc.epochs_go_on(w.a, 5)
        sc.write_for(redis, 0.3)


def test_hotplug_ends_protection_by_name():
    """A device added meanwhile: DEGRADED, the device named, the guest running."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a, extra=["-device", "pcie-root-port,id=rp0"])
        sc.protect(w.a, w.b, standby_kw={"extra": ["-device", "pcie-root-port,id=rp0"]})
        g.qmp.cmd("device_add", driver="virtio-rng-pci", bus="rp0", id="hot0")
        w.a.wait_state("DEGRADED", timeout=10)
        check(w.a.status()["Reason"] == "hotplug", f"reason {w.a.status()['Reason']}")
        check("rng" in w.a.mcctl("events", "vm").stdout, "the device isn't named")
        check(g.status() == "running", f"guest is {g.status()}")


def test_garbage_on_the_port():
    """Nonsense on the replication port of both kinds of host: closed, everything lives."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a)
        sc.protect(w.a, w.b)
        for junk in (b"", b"GET / HTTP/1.0\r\n\r\n", os.urandom(4096), b"MCWP" + b"\xff" * 200, b"MCWP\x01\x00\x01\x00" +
                     b"\0" * 40 + b"vm" + b"\0" * 400):
            w.b.run("python3", "-c", "import socket,sys\ns=socket.create_connection(('127.0.0.1',int(sys.argv[1])),2)\n"
                    "s.sendall(bytes.fromhex(sys.argv[2]))\ns.settimeout(0.5)\n"
                    "try:\n s.recv(10)\nexcept OSError: pass", str(mctest.PORT), junk.hex())
        sc.epochs_go_on(w.a, 5)
        check(w.a.state() == "PROTECTED" and w.b.state() == "PROTECTED", "protection was disturbed")


def cpu_seconds(pid):
    """User and system time that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def supervisor_pid(host):
    return host.worker_pids("supervisor")[0][0]


def test_first_bytes_of_a_connection():
    """Half a HELLO costs nothing while it lasts; another version is told what to do."""
    header = b"MCWP" + b"\x02\x00\x01\x00" + (248).to_bytes(4, "little") + b"\0" * (36 + 248)
    script = ("import socket,sys,time\ns=socket.create_connection(('127.0.0.1',int(sys.argv[1])),2)\n"
              "s.sendall(bytes.fromhex(sys.argv[2]))\n"
              "if sys.argv[3]=='close': s.shutdown(socket.SHUT_WR)\n"
              "s.settimeout(5)\ntry:\n print(s.recv(4096).hex())\nexcept ConnectionResetError:\n print()")
    with mctest.World() as w:
        w.b.start()
        before = cpu_seconds(supervisor_pid(w.b))
        for how in ("close", "stay"):
            answer = w.b.run("python3", "-c", script, str(mctest.PORT), header[:40].hex(), how)
            check(answer.strip() == "", f"half a header was answered: {answer}")
        used = cpu_seconds(supervisor_pid(w.b)) - before
        check(used < 0.2, f"the supervisor burned {used:.2f} s on half a header")
        answer = w.b.run("python3", "-c", script, str(mctest.PORT), header.hex(), "stay")
        text = bytes.fromhex(answer.strip()).decode("latin-1")
        check("version 2" in text and "same release" in text, f"another version was told: {text!r}")


def test_slabs_too_small():
    """The device state must fit into one slab: said at once, with a size that does, and the guest runs on."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        sc.standby(w.b, g, "--slab-size", "64K")
        w.a.mcctl(*sc.protect_args(w.a, w.b, "--slab-size", "64K"))
        w.a.wait_state("DEGRADED", timeout=10)
        text = w.a.status()["Message"]
        check("doesn't fit into a slab" in text and "slab-size 131072 or more" in text, f"told: {text!r}")
        mctest.wait_for("the guest to run", lambda: g.status() == "running", 2)
        w.b.wait_state("ENDED", timeout=5)


def test_guest_panics():
    """A kernel panic that resets the machine (-no-reboot) is the guest's own end, not a death."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        sc.boot(w.a, work="mc.run=sleep^5;echo^c>/proc/sysrq-trigger")
        s = sc.protect(w.a, w.b)
        w.a.wait_state("ENDED", timeout=20)
        w.b.wait_state("ENDED", timeout=5)
        check(s.status() == "inmigrate", f"standby is {s.status()}")


def test_migrated_by_somebody_else():
    """A guest that an operator migrates away is not let go again by us."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = sc.boot(w.a)
        sc.protect(w.a, w.b)
        g.qmp.cmd("migrate", uri="exec:cat >/dev/null")
        mctest.wait_for("the migration", lambda: g.qmp.cmd("query-migrate").get("status") in
                        ("completed", "failed"), 60, every=0.2)
        status = g.qmp.cmd("query-migrate")["status"]
        time.sleep(1)
        want = "postmigrate" if status == "completed" else "running"
        seen = {g.status() for _ in range(50)} - {"paused"}
        check(seen == {want}, f"migration {status}, guest {seen}")
