# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates and keys for tests, made by certtool."""

import os
import subprocess

import mctest

TEMPLATE = {"ca": "ca\ncert_signing_key\ncrl_signing_key\n",
            "server": "tls_www_server\nsigning_key\n", "client": "tls_www_client\nsigning_key\n"}


def _tool(*args):
    r = subprocess.run(["certtool", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                       timeout=30)
    if r.returncode:
        raise mctest.Failure(f"certtool {' '.join(args)}: {r.stdout}")


def _make(kind, path, cn, lines, signer=None):
    """A key and a certificate at path-{key,cert}.pem."""
    if not os.path.exists(f"{path}-key.pem"):
        _tool("--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", f"{path}-key.pem")
    with open(f"{path}.tmpl", "w", encoding="ascii") as f:
        f.write(f"cn = {cn}\n{TEMPLATE[kind]}{lines}")
    args = ["--generate-certificate", "--load-ca-certificate", f"{signer}-cert.pem", "--load-ca-privkey",
            f"{signer}-key.pem"] if signer else ["--generate-self-signed"]
    _tool(*args, "--load-privkey", f"{path}-key.pem", "--template", f"{path}.tmpl", "--outfile", f"{path}-cert.pem")
    os.unlink(f"{path}.tmpl")


class Authority:
    """A CA in a directory of its own."""

    def __init__(self, path, cn="test CA"):
        os.makedirs(path)
        self.path = f"{path}/ca"
        _make("ca", self.path, cn, "expiration_days = 2\n")

    def host(self, path, cn, address, ends=("server", "client"), lines="expiration_days = 2\n"):
        """tls-dir of a host: certificates for both of its roles, with its address."""
        os.makedirs(path, exist_ok=True)
        with open(f"{self.path}-cert.pem", "rb") as src, open(f"{path}/ca-cert.pem", "wb") as dst:
            dst.write(src.read())
        for end in ends:
            _make(end, f"{path}/{end}", cn, (f"ip_address = {address}\n" if address else "") + lines, self.path)
        return path

    def revoke(self, path, cert):
        """A CRL with one certificate into a tls-dir."""
        with open(f"{path}/crl.tmpl", "w", encoding="ascii") as f:
            f.write("expiration_days = 2\ncrl_number = 1\n")
        _tool("--generate-crl", "--load-ca-certificate", f"{self.path}-cert.pem", "--load-ca-privkey",
              f"{self.path}-key.pem", "--load-certificate", cert, "--template", f"{path}/crl.tmpl", "--outfile",
              f"{path}/ca-crl.pem")


def psk(path, **keys):
    """A file of pre-shared keys."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as f:
        f.writelines(f"{name}:{key}\n" for name, key in keys.items())
    return path
