# SPDX-License-Identifier: GPL-2.0-or-later
"""What operators do: configuration files, reload, monitoring, history, restart of the service."""

import json
import os
import re
import signal
import subprocess
import time

import mctest
import scenario as sc
from mctest import check

IN_PAIRS = True  # nothing here depends on how fast the machine is


def write_conf(host, name, text):
    """A file of guests.d."""
    os.makedirs(host.conf_dir, exist_ok=True)
    with open(f"{host.conf_dir}/{name}.conf", "w", encoding="ascii") as f:
        f.write(text)


def restart_supervisor(host):
    """As systemctl restart does it: the main process alone."""
    host.supervisor.send_signal(signal.SIGTERM)
    check(host.supervisor.wait(10) == 0, "mc-supervisor's exit status")
    host.start_supervisor()
    # Who is answered at all is never told that a guest that runs isn't there.
    r = host.mcctl("status", "vm", ok=False)
    check(r.returncode == 0, f"right after a restart: {r.stdout}{r.stderr}")


def events(host, name="vm"):
    """The history as a list of objects."""
    return [json.loads(x) for x in host.mcctl("events", name, "--json").stdout.splitlines()]


def metric(host, name, **labels):
    """One sample of `mcctl metrics --prometheus`."""
    for line in host.mcctl("metrics", "--prometheus").stdout.splitlines():
        m = re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line)
        if m and m[1] == name and all(f'{k}="{v}"' in (m[2] or "") for k, v in labels.items()):
            return float(m[3])
    raise mctest.Failure(f"no metric {name} {labels}")


def primary_conf(w, g, interval=25):
    """vm.conf of the primary."""
    relay = g.relay_args()[1]
    return (f"# the guest of this test\nrole = primary\nqmp = {g.qmp_path}\npeer = {w.b.addr}:{mctest.PORT}\n"
            f"relay = {relay}\naccept = isa-serial\ninterval = {interval}\ninsecure = yes\n")


def test_configured_guests():
    """Protected at boot, whatever comes up first; reload, monitoring, history; the operator isn't overruled."""
    with mctest.World() as w:
        g = sc.boot(w.a)
        s = w.b.guest("vm", nics=1, incoming=True, append=f"mc.ip={sc.IPS.split(',', maxsplit=1)[0]} mc.redis=1")
        write_conf(w.a, "vm", primary_conf(w, g))
        w.a.start()
        mctest.wait_for("a first try", lambda: "can't be followed yet" in w.a.supervisor_log(), 20, every=0.1)
        check(w.a.mcctl("status", "--check", ok=False).returncode in (1, 2), "an unprotected guest is reported as fine")
        write_conf(w.b, "vm", f"role = standby\nqmp = {s.qmp_path}\nrelay = {s.relay_args()[1]}\ninsecure = yes\n")
        w.b.start()
        w.a.wait_state("PROTECTED", timeout=30)
        monitoring(w)
        reload(w, g)
        restart(w)
        r = w.a.mcctl("status", "--check")
        check(r.stdout.startswith("MICROCHECKPOINT OK - 1 guest |"), r.stdout)
        w.a.mcctl("unprotect", "vm")
        w.a.mcctl("reload")
        time.sleep(1)
        check(w.a.state() == "ENDED", "a reload overruled the operator")
        last = events(w.a)[-2]  # before the word about damaged lines
        check(last["event"] == "state" and "ENDED" in last["text"], f"{last}")
        check(any(e["event"] == "unprotect" and e["by"] == "uid 0" for e in events(w.a)), "who unprotected it")
        check(any(e["event"] == "gate" and "n0: relay, since" in e["text"] for e in events(w.a)), "why it has this gate")


