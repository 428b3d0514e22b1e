"""gRPC between members of the cluster, and its doors: over TLS where files are given.

The one place that makes channels and opens ports. Channels read the files when they are made, ports
at each connection: renewed certificates are taken up. Does not cover: who may call what
(``wire.peer_check``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from core.errors import InvalidField
from core.tls_files import ServerFiles, TlsFiles
from wire.renewal import Renewal
from wire.tls_contexts import new_client_context, server_context

Options = Sequence[tuple[str, int | str]]


def open_channel(address: str, tls: TlsFiles | None, options: Options = ()) -> grpc.aio.Channel:
    """To the member at ``address`` (host:port). Raises ``InvalidField`` if the files could never be
    used."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    named = (*options, ("grpc.ssl_target_name_override", tls.name))
    return grpc.aio.secure_channel(address, _identity(tls).newest(), options=named)


def open_port(server: grpc.aio.Server, address: str, files: ServerFiles | None) -> int:
    """The port that ``server`` listens on from its start, at ``address`` (host:port, 0: any free
    port). Raises ``RuntimeError`` as gRPC does, ``InvalidField`` if the files can't be used."""
    if files is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, _server_credentials(files))


@lru_cache(maxsize=16)
def _identity(tls: TlsFiles) -> Renewal[grpc.ChannelCredentials]:
    return Renewal((tls.ca, tls.cert, tls.key), lambda: _channel_credentials(tls))


def _channel_credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    # gRPC would only say that connecting failed.
    new_client_context(tls)
    ca, key, cert = (_read(path) for path in (tls.ca, tls.key, tls.cert))
    return grpc.ssl_channel_credentials(ca, key, cert)


def _server_credentials(files: ServerFiles) -> grpc.ServerCredentials:
    renewal = Renewal(files.paths, lambda: _server_configuration(files))
    first = renewal.newest()
    return grpc.dynamic_ssl_server_credentials(
        first, _news_of(renewal, first), require_client_authentication=files.client_ca is not None
    )


def _news_of(
    renewal: Renewal[grpc.ServerCertificateConfiguration],
    first: grpc.ServerCertificateConfiguration,
) -> Callable[[], Any]:
    """For gRPC, which asks at each connection: None as long as nothing changed."""
    told = [first]

    def news() -> Any:
        newest = renewal.newest()
        if newest is told[0]:
            return None
        told[0] = newest
        return newest

    return news


def _server_configuration(files: ServerFiles) -> grpc.ServerCertificateConfiguration:
    server_context(files)
    ca = None if files.client_ca is None else _read(files.client_ca)
    pair = (_read(files.key), _read(files.cert))
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        fix = f"can't be read: {error.strerror}"
        raise InvalidField("tls", path, fix, reason="TLS_FILES") from error
