# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines with Debian's kernel, run by QEMU, for tests that need what this host's kernel lacks.

    with VM(modules=["sch_plug", "ifb"], parts=["ip"]) as vm:
        vm.run("ip", "link", "add", "ifb0", "type", "ifb")
        job = vm.spawn("cat")
        job.write(b"x"); job.eof(); job.wait()
        text = vm.get("/proc/version")

Leaving the block fails the test when the kernel warned.  tests/kernel/README.md has the rest.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

from initramfs import Initramfs, build_init
from kernelpkg import Kernel
from mctest import Failure, child_setup, check, kvm_usable, run

EXEC, TTY, STDIN, EOF, KILL, QUIT = range(1, 7)
READY, OUT, ERR, EXIT, KMSG = range(16, 21)
CHUNK = 32768
BOOT_LIMIT = 60  # a boot takes 2 s; some hang under emulation and are tried again once
BASE_MODULES = ["virtio_pci", "virtio_console"]
WARNING = re.compile(r"WARNING: |BUG: |\bOops\b|general protection fault|possible (circular|recursive) locking|"
                     r"INFO: task .* blocked|rcu.*detected (expedited )?stall|UBSAN:|Kernel panic|cut here|"
                     r"unregister_netdevice: waiting|Initramfs unpacking failed")


