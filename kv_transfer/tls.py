"""Mutual TLS between the workers of a cluster: both ends show a certificate of the same authority.

Host names are not compared: workers are found by addresses that no certificate can name
beforehand, and each offer carries a token that its holder proves. Does not cover: making the files.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from core.errors import InvalidField


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files. ``ca``: who signed the certificates of all workers. ``key``: of
    ``cert``, this worker's own."""

    ca: str
    cert: str
    key: str

    def server_context(self) -> ssl.SSLContext:
        """Raises ``InvalidField`` if the files can't be used."""
        context = self._load(ssl.PROTOCOL_TLS_SERVER)
        # Nobody resumes, and a client that says nothing first should not have to read them.
        context.num_tickets = 0
        return context

    def client_context(self) -> ssl.SSLContext:
        """Raises ``InvalidField`` if the files can't be used."""
        return self._load(ssl.PROTOCOL_TLS_CLIENT)

    def _load(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.ca)
            context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidField(
                "tls", str(self), f"these files can't be used: {error}", reason="TLS_FILES"
            ) from error
        return context
