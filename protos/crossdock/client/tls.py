"""TLS to a cluster's doors: whom a client trusts, and what it shows of itself."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

File = str | PathLike[str]
Options = Sequence[tuple[str, int | str]]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. ``ca``: who signed the server's certificate, None: one of the authorities that
    everybody knows. ``cert`` and ``key``: this client's own, where the server asks for one.
    ``server_name``: the DNS name that the server's certificate must have, if not that in the
    address."""

    ca: File | None = None
    cert: File | None = None
    key: File | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("give both cert and key, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """For gRPC; reads the files. Raises ``OSError``."""
        return grpc.ssl_channel_credentials(*(_read(f) for f in (self.ca, self.key, self.cert)))

    def ssl_context(self) -> ssl.SSLContext:
        """For HTTP. Raises ``OSError``, ``ssl.SSLError`` among them."""
        context = ssl.create_default_context()
        if self.ca is not None:
            context.load_verify_locations(self.ca)
            # Also a server's own certificate may be given.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key, password="")
        return context

    def for_workers_of(self, address: str) -> Tls:
        """Decode workers show the same certificate as the router at ``address`` (host:port)."""
        if self.server_name:
            return self
        host = address.rpartition(":")[0].rpartition("/")[2]
        return replace(self, server_name=host.strip("[]"))

    def options(self) -> Options:
        """For gRPC's channels."""
        if not self.server_name:
            return ()
        return (("grpc.ssl_target_name_override", self.server_name),)


def open_channel(address: str, tls: Tls | None, options: Options) -> grpc.Channel:
    """To the server at ``address`` (host:port); ``tls`` None: in the clear."""
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.credentials(), options=(*options, *tls.options()))


def open_async_channel(address: str, tls: Tls | None, options: Options) -> grpc.aio.Channel:
    """The same for asyncio."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    chosen: Any = (*options, *tls.options())
    return grpc.aio.secure_channel(address, tls.credentials(), options=chosen)


def _read(file: File | None) -> bytes | None:
    return None if file is None else Path(file).read_bytes()
