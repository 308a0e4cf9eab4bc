# SPDX-License-Identifier: GPL-2.0-or-later
"""Initial file systems of kernel test machines, put together from files of this host."""

import glob
import os
import re
import stat
import subprocess

from mctest import BUILD, TOP, check, run
from kernelpkg import CACHE

PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
ARCH = "/usr/lib/x86_64-linux-gnu"

# Of Python's library: what nobody needs in a test.
SKIP = ("test", "tests", "__pycache__", "dist-packages", "site-packages", "idlelib", "tkinter", "lib2to3",
        "pydoc_data")

# Optional parts: programs (found in PATH, with their libraries) and other files.
PARTS = {
    "ip": (["ip", "tc", "bridge"], []),
    "rdma": (["rdma", "rping", "ib_write_bw"],
             ["/etc/libibverbs.d/rxe.driver", f"{ARCH}/libibverbs/librxe-rdmav*.so", f"{ARCH}/libgcc_s.so.1"]),
    "dbus": (["dbus-daemon", "busctl"], []),
    "mc": ([f"{BUILD}/mc-*", f"{BUILD}/mcctl"], [f"{ARCH}/libgcc_s.so.1"]),
    "qemu": ([],  # it finds its modules by its own place
             ["/usr/bin/qemu-system-x86_64", f"{ARCH}/qemu/accel-tcg-x86_64.so"] +
             [f"/usr/share/{d}/{f}" for d in ("qemu", "seabios")
              for f in ("bios-256k.bin", "linuxboot_dma.bin", "kvmvapic.bin", "pvh.bin")]),
    "python": (["/usr/bin/python3"], ["/usr/lib/python3.*"]),
}


def _which(name):
    if "/" in name:
        return name
    for d in PATH:
        if os.access(f"{d}/{name}", os.X_OK):
            return f"{d}/{name}"
    check(False, f"the program {name} is not installed")
    return None


def libraries(path):
    """The shared libraries of an ELF file, as the names that the loader opens."""
    with open(path, "rb") as f:
        if f.read(4) != b"\x7fELF":
            return []
    out = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                         check=False).stdout
    check("not found" not in out, f"{path} lacks a library:\n{out}")
    return re.findall(r"(/\S+) \(0x", out)


def _compile(name, *flags, also=()):
    """A program of tests/kernel, built in CACHE when it is older than its source."""
    src, out = f"{TOP}/tests/kernel/{name}.c", f"{CACHE}/{name}"
    if not os.path.exists(out) or os.path.getmtime(out) < max(os.path.getmtime(f) for f in (src, *also)):
        new = f"{out}.{os.getpid()}"
        run("gcc", "-std=gnu11", "-D_GNU_SOURCE", "-static", "-O2", "-Wall", "-Wextra", "-Werror", *flags, "-o", new,
            src)
        os.rename(new, out)
    return out


def build_init():
    """PID 1."""
    return _compile("init")


def build_frames():
    """The watcher of the firmware's frames."""
    return _compile("frames")


def build_firmware():
    """The guest of firmware.c, an image for QEMU's -bios."""
    script = f"{TOP}/tests/kernel/firmware.ld"
    return _compile("firmware", "-m32", "-march=i686", "-mno-sse", "-ffreestanding", "-fno-pic", "-fno-stack-protector",
                    "-fcf-protection=none", "-nostdlib", "-Wl,--build-id=none", f"-Wl,-T,{script}",
                    "-Wl,--oformat=binary", also=[script])


