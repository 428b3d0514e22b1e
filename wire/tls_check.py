"""Whether certificate files work, found out before anybody connects: by a handshake with ourselves.

So what is refused, and in which words, is what OpenSSL would say later: a wrong authority, an
expired certificate, one that may not be a server's. Does not cover: other nodes' files.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from core.errors import InvalidField
from core.tls_files import ServerFiles, TlsFiles
from wire.tls_contexts import dns_names, new_client_context, server_context


def check_files(files: TlsFiles | None) -> None:
    """As `check_member`, where there may be none."""
    if files is not None:
        check_member(files)


def check_member(files: TlsFiles) -> None:
    """Raises ``InvalidField`` if these files don't make a member of the cluster."""
    client, server = new_client_context(files), server_context(files.as_server)
    client.check_hostname = False
    try:
        names = dns_names(_shake_hands(client, server))
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason or str(error)
        fix = (
            f"is no certificate that tls.ca = {files.ca!r} vouches for: {reason}; it must be "
            "signed by that authority, in force, and for both server and client authentication"
        )
        raise InvalidField("tls.cert", files.cert, fix, reason="TLS_FILES") from error
    if files.name not in names:
        told = ", ".join(names) or "no DNS name"
        fix = (
            f"is for {told}: it must have {files.name} among its DNS names (subjectAltName), or "
            "set tls.name to one that the certificates of all members have, and no others"
        )
        raise InvalidField("tls.cert", files.cert, fix, reason="TLS_FILES")


def check_door(files: ServerFiles) -> tuple[str, ...]:
    """DNS names of a door's certificate. Raises ``InvalidField`` if it can't be shown, or is out of
    date; who signed it is the clients' business."""
    names = dns_names(_shown(files))
    if files.client_ca is not None:
        server_context(files)
    return names


def expires_at(files: ServerFiles) -> float:
    """When the certificate runs out, in Unix time. Raises ``InvalidField`` as `check_door`."""
    return ssl.cert_time_to_seconds(str((_shown(files) or {})["notAfter"]))


def _shown(files: ServerFiles) -> Mapping[str, object] | None:
    """What a client sees of the certificate that trusts just this one."""
    server = server_context(ServerFiles(files.cert, files.key, None, files.field))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # Whoever signed it.
    client.load_verify_locations(files.cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        return _shake_hands(client, server)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason or str(error)
        fix = f"can't be a server's certificate: {reason}; it must be in force, and a server's"
        raise InvalidField(f"{files.field}.cert", files.cert, fix, reason="TLS_FILES") from error


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> Mapping[str, object] | None:
    """What the client is shown. Raises ``ssl.SSLError`` of the side that refused first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    # Hello, the server's answer, the client's certificate.
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0].getpeercert()
