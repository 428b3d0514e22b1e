"""Whom commands trust and what they show of themselves: options of `crossdock` before any command.

A cluster that runs under a name on this machine is known with its files. Does not cover: API keys
of tenants (``cluster.cli.options``).
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.tls_files import MEMBER_NAME

if TYPE_CHECKING:
    from crossdock.client import Tls

_ADMIN_TOKEN = "CROSSDOCK_ADMIN_TOKEN"
_METRICS_TOKEN = "CROSSDOCK_METRICS_TOKEN"

CaOption = Annotated[
    Path | None,
    typer.Option(envvar="CROSSDOCK_TLS_CA", help="PEM file of who signed servers' certificates."),
]
DoorCaOption = Annotated[
    Path | None,
    typer.Option(
        envvar="CROSSDOCK_TLS_DOOR_CA",
        help="PEM file of who signed certificates of routers, if that is not --tls-ca.",
    ),
]
CertOption = Annotated[
    Path | None,
    typer.Option(envvar="CROSSDOCK_TLS_CERT", help="PEM file of the certificate to show."),
]
KeyOption = Annotated[
    Path | None, typer.Option(envvar="CROSSDOCK_TLS_KEY", help="PEM file of its key.")
]
NameOption = Annotated[
    str,
    typer.Option(
        envvar="CROSSDOCK_TLS_NAME",
        help="DNS name that certificates of routers must have; else that in the address.",
    ),
]
MemberNameOption = Annotated[
    str,
    typer.Option(
        envvar="CROSSDOCK_TLS_MEMBER_NAME",
        help="DNS name that the certificate at the operators' port must have: `tls.name`.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        envvar="CROSSDOCK_ADMIN_TOKEN_FILE",
        help=f"File with an operator's token; or the token itself in {_ADMIN_TOKEN}.",
    ),
]
MetricsTokenFileOption = Annotated[
    Path | None,
    typer.Option(
        envvar="CROSSDOCK_METRICS_TOKEN_FILE",
        help=f"File with the token of the routers' metrics; or the token in {_METRICS_TOKEN}.",
    ),
]


@dataclass(frozen=True, slots=True)
class Identity:
    """As the options say. ``door_ca``: of routers, else ``ca``; ``name``: of routers, "" is that in
    the address; ``member_name``: of the cluster's processes."""

    ca: Path | None = None
    door_ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str = ""
    member_name: str = MEMBER_NAME
    token_file: Path | None = None
    metrics_token_file: Path | None = None


# Of the command that runs.
_NOTHING = Identity()
_GIVEN: ContextVar[Identity] = ContextVar("identity", default=_NOTHING)


def remember_identity(
    tls_ca: CaOption = None,
    tls_door_ca: DoorCaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_name: NameOption = "",
    tls_member_name: MemberNameOption = MEMBER_NAME,
    admin_token_file: TokenFileOption = None,
    metrics_token_file: MetricsTokenFileOption = None,
) -> None:
    """Serve a language model with separate prefill and decode workers."""
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("give both --tls-cert and --tls-key, or neither")
    files = (tls_ca, tls_door_ca, tls_cert, tls_key)
    tokens = (admin_token_file, metrics_token_file)
    _GIVEN.set(Identity(*files, tls_name, tls_member_name, *tokens))


def admin_tls(address: str) -> Tls | None:
    """For the operators' port at ``address``; None: in the clear."""
    from cluster.running import find_by_address
    from crossdock.client import Tls

    own = _GIVEN.get()
    if own.ca is not None:
        return Tls(own.ca, own.cert, own.key, own.member_name)
    cluster = find_by_address(address)
    if cluster is None or not cluster.tls_ca:
        return None
    return Tls(cluster.tls_ca, cluster.tls_cert, cluster.tls_key, cluster.tls_name)


def door_tls(address: str, wanted: bool = False) -> Tls | None:
    """For a door for clients at ``address``; None: in the clear. ``wanted``: TLS in any case."""
    from cluster.running import find_by_address
    from crossdock.client import Tls

    cluster = find_by_address(address)
    known = cluster is not None and bool(cluster.door_cert)
    if not wanted and not known:
        return None
    own = _GIVEN.get()
    ca = own.door_ca or own.ca
    if cluster is None or not known:
        return Tls(ca, own.cert, own.key, own.name)
    return Tls(ca or cluster.door_cert, own.cert, own.key, own.name or cluster.door_name)


def admin_metadata() -> tuple[tuple[str, str], ...]:
    """What a call of operators carries. Raises ``InvalidField`` if the token can't be read."""
    from crossdock.client.connection import authorization

    return authorization(_token(_GIVEN.get().token_file, "--admin-token-file", _ADMIN_TOKEN))


def metrics_token() -> str | None:
    """None: none was given. Raises ``InvalidField`` if it can't be read."""
    return _token(_GIVEN.get().metrics_token_file, "--metrics-token-file", _METRICS_TOKEN)


def _token(path: Path | None, option: str, variable: str) -> str | None:
    from core.errors import InvalidField

    if path is None:
        token, given = os.environ.get(variable, ""), (variable, "…")
        if not token:
            return None
    else:
        given = (option, str(path))
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InvalidField(*given, f"holds no token: {error}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise InvalidField(*given, "holds no token: one line of printable ASCII characters")
    return token
