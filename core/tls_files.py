"""Which files a worker's TLS identity is made of. Does not cover: reading them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files. ``ca``: who signed the certificates of all workers. ``key``: of
    ``cert``, this worker's own."""

    ca: str
    cert: str
    key: str
