"""Which files a process shows who it is with, and knows others by. Does not cover: reading them."""

from __future__ import annotations

from dataclasses import dataclass

MEMBER_NAME = "crossdock"
OPERATOR_NAME = "crossdock-operator"


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Paths of PEM files. ``key``: of ``cert``; ``client_ca``: who signs the certificates of those
    who may come, None: who comes needs none. ``field``: the setting they are from, for errors."""

    cert: str
    key: str
    client_ca: str | None = None
    field: str = "tls"

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.cert, self.key, *((self.client_ca,) if self.client_ca else ()))


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The identity of a member of the cluster, by paths of PEM files.

    ``ca``: who signed the certificates of all members. ``key``: of ``cert``, this member's own.
    ``name``: the DNS name that the certificates of members, and no others, carry.
    """

    ca: str
    cert: str
    key: str
    name: str = MEMBER_NAME

    @property
    def as_server(self) -> ServerFiles:
        """For a port that only those come to whom the same authority has signed."""
        return ServerFiles(self.cert, self.key, self.ca)


def server_files(tls: TlsFiles | None) -> ServerFiles | None:
    return None if tls is None else tls.as_server