class Result:
    """What a command said: status (0..255, negative: killed by that signal), out, err."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


class Job:
    """A command that runs in a machine."""

    def __init__(self, vm, ident, args, on_output=None):
        self.vm, self.id, self.args, self.on_output = vm, ident, args, on_output
        self.data = {OUT: bytearray(), ERR: bytearray()}
        self.status = None

    @property
    def out(self):
        return self.data[OUT].decode(errors="replace")

    @property
    def err(self):
        return self.data[ERR].decode(errors="replace")

    def write(self, data):
        """Gives it input; the host waits while the command does not take it."""
        for i in range(0, len(data), CHUNK):
            self.vm._send(STDIN, self.id, data[i:i + CHUNK])

    def eof(self):
        self.vm._send(EOF, self.id)

    def kill(self, sig=signal.SIGKILL):
        """A signal to the command and its children (of its process group)."""
        self.vm._send(KILL, self.id, struct.pack("<I", sig))

    def wait_for(self, text, timeout=20):
        """Until this stands in what it printed, on either stream."""
        self.vm._wait(f"'{text}' from {self.args[0]}: {self.out}{self.err}",
                      lambda: text in self.out or text in self.err or self.status is not None, timeout)
        check(text in self.out or text in self.err, f"{self.args[0]} ended without '{text}': {self.out}{self.err}")

    def wait(self, timeout=60):
        """Its Result, once it has ended."""
        self.vm._wait(f"end of {' '.join(self.args)}", lambda: self.status is not None, timeout)
        return Result(self.status, self.out, self.err)


class VM:
    """One machine.

    modules  kernel modules, loaded in this order with what they depend on
    files    (file or folder of this host, path in the machine) or just the file; programs bring their libraries
    programs names of programs of this host, put in /bin
    parts    of initramfs.PARTS: ip, dbus, mc, rdma, qemu, python
    smp, mem vCPUs, MiB (beside what the initial file system takes)
    nics     of link(); each needs the module virtio_net, which is then loaded
    root     image of an ext4 file system (or a folder made into one) whose /sbin/init takes over;
             it is not changed
    qemu     more arguments for QEMU; append: more for the kernel's command line
    warnings False: the kernel may warn (the text is in self.kmsg)
    """

    def __init__(self, modules=(), files=(), programs=(), parts=(), smp=1, mem=256, nics=(), root=None, qemu=(),
                 append="", warnings=True, name="vm"):
        self.kernel = Kernel()
        self.name, self.warnings = name, warnings
        self.nics = list(nics)
        self.dir = tempfile.mkdtemp(prefix=f"mckernel{os.getpid()}-")
        self.smp, self.mem, self.qemu, self.append = smp, mem, list(qemu), append
        self.root = self._root_image(root) if root else None
        needed = BASE_MODULES + (["virtio_net"] if nics else []) + (["virtio_blk", "ext4"] if root else [])
        fs = Initramfs()
        fs.add(build_init(), "/init")
        for p in programs:
            fs.add_program(p)
        for p in parts:
            fs.add_part(p)
        for f in files:
            fs.add(*((f, None) if isinstance(f, str) else f))
        fs.add_busybox()
        fs.add_modules(self.kernel, [*needed, *modules])
        fs.write(f"{self.dir}/initrd")
        self.mem += 2 * os.path.getsize(f"{self.dir}/initrd") >> 20
        self.proc = self.sock = self.reader = None
        self._start()

    def _root_image(self, root):
        if os.path.isfile(root):
            return root
        check(os.path.isdir(root), f"{root} is neither an image nor a folder")
        image = f"{self.dir}/root.img"
        size = int(run("du", "-sm", root).split()[0]) * 5 // 4 + 256
        run("mke2fs", "-q", "-t", "ext4", "-d", root, image, f"{size}M", timeout=300)
        return image

    def _command(self, agent):
        append = f"console=ttyS0 panic=-1 quiet cryptomgr.notests mitigations=off net.ifnames=0 {self.append}"
        if self.root:
            append += " mc.root=/dev/vda"
        a = ["qemu-system-x86_64", "-M", "pc", "-accel", "kvm" if kvm_usable() else "tcg", "-m", str(self.mem),
             "-smp", str(self.smp), "-nodefaults", "-display", "none", "-no-reboot",
             "-serial", f"file:{self.dir}/console", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
             "-kernel", self.kernel.vmlinux, "-initrd", f"{self.dir}/initrd", "-append", append,
             "-chardev", f"socket,id=agent,fd={agent}", "-device", "virtio-serial-pci",
             "-device", "virtserialport,chardev=agent,name=agent"]
        if self.root:
            a += ["-drive", f"file={self.root},format=raw,if=virtio,snapshot=on"]
        for i, nic in enumerate(self.nics):
            a += ["-netdev", f"socket,id=n{i},fd={nic.fileno()}",
                  "-device", f"virtio-net-pci,netdev=n{i},romfile=,mac={mac(nic)}"]
        return a + self.qemu

    def _start(self):
        for attempt in (1, 2):
            self._launch()
            if self._ready.wait(BOOT_LIMIT if attempt == 1 else 2 * BOOT_LIMIT) and self.up:
                for nic in self.nics:
                    nic.close()
                return
            text = self.console()[-4000:]
            self._stop()
        self._clean()
        raise Failure(f"machine {self.name} did not boot:\n{text}")

    def _launch(self):
        self.sock, theirs = socket.socketpair()
        self._ready = threading.Event()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self.up, self.jobs, self.kmsg, self._next = False, {}, [], 1
        with open(f"{self.dir}/qemu.log", "ab") as log:
            self.proc = subprocess.Popen(self._command(theirs.fileno()), stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=log, pass_fds=[theirs.fileno(), *(n.fileno() for n in self.nics)],
                                         preexec_fn=child_setup)
        theirs.close()
        self.reader = threading.Thread(target=self._read_loop, args=(self.sock,), daemon=True)
        self.reader.start()

    def _read_loop(self, sock):
        f = sock.makefile("rb")
        try:
            while True:
                head = f.read(12)
                if len(head) < 12:
                    break
                kind, ident, n = struct.unpack("<III", head)
                self._take(kind, ident, f.read(n))
        except OSError:
            pass
        with self._changed:
            self.up = False
            self._changed.notify_all()
        self._ready.set()

    def _take(self, kind, ident, data):
        with self._changed:
            job = self.jobs.get(ident)
            if kind == READY:
                self.up = True
                self._ready.set()
            elif kind == KMSG:
                self.kmsg.append(data.decode(errors="replace").partition(";")[2].split("\n")[0])
            elif kind in (OUT, ERR) and job:
                job.data[kind] += data
                if job.on_output:
                    job.on_output(kind == ERR, data)
            elif kind == EXIT and job:
                status = struct.unpack("<i", data)[0]
                job.status = -(status & 0x7f) if status & 0x7f else status >> 8 & 0xff
            self._changed.notify_all()

    def _wait(self, what, fn, timeout):
        end = time.monotonic() + timeout
        with self._changed:
            while not fn():
                if not self.up:
                    raise Failure(f"machine {self.name} ended while waiting for {what}:\n{self.console()[-3000:]}")
                left = end - time.monotonic()
                if left <= 0:
                    raise Failure(f"not within {timeout} s: {what}")
                self._changed.wait(left)

    def _send(self, kind, ident, data=b""):
        with self._sending:
            self.sock.sendall(struct.pack("<III", kind, ident, len(data)) + data)

    def spawn(self, *args, tty=False, on_output=None):
        """Starts a command; on_output(is_stderr, bytes) is called from another thread as output comes."""
        args = [str(a) for a in args]
        with self._changed:
            job = Job(self, self._next, args, on_output)
            self._next += 1
            self.jobs[job.id] = job
        self._send(TTY if tty else EXEC, job.id, b"".join(a.encode() + b"\0" for a in args))
        return job

    def run(self, *args, ok=True, timeout=60, stdin=b""):
        """Runs a command to its end; with ok=True a status other than 0 is a Failure."""
        job = self.spawn(*args)
        if stdin:
            job.write(stdin)
        job.eof()
        try:
            r = job.wait(timeout)
        except Failure:
            job.kill()
            raise
        check(not ok or r.status == 0,
              f"{shlex.join(job.args)} in {self.name}: exit {r.status}: {r.out[-2000:]}{r.err[-2000:]}")
        return r

    def sh(self, script, **kw):
        """Runs a shell script that stops at the first error."""
        return self.run("sh", "-euc", script, **kw)

    def put(self, path, data, mode=0o644):
        """Writes a file into the machine."""
        data = data.encode() if isinstance(data, str) else data
        self.run("sh", "-c", f"cat >{shlex.quote(path)} && chmod {mode:o} {shlex.quote(path)}", stdin=data)

    def get(self, path):
        """The bytes of a file in the machine."""
        job = self.spawn("cat", path)
        check(job.wait().status == 0, f"{path} in {self.name}: {job.err}")
        return bytes(job.data[OUT])

    def get_tree(self, path, to):
        """Copies a folder of the machine into a folder of this host."""
        job = self.spawn("tar", "-c", "-C", path, ".")
        check(job.wait().status == 0, f"{path} in {self.name}: {job.err}")
        os.makedirs(to, exist_ok=True)
        subprocess.run(["tar", "-x", "-C", to], input=bytes(job.data[OUT]), check=True)

    def console(self):
        """What the kernel and init wrote to the serial console, and QEMU to its stderr."""
        text = ""
        for f in ("qemu.log", "console"):
            try:
                with open(f"{self.dir}/{f}", encoding="utf-8", errors="replace") as fd:
                    text += fd.read()
            except OSError:
                pass
        return text

    def kernel_warnings(self):
        """Lines of the kernel's log that tell of a bug, with what follows the first one."""
        with self._changed:
            lines = list(self.kmsg)
        lines += self.console().splitlines()
        for i, line in enumerate(lines):
            if WARNING.search(line):
                return lines[i:i + 40]
        return []

    def _stop(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        self.sock.close()
        self.reader.join()

    def _clean(self):
        shutil.rmtree(self.dir, ignore_errors=True)

    def crash(self):
        """The machine's power fails."""
        self.proc.kill()
        self.proc.wait()

    def close(self):
        """Ends the machine; a Failure when its kernel warned."""
        if self.proc is None:
            return
        if self.up:
            # What the kernel logged last comes before the answer.
            self.run("true", ok=False)
            self._send(QUIT, 0, struct.pack("<I", 0))
            try:
                self.proc.wait(10)
            except subprocess.TimeoutExpired:
                pass
        self._stop()
        self.proc = None
        bad = self.kernel_warnings() if self.warnings else []
        self._clean()
        check(not bad, f"the kernel of {self.name} warned:\n" + "\n".join(bad))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        if kind:
            try:
                self.close()
            except Failure as e:
                print(e, flush=True)
        else:
            self.close()


class Nic:
    """One end of a cable; belongs to the VM that it is given to."""

    count = 0

    def __init__(self, sock):
        Nic.count += 1
        self.sock, self.number = sock, Nic.count

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.sock.close()


def mac(nic):
    return f"52:54:00:6b:{nic.number >> 8:02x}:{nic.number & 255:02x}"


def link():
    """A cable: two ends for the `nics` of two machines."""
    a, b = socket.socketpair()
    return Nic(a), Nic(b)
