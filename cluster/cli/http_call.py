"""HTTP of the quick commands: in the clear or over TLS, by the standard library alone."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import TYPE_CHECKING

from core.errors import InvalidField

if TYPE_CHECKING:
    from crossdock.client import Tls


def open_connection(
    address: str, tls: Tls | None, timeout_s: float, *, compare_names: bool = True
) -> http.client.HTTPConnection:
    """To host:port, not connected yet. ``compare_names`` false: the certificate may be for any
    name.

    Raises ``InvalidField`` if a file can't be used.
    """
    if tls is None:
        return http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        context = tls.ssl_context()
    except OSError as error:
        fix = f"can't be used: {error}"
        raise InvalidField("--tls-ca, --tls-cert or --tls-key", str(tls.ca), fix) from None
    context.check_hostname = compare_names
    return _NamedConnection(address, context, tls.server_name, timeout_s)


def explain(error: OSError | http.client.HTTPException) -> str:
    """Why there was no answer. What came instead of one may be anything, and is not shown."""
    if type(error) is http.client.BadStatusLine:
        return "what listens there does not speak HTTP"
    return str(error) or type(error).__name__


class _NamedConnection(http.client.HTTPSConnection):
    """``name``: that of the server's certificate; "": that in the address."""

    def __init__(self, address: str, context: ssl.SSLContext, name: str, timeout_s: float) -> None:
        super().__init__(address, timeout=timeout_s, context=context)
        self._named_context = context
        self._name = name

    def connect(self) -> None:
        connection = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._named_context.wrap_socket(
            connection, server_hostname=self._name or self.host
        )