class Initramfs:
    """A tree in memory, written as an uncompressed cpio archive ("newc": emulated unpacking costs more)."""

    def __init__(self):
        self.entry = {}  # path -> (mode, content, host's file, device number)
        for d in ("bin", "dev", "proc", "sys", "tmp", "run", "root", "lib/modules", "var/lib", "etc"):
            self.mkdir(f"/{d}")
        self.entry["dev/console"] = (stat.S_IFCHR | 0o600, b"", None, (5, 1))
        self.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/:/bin/false\n"
                  "nobody:x:65534:65534::/:/bin/false\n")
        self.text("/etc/group", "root:x:0:\nmessagebus:x:100:\nnogroup:x:65534:\n")
        self.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")
        self.text("/etc/hosts", "127.0.0.1 localhost\n")

    def mkdir(self, path):
        """Makes a folder and those above it.  A link that stands for one is left."""
        parts = path.strip("/").split("/")
        for i in range(1, len(parts) + 1):
            self.entry.setdefault("/".join(parts[:i]), (stat.S_IFDIR | 0o755, b"", None, None))

    def text(self, path, content, mode=0o644):
        self.mkdir(os.path.dirname(path))
        self.entry[path.strip("/")] = (stat.S_IFREG | mode, content.encode(), None, None)

    def link(self, path, target):
        self.mkdir(os.path.dirname(path))
        self.entry[path.strip("/")] = (stat.S_IFLNK | 0o777, target.encode(), None, None)

    def add(self, src, dst=None):
        """Adds a file (programs with their libraries) or a folder of this host."""
        dst = dst or os.path.abspath(src)
        if os.path.isdir(src):
            self.mkdir(dst)
            for name in sorted(os.listdir(src)):
                if name not in SKIP and not name.startswith("config-"):
                    self.add(f"{src}/{name}", f"{dst}/{name}")
            return
        st = os.stat(src)
        self.mkdir(os.path.dirname(dst))
        self.entry[dst.strip("/")] = (stat.S_IFREG | stat.S_IMODE(st.st_mode), None, os.path.realpath(src), None)
        for lib in libraries(src):
            if lib.strip("/") not in self.entry:
                self.add(lib)

    def add_program(self, name):
        """Adds a program by name or path to /bin, where the shell finds it."""
        src = _which(name)
        self.add(src, f"/bin/{os.path.basename(src)}")

    def add_part(self, name):
        """Adds one of PARTS."""
        check(name in PARTS, f"no part '{name}'; there are: {', '.join(sorted(PARTS))}")
        programs, files = PARTS[name]
        for p in programs:
            found = glob.glob(p) if "*" in p else [p]
            check(found, f"nothing matches {p}: has everything been built?")
            for one in found:
                self.add_program(one)
        for pattern in files:
            for f in glob.glob(pattern):
                self.add(f)

    def add_busybox(self):
        """Adds what scripts need.  The shell is dash: busybox' own prefers its applets to programs in PATH."""
        self.add("/bin/dash", "/bin/sh")
        self.add("/bin/busybox", "/bin/busybox")
        for applet in run("/bin/busybox", "--list").split():
            if f"bin/{applet}" not in self.entry:
                self.link(f"/bin/{applet}", "busybox")
        for d in ("sbin", "usr/bin", "usr/sbin"):
            if d not in self.entry:
                self.link(f"/{d}", "/bin")

    def add_modules(self, kernel, names):
        """Adds modules ("NAME OPTIONS") with all they depend on; /modules.load tells init order and options."""
        options = dict(n.partition(" ")[::2] for n in names)
        order = kernel.load_order(options)
        base = f"/lib/modules/{kernel.version}"
        for path in order:
            self.add(f"{kernel.modules}/{path}", f"{base}/{path}")
        stems = {p: os.path.basename(p)[:-3].replace("-", "_") for p in order}
        self.text("/modules.load", "".join(f"{base}/{p} {options.get(stems[p], '')}\n" for p in order))
        for index, keep in (("modules.dep", lambda line: line.split(":")[0] in order),
                            ("modules.alias", lambda line: line.split()[-1] in stems.values())):
            with open(f"{kernel.modules}/{index}", encoding="ascii") as f:
                self.text(f"{base}/{index}", "".join(line for line in f if keep(line)))

    def write(self, path):
        """Writes the archive."""
        with open(path, "wb") as f:
            for i, name in enumerate(sorted(self.entry, key=lambda n: (n.count("/"), n)), 1):
                mode, content, src, dev = self.entry[name]
                if src:
                    with open(src, "rb") as s:
                        content = s.read()
                _cpio(f, i, name, mode, content, dev)
            _cpio(f, 0, "TRAILER!!!", 0, b"", None)


def _cpio(f, ino, name, mode, content, dev):
    major, minor = dev or (0, 0)
    raw = name.encode() + b"\0"
    fields = (ino, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(raw), 0)
    head = b"070701" + b"".join(b"%08x" % x for x in fields) + raw
    f.write(head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4))