def monitoring(w):
    """Metrics are samples that Prometheus takes; they move."""
    sc.epochs_go_on(w.a, 3)
    check(metric(w.a, "microcheckpoint_guest_state", guest="vm", state="PROTECTED") == 1, "state")
    check(metric(w.a, "microcheckpoint_guest_state", guest="vm", state="HELD") == 0, "state")
    n = metric(w.a, "microcheckpoint_capture_checkpoints_total", guest="vm")
    sc.epochs_go_on(w.a, 3)
    check(metric(w.a, "microcheckpoint_capture_checkpoints_total", guest="vm") > n, "checkpoints don't count")
    check(0 < metric(w.a, "microcheckpoint_pause_seconds", guest="vm", quantile="0.5") < 1, "pause")
    check(metric(w.b, "microcheckpoint_link_up", guest="vm", role="backup") == 1, "link of the backup")
    for host, args, word in ((w.b, ("checkpoint", "vm"), "this is its backup (PROTECTED); do that on the host of the primary"),
                             (w.b, ("failover", "vm", "--planned"), "mcctl failover vm takes over without it"),
                             (w.a, ("restart", "vm", "restore"), "no guest vm with a process mc-restore here"),
                             (w.a, ("restart", "vm", "pipeline"), "there is no stage 'pipeline'")):
        r = host.mcctl(*args, ok=False)
        check(r.returncode == 1 and word in r.stderr, f"{args}: {r.returncode} {r.stderr}")
    check(re.search(r"^PauseP50 +[\d.]+ ms$", w.a.mcctl("status", "vm").stdout, re.M), "a time without its unit")
    text = w.a.mcctl("metrics", "--prometheus").stdout
    for line in text.splitlines():
        check(re.fullmatch(r"# (HELP|TYPE) microcheckpoint_\w+ .+|microcheckpoint_\w+(\{[^{}]*\})? [-+.e\d]+", line),
              f"not a line of the text format: {line}")
    check(len(re.findall(r"^# TYPE", text, re.M)) == len(set(re.findall(r"^# TYPE (\S+)", text, re.M))), "a type twice")
    exporter(w.a)
    top = w.a.mcctl("top", "--rounds", 3).stdout
    check("Pause" in top and "now" in top and re.search("[\u2581-\u2588]", top), f"no sparkline: {top}")


def exporter(host):
    """What the exporter answers is what mcctl prints; other paths and methods are told so."""
    ask = ("import socket,sys\ns=socket.create_connection(('127.0.0.1',9817),5)\ns.sendall(sys.argv[1].encode()+b' HTTP/1.1\\r\\n\\r\\n')\n"
           "while (b:=s.recv(65536)): sys.stdout.write(b.decode())")
    p = host.spawn(f"{mctest.BUILD}/mc-exporter", f"--bus={host.bus}", "--listen=127.0.0.1:9817", log=f"{host.dir}/exporter.log")
    mctest.wait_for("the exporter's port", lambda: ":9817" in host.run("ss", "-Hltn"), 10, every=0.05)
    text = host.run("python3", "-c", ask, "GET /metrics")
    check(text.startswith("HTTP/1.1 200 OK") and 'microcheckpoint_guest_state{guest="vm",role="primary",state="PROTECTED"} 1' in text, text[:500])
    check("404 Not Found" in host.run("python3", "-c", ask, "GET /"), "another path")
    check("405 Method" in host.run("python3", "-c", ask, "POST /metrics"), "another method")
    p.kill()
    p.wait()


def reload(w, g):
    """A bad file changes nothing and is named with its line; a good one takes effect."""
    write_conf(w.a, "vm", primary_conf(w, g, interval="often"))
    write_conf(w.a, "other", "role = standby\nqmp = /nonexistent\n")
    r = w.a.mcctl("reload", ok=False)
    check(r.returncode == 1 and "vm.conf:7: interval: 'often'" in r.stderr and "nothing was changed" in r.stderr, r.stderr)
    check(w.a.status()["Interval"] == 25 and "other" not in w.a.supervisor_log().rsplit("nothing was", 1)[-1], "changed")
    r = w.a.mcctl("check-config", w.a.conf_dir, ok=False)
    check(r.returncode == 1 and "vm.conf:7:" in r.stderr and "guest other: standby" in r.stdout, f"{r.stdout}{r.stderr}")
    os.unlink(f"{w.a.conf_dir}/other.conf")
    write_conf(w.a, "vm", primary_conf(w, g, interval=40))
    w.a.supervisor.send_signal(signal.SIGHUP)
    mctest.wait_for("the new interval", lambda: w.a.status()["Interval"] == 40, 5, every=0.05)
    check(w.a.state() == "PROTECTED", "reload ended the protection")


def restart(w):
    """Restart of the service keeps the protection; the history goes on, whatever a crash did to its file."""
    term, pids = w.a.status()["Term"], sorted(w.a.worker_pids("capture"))
    with open(f"{w.a.state_dir}/vm.events", "ab") as f:
        f.write(b'\0\0\xff\n{"time":"2026-')
    restart_supervisor(w.a)
    sc.epochs_go_on(w.a, 5)
    time.sleep(2.5)  # longer than the configuration takes to look at what stands
    check(w.a.status()["Term"] == term and sorted(w.a.worker_pids("capture")) == pids, "it was begun again")
    all_events = events(w.a)
    notice = all_events.pop()
    check(notice["event"] == "history" and "2 lines of " in notice["text"] and "are damaged and left out" in notice["text"], f"{notice}")
    check(notice["text"] in w.a.mcctl("events", "vm").stdout, "the damage isn't shown")
    check([e["event"] for e in all_events if "PROTECTED" in e["text"] or e["event"] == "adopted"] == ["state", "adopted"],
          f"history: {all_events}")
    first = next(e for e in all_events if "PROTECTED" in e["text"])
    check(first["by"] == "mc-transport" and re.search(r"first-commit, after \d+\.\d+ s", first["text"]), f"{first}")


