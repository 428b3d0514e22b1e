"""How a decode worker takes KV blocks over TCP."""

from __future__ import annotations

from dataclasses import dataclass

from core.tls_files import TlsFiles


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """``streams``: connections of one edge, which share its blocks; ``tls`` None: in the clear."""

    streams: int = 1
    tls: TlsFiles | None = None


PLAIN_TCP = TcpOptions()
