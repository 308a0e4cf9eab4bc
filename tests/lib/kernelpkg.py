# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packaged kernel for the kernel tests: fetched by name, cached, unpacked.

build/kernel holds the package, the uncompressed kernel (`vmlinux`, which QEMU boots by PVH:
that saves the emulated unpacking of the compressed one) and the modules with their
dependencies worked out.  Once that is there nothing needs the network.
"""

import fcntl
import glob
import lzma
import os
import re
import shutil
import struct
import subprocess

from mctest import TOP, check, run

CACHE = os.path.join(TOP, "build", "kernel")
META = "linux-image-amd64"

# Not of use in a virtual machine without screen: half of the package.
SKIP = ("sound", "drivers/media", "drivers/gpu", "drivers/iio", "drivers/usb", "drivers/hid", "drivers/hwmon",
        "drivers/comedi", "drivers/staging", "drivers/bluetooth", "drivers/net/wireless")

# What modules need without saying so in their dependencies.
HIDDEN = {"rdma_rxe": ["crc32_generic"]}


def _fetch(into):
    """Downloads the package that META stands for, unless one is there."""
    have = glob.glob(f"{into}/linux-image-*.deb")
    if have:
        return have[0]
    depends = subprocess.run(["apt-cache", "depends", META], stdout=subprocess.PIPE, text=True, check=False).stdout
    if "linux-image-" not in depends.replace(META, ""):
        run("apt-get", "update", "-qq", timeout=300)
        depends = run("apt-cache", "depends", META)
    m = re.search(r"Depends: (linux-image-\S+)", depends)
    check(m, f"apt knows no package behind {META}: are Debian's package lists there?")
    new = f"{into}/new"
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    run("apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", m.group(1), cwd=new, timeout=600)
    deb = glob.glob(f"{new}/*.deb")[0]
    name = f"{into}/{os.path.basename(deb)}"
    os.rename(deb, name)
    os.rmdir(new)
    return name


def _unpack_kernel(image, to):
    """Writes the ELF kernel that stands compressed in a bzImage (Documentation/x86/boot.rst)."""
    with open(image, "rb") as f:
        b = f.read()
    setup = (b[0x1f1] or 4) * 512 + 512
    offset, length = struct.unpack_from("<II", b, 0x248)
    payload = b[setup + offset:setup + offset + length]
    check(payload[:6] == b"\xfd7zXZ\0", f"{image} is not compressed by XZ")
    with open(to, "wb") as f:
        f.write(lzma.decompress(payload[:-4]))


def prepare():
    """Makes everything in CACHE; returns at once when it is there."""
    os.makedirs(CACHE, exist_ok=True)
    with open(f"{CACHE}/.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(f"{CACHE}/done"):
            return
        deb = _fetch(CACHE)
        tree = f"{CACHE}/tree"
        shutil.rmtree(tree, ignore_errors=True)
        os.makedirs(tree)
        skip = [f"--exclude=*/kernel/{d}/*" for d in SKIP]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as p:
            run("tar", "-x", "-C", tree, *skip, "./boot", "./lib/modules", stdin=p.stdout, timeout=300)
        check(p.returncode == 0, f"dpkg-deb {deb}: exit {p.returncode}")
        version = os.listdir(f"{tree}/lib/modules")[0]
        _unpack_kernel(f"{tree}/boot/vmlinuz-{version}", f"{CACHE}/vmlinux")
        run("depmod", "-b", tree, version, timeout=300)
        with open(f"{CACHE}/done", "w", encoding="ascii") as f:
            f.write(version)


class Kernel:
    """The prepared kernel."""

    def __init__(self):
        prepare()
        with open(f"{CACHE}/done", encoding="ascii") as f:
            self.version = f.read()
        self.vmlinux = f"{CACHE}/vmlinux"
        self.modules = f"{CACHE}/tree/lib/modules/{self.version}"

    def load_order(self, names):
        """The files to load, relative to self.modules, dependencies first; built-in ones need none."""
        order = []
        for name in names:
            for one in [*HIDDEN.get(name, []), name]:
                r = subprocess.run(["modprobe", "-d", f"{CACHE}/tree", "-S", self.version, "--show-depends", one],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
                check(r.returncode == 0, f"no module {one} in {self.version}: {r.stderr.strip()}")
                for line in r.stdout.splitlines():
                    word = line.split()
                    if word[0] != "insmod":
                        continue
                    path = os.path.relpath(word[1], self.modules)
                    if path not in order:
                        order.append(path)
        return order