def test_doctor():
    """Says what stands and what to change, with or without a service."""
    with mctest.World() as w:
        write_conf(w.a, "vm", "role = standby\nqmp = /nonexistent.qmp\ninsecure = yes\n")
        write_conf(w.a, "other", "role = standby\nqmp = /other\nintervall = 25\n")
        w.a.start()
        configured_in_vain(w.a)
        w.a.run("mount", "-o", "remount,size=64M", "/dev/shm")
        r = w.a.mcctl("doctor", ok=False)
        check(r.returncode == 1 and re.search(r"BAD +/dev/shm .*remount,size=", r.stdout), r.stdout)
        w.a.run("mount", "-o", "remount,size=2G", "/dev/shm")
        r = w.a.mcctl("doctor")
        for word in ("dirty tracking", "gate relay", "gate plug", "RDMA", "memlock", "QEMU", "CAP_SYS_PTRACE",
                     "max_dgram_qlen", "time", "service"):
            check(re.search(rf"^(ok  |note|WARN)  {word} ", r.stdout, re.M), f"{word}: {r.stdout}")
        check("ok    service            runs, version" in r.stdout, r.stdout)
        w.a.supervisor.kill()
        w.a.supervisor.wait()
        check("note  service" in w.a.mcctl("doctor").stdout, "doctor without a service")
        r = w.a.mcctl("status", "--check", ok=False)
        check(r.returncode == 3 and "UNKNOWN" in r.stdout, f"{r.returncode} {r.stdout}")


def configured_in_vain(host):
    """A guest that is configured and isn't there, and a file with a mistake, are no reason to say OK."""
    mctest.wait_for("a first try", lambda: "can't be followed yet" in host.supervisor_log(), 20, every=0.05)
    r = host.mcctl("status", "--check", ok=False)
    check(r.returncode == 1 and r.stdout.startswith("MICROCHECKPOINT WARNING - 0 guests: vm is configured, but can't be begun yet: ")
          and "no QMP socket /nonexistent.qmp" in r.stdout and "other.conf:3: there is no key 'intervall'" in r.stdout, r.stdout)
    r = host.mcctl("status")
    check("no QMP socket /nonexistent.qmp" in r.stderr and len(r.stdout.splitlines()) == 1, f"mcctl status: {r.stdout}{r.stderr}")
    for args, word in ((("status", "vm"), "no QMP socket"), (("status", "vm", "--check"), "WARNING"), (("status", "xy", "--check"), "UNKNOWN")):
        r = host.mcctl(*args, ok=False)
        check(r.returncode != 0 and word in r.stdout + r.stderr, f"{args}: {r.returncode} {r.stdout}{r.stderr}")
    check(metric(host, "microcheckpoint_guests_pending") == 1 and metric(host, "microcheckpoint_config_mistakes") == 1, "metrics")


def signatures(xml, iface):
    """Members of an interface as the manual page writes them."""
    part = xml.split(f'<interface name="org.microcheckpoint1.{iface}">')[1].split("</interface>")[0]
    out = []
    for kind, name, attrs, body in re.findall(r'<(method|signal|property) name="(\w+)"([^>]*?)(?:/>|>(.*?)</\1>)', part, re.S):
        if kind == "property":
            out.append(f"property {name} {re.search('type=.([^ ]+?).(?: |$)', attrs)[1]}")
            continue
        args = {"in": [], "out": []}
        for a in re.findall(r"<arg ([^>]*?)/>", body or ""):
            f = dict(re.findall(r'(\w+)="([^"]*)"', a))
            args["in" if kind == "signal" else f.get("direction", "in")].append(f"{f['type']} {f.get('name', '')}".strip())
        text = f"{name}({', '.join(args['in'])})"
        out.append(f"{kind:<9}{text}" + (f" -> ({', '.join(args['out'])})" if args["out"] else ""))
    return out


def introspect(host, path):
    r = host.run("busctl", f"--address={host.bus}", "--json=short", "call", "org.microcheckpoint1", path,
                 "org.freedesktop.DBus.Introspectable", "Introspect")
    return json.loads(r)["data"][0]


def as_user(host, uid, *args):
    """mcctl of somebody else."""
    return subprocess.run([*host.enter(), "setpriv", f"--reuid={uid}", "--clear-groups", f"{mctest.BUILD}/mcctl",
                                  f"--bus={host.bus}", *args], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True, check=False, timeout=30)


