"""TLS 1.3 for plain sockets and HTTP: what a server asks of who comes, what a client of a server.

A member of the cluster is known by a certificate of the cluster's authority that carries the
members' DNS name. The host that it runs on is not compared: workers are found by addresses that no
certificate can name beforehand. Servers take up certificates that are renewed on disk.
Does not cover: gRPC (``wire.tls_grpc``), whether the files suit each other (``wire.tls_check``).
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from core.errors import InvalidField
from core.tls_files import ServerFiles, TlsFiles
from wire.renewal import Renewal

Connection = ssl.SSLSocket | ssl.SSLObject


def server_context(files: ServerFiles, *, open_paths: bool = False) -> ssl.SSLContext:
    """Takes only clients with a certificate of ``files.client_ca``, if there is one.

    ``open_paths``: also those without, as far as the server itself does not ask for it. Raises
    ``InvalidField`` if the files can't be used.
    """
    renewal = Renewal(files.paths, lambda: _loaded_server(files, open_paths))
    first = renewal.newest()

    def use_newest(connection: Connection, name: str | None, context: ssl.SSLContext) -> None:
        del name
        newest = renewal.newest()
        if newest is not context:
            connection.context = newest

    # Called in each handshake, also if the client names nobody.
    first.sni_callback = use_newest
    return first


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For connections to members; pass ``files.name`` as their host name. Not to be changed: it is
    shared. Raises as `server_context`, but only if the files could never be used."""
    return _client_renewal(files).newest()


def new_client_context(files: TlsFiles) -> ssl.SSLContext:
    """One of the caller's own, of the files as they are now."""
    context = _new_context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    _trust(context, files.ca, "tls.ca")
    _show(context, files.cert, files.key, "tls")
    return context


def dns_names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Of a peer's certificate, as ``getpeercert`` gives it."""
    names = (certificate or {}).get("subjectAltName", ())
    return tuple(name for kind, name in names if kind == "DNS")


def require_name(connection: Connection, name: str) -> None:
    """Raises ``ConnectionError`` unless the peer's certificate carries the DNS ``name``."""
    names = dns_names(connection.getpeercert())
    if name not in names:
        told = ", ".join(names) or "no DNS name"
        raise ConnectionError(f"the peer's certificate is for {told}, and not for {name}")


@lru_cache(maxsize=16)
def _client_renewal(files: TlsFiles) -> Renewal[ssl.SSLContext]:
    return Renewal((files.ca, files.cert, files.key), lambda: new_client_context(files))


def _loaded_server(files: ServerFiles, open_paths: bool) -> ssl.SSLContext:
    context = _new_context(ssl.PROTOCOL_TLS_SERVER)
    # Nobody resumes, and a client that says nothing first should not have to read them.
    context.num_tickets = 0
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL if open_paths else ssl.CERT_REQUIRED
        of_members = files.field == "tls"
        ca_field = f"{files.field}.ca" if of_members else f"{files.field}.client_ca"
        _trust(context, files.client_ca, ca_field)
    _show(context, files.cert, files.key, files.field)
    return context


def _new_context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _trust(context: ssl.SSLContext, ca: str, field: str) -> None:
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        fix = f"can't be used: {error}; must be the PEM file of who signed all certificates"
        raise InvalidField(field, ca, fix, reason="TLS_FILES") from error


def _show(context: ssl.SSLContext, cert: str, key: str, field: str) -> None:
    try:
        # The password: one asked for on the terminal would stop a worker for good.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ssl.SSLError) as error:
        fix = (
            f"can't be used with {field}.key = {key!r}: {error}; must be PEM files of a "
            "certificate and its private key, without a password"
        )
        raise InvalidField(f"{field}.cert", cert, fix, reason="TLS_FILES") from error
