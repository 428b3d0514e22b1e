"""Mutual TLS between the workers of a cluster: both ends show a certificate of the same authority.

Host names are not compared: workers are found by addresses that no certificate can name
beforehand, and each offer carries a token that its holder proves. Does not cover: making the files.
"""

from __future__ import annotations

import ssl

from core.errors import InvalidField
from core.tls_files import TlsFiles


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Raises ``InvalidField`` if the files can't be used."""
    context = _load(files, ssl.PROTOCOL_TLS_SERVER)
    # Nobody resumes, and a client that says nothing first should not have to read them.
    context.num_tickets = 0
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Raises ``InvalidField`` if the files can't be used."""
    return _load(files, ssl.PROTOCOL_TLS_CLIENT)


def _load(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(files.ca)
    except (OSError, ssl.SSLError) as error:
        fix = f"can't be used: {error}; must be the PEM file of who signed all certificates"
        raise InvalidField("tls.ca", files.ca, fix, reason="TLS_FILES") from error
    try:
        # The password: one asked for on the terminal would stop a worker for good.
        context.load_cert_chain(files.cert, files.key, password="")
    except (OSError, ssl.SSLError) as error:
        fix = (
            f"can't be used with tls.key = {files.key!r}: {error}; must be PEM files of a "
            "certificate and its private key, without a password"
        )
        raise InvalidField("tls.cert", files.cert, fix, reason="TLS_FILES") from error
    return context
