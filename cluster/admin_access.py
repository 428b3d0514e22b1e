"""Who may use the operators' port: who shows a token, or a certificate of the cluster's authority.

Covers: what the port asks of who comes. Does not cover: what can be asked there
(``cluster.admin``), the handshake (``wire.tls_grpc``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc.aio
from grpc_health.v1 import health

from core.api_keys import api_key_sha256, bearer_token
from core.config import ClusterSpec
from core.errors import Unauthenticated
from core.tls_files import ServerFiles
from wire.peer_check import CheckCalls, require_name

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

# Probes have nothing to show.
_OPEN_SERVICES = (health.SERVICE_NAME,)


def admin_interceptors(spec: ClusterSpec) -> list[CheckCalls]:
    """For the server of the operators' port; none if everybody may come who reaches it."""
    hashes = frozenset(spec.admin.token_sha256)
    if hashes:
        return [CheckCalls(lambda context: require_token(context, hashes), _OPEN_SERVICES)]
    if spec.tls is None or spec.tls.files is None:
        return []
    names = {spec.tls.name, spec.tls.operator_name}
    return [CheckCalls(lambda context: require_name(context, names), _OPEN_SERVICES)]


def admin_files(spec: ClusterSpec) -> ServerFiles | None:
    """What the port is opened with. Where operators show a token they need no certificate."""
    files = spec.tls_files
    if files is None:
        return None
    return replace(files.as_server, client_ca=None) if spec.admin.token_sha256 else files.as_server


def admin_warning(spec: ClusterSpec, host: str) -> str:
    """What people should know of a port that listens on a network at ``host``; "" if nothing."""
    if host.startswith("127.") or spec.tls_files is not None:
        return ""
    where = f"warning: the operators' port listens on {host}"
    if spec.admin.token_sha256:
        return f"{where} in the clear: tokens can be read on their way; set tls"
    return f"{where}: whoever reaches it can change the cluster; set tls or admin.token_sha256"


def require_token(context: Context, hashes: Collection[str]) -> None:
    """Raises ``Unauthenticated`` unless the call carries a token with one of these SHA-256."""
    told = dict(context.invocation_metadata() or ()).get("authorization", "")
    header = told if isinstance(told, str) else ""
    token = bearer_token(header)
    if token is None:
        raise Unauthenticated(
            "operators need a token here: give it by --admin-token-file or CROSSDOCK_ADMIN_TOKEN",
            reason="TOKEN_MISSING",
        )
    # Looked up by hash: how long that takes tells nothing about any token.
    if api_key_sha256(token) not in hashes:
        raise Unauthenticated("this token is not known here", reason="WRONG_TOKEN")
