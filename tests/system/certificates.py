"""Certificates of an authority that a test makes for itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

from core.tls_files import MEMBER_NAME, TlsFiles

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_authority(folder: Path) -> None:
    openssl(
        *("req", "-x509", *_NEW_KEY, "-subj", "/CN=authority", "-days", "2"),
        *("-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem"),
    )


def make_worker(
    folder: Path, name: str, authority: Path, dns: str = MEMBER_NAME, kind: str = "DNS"
) -> TlsFiles:
    """``name``: of the files; ``dns``: what the certificate is for, as a name of ``kind``."""
    files = TlsFiles(f"{folder}/ca.pem", f"{folder}/{name}.pem", f"{folder}/{name}.key")
    request = f"{folder}/{name}.csr"
    openssl(
        *("req", *_NEW_KEY, "-subj", f"/CN={name}", "-addext", f"subjectAltName={kind}:{dns}"),
        *("-keyout", files.key, "-out", request),
    )
    openssl(
        *("x509", "-req", "-in", request, "-days", "2", "-copy_extensions", "copy"),
        *("-CA", f"{authority}/ca.pem", "-CAkey", f"{authority}/ca.key", "-out", files.cert),
    )
    return files


def make_expired(folder: Path, name: str, authority: Path) -> TlsFiles:
    """A member's, as long as it lasted."""
    files = make_worker(folder, name, authority)
    index = folder / "index.txt"
    index.write_text("")
    config = folder / "ca.conf"
    config.write_text(
        f"[ca]\ndefault_ca = it\n[it]\ndatabase = {index}\nnew_certs_dir = {folder}\n"
        "rand_serial = yes\ndefault_md = sha256\npolicy = any\ncopy_extensions = copy\n"
        "[any]\ncommonName = supplied\n"
    )
    openssl(
        *("ca", "-batch", "-config", str(config), "-in", f"{folder}/{name}.csr", "-notext"),
        *("-startdate", "20200101000000Z", "-enddate", "20200102000000Z"),
        *("-cert", f"{authority}/ca.pem", "-keyfile", f"{authority}/ca.key", "-out", files.cert),
    )
    return files