def test_callers_and_manual():
    """Strangers are refused by every method; the D-Bus page and mcctl's say what the programs do."""
    with mctest.World() as w:
        w.a.start()
        w.b.start()
        g = w.a.guest("vm", bios=True, serial=False, nics=0, mem=64)
        s = w.b.guest("vm", bios=True, serial=False, nics=0, mem=64, incoming=True)
        w.b.mcctl("standby", "vm", "--qmp", s.qmp_path, "--insecure")
        w.a.mcctl("protect", "vm", "--qmp", g.qmp_path, "--peer", f"{w.b.addr}:{mctest.PORT}", "--gate", "none", "--insecure")
        w.a.wait_state("PROTECTED")
        for args in (("status",), ("status", "vm"), ("events", "vm"), ("metrics", "--prometheus"), ("reload",),
                     ("protect", "x", "--qmp", "/x", "--peer", "127.0.0.1:1"), ("standby", "x", "--qmp", "/x"),
                     ("standby-args", "x", "--qmp", "/x"), ("unprotect", "vm"), ("checkpoint", "vm"), ("hold", "vm"),
                     ("resume", "vm"), ("failover", "vm"), ("resolve", "vm", "promote"), ("set", "vm", "interval=50"),
                     ("workers", "vm", "stage", "2"), ("restart", "vm", "stage")):
            r = as_user(w.a, 1, *args)
            check(r.returncode == 1 and "user 1 may not" in r.stderr, f"{args}: {r.returncode} {r.stdout}{r.stderr}")
        check("vm" in as_user(w.a, 65534, "status").stdout, "the processes' user may read")
        check(as_user(w.a, 65534, "hold", "vm").returncode == 1, "and nothing else")
        check(w.a.state() == "PROTECTED" and w.a.status()["Interval"] == 100, "a stranger changed something")
        with open(f"{mctest.TOP}/packaging/man/org.microcheckpoint1.7", encoding="utf-8") as f:
            page = f.read()
        for iface, path in (("Manager", "/org/microcheckpoint1"), ("Guest", "/org/microcheckpoint1/guest/vm")):
            want = signatures(introspect(w.a, path), iface)
            check(len(want) > 8, f"{iface}: {want}")
            missing = [x for x in want if x not in page.splitlines()]
            check(not missing, f"org.microcheckpoint1(7) lacks of {iface}: {missing}")
        mcctl_page(w)
        floods(w)


def flood(host, uid, number, *call):
    """{error's name or `ok`: how often} of many calls on one connection."""
    r = host.run("setpriv", f"--reuid={uid}", "--clear-groups", "/usr/bin/python3", f"{mctest.TOP}/tests/lib/flood.py",
                 host.bus.removeprefix("unix:path="), str(number), *call)
    return {name: int(n) for n, name in (line.split() for line in r.splitlines())}


def floods(w):
    """A stranger's calls are bounded, whatever he calls; root's aren't."""
    root = "/org/microcheckpoint1"
    for call in (("org.microcheckpoint1.Manager", "ListGuests"), ("org.freedesktop.DBus.Introspectable", "Introspect"),
                 ("org.freedesktop.DBus.Peer", "Ping")):
        time.sleep(2.5)  # what all strangers have together fills again
        seen = flood(w.a, 1, 120, root, *call)
        busy = seen.pop("org.microcheckpoint1.Error.Busy", 0)
        check(busy >= 70 and sum(seen.values()) >= 20 and len(seen) == 1, f"{call}: {busy} busy, {seen}")
    check(flood(w.a, 0, 120, root, "org.microcheckpoint1.Manager", "ListGuests") == {"ok": 120}, "root")
    check(w.a.state() == "PROTECTED", "floods ended the protection")


def mcctl_page(w):
    """Every command and option has its place in mcctl(1)."""
    text = w.a.mcctl("--help").stdout
    with open(f"{mctest.TOP}/packaging/man/mcctl.1", encoding="utf-8") as f:
        page = f.read()
    commands = re.findall(r"^  ([a-z-]+) ", text, re.M)
    options = re.findall(r"--([a-z-]+)", text.split("options of standby and protect:")[1])
    missing = [c for c in commands if f".It Cm {c} " not in page and f".It Cm {c}\n" not in page]
    missing += [o for o in options if f".It Fl -{o}\n" not in page]
    with open(f"{mctest.TOP}/docs/dbus.md", encoding="utf-8") as f:
        keys = f.read().split("## Options")[1].split("## Who")[0]
    missing += [f"{o} (docs/dbus.md)" for o in options if not re.search(rf"\b{o}\b", keys)]
    check(len(commands) > 10 and len(options) > 15 and not missing, f"mcctl(1) lacks {missing}")
