"""Certificates of an authority that a test makes for itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

from core.tls_files import TlsFiles


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_authority(folder: Path) -> None:
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", "/CN=authority", "-days", "2"),
        *("-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem"),
    )


def make_worker(folder: Path, name: str, authority: Path) -> TlsFiles:
    request = folder / f"{name}.csr"
    files = TlsFiles(f"{folder}/ca.pem", f"{folder}/{name}.pem", f"{folder}/{name}.key")
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={name}", "-keyout", files.key, "-out", str(request)),
    )
    openssl(
        *("x509", "-req", "-in", str(request), "-days", "2", "-set_serial", "1"),
        *("-CA", f"{authority}/ca.pem", "-CAkey", f"{authority}/ca.key", "-out", files.cert),
    )
    return files
