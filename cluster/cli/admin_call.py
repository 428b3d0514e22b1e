"""Calls to the operators' door, and waiting until what was wished for is so."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from typing import Any

from cluster.cli.identity import admin_metadata, admin_tls
from cluster.progress import Progress
from cluster.running import does_it_run
from core.errors import CrossdockError, InvalidField, Unavailable

# Before a change every worker is asked how busy it is; one that hangs takes 10 s.
_TIMEOUT_S = 30.0
_POLL_S = 0.5
# What gRPC says when one side speaks TLS and the other does not, or shows no certificate.
_SPEAKS_OTHERWISE = re.compile(r"(?i)ssl|handshake|tls|socket closed|connection reset|broken pipe")


def call_admin(address: str, method: str, request: Any) -> Any:
    """The answer of ``ClusterAdmin.<method>`` at ``address``. Raises ``Unavailable``."""
    import grpc

    from crossdock.client.errors import decode
    from crossdock.v1 import admin_pb2_grpc

    metadata = admin_metadata()
    with open_admin_channel(address) as channel:
        stub = admin_pb2_grpc.ClusterAdminStub(channel)
        try:
            return getattr(stub, method)(request, timeout=_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            told = decode(error)
    if told.reason:
        raise Unavailable(f"{told.message} ({told.code.name})", reason=told.reason)
    if told.code is grpc.StatusCode.UNAVAILABLE and _SPEAKS_OTHERWISE.search(told.message):
        raise Unavailable(
            f"no answer from {address} ({told.message}): where the cluster has `tls`, commands "
            "need --tls-ca, and --tls-cert and --tls-key of an operator, before their name",
            reason="TLS_REFUSED",
        )
    raise Unavailable(
        f"no answer from {address} ({told.code.name}): {does_it_run()}",
        reason="NO_ANSWER",
    )


def open_admin_channel(address: str) -> Any:
    """Raises ``InvalidField`` if a file of ``tls`` can't be read."""
    from crossdock.client.tls import open_channel

    tls = admin_tls(address)
    try:
        return open_channel(address, tls, ())
    except OSError as error:
        raise InvalidField(
            "--tls-ca, --tls-cert or --tls-key",
            str(error.filename),
            f"can't be read: {error.strerror}",
        ) from None


def fetch_status(address: str, validate: bool = False) -> Any:
    """The ``ClusterStatus`` of the cluster at ``address``. Raises ``Unavailable``."""
    from crossdock.v1 import admin_pb2

    return call_admin(address, "GetStatus", admin_pb2.GetStatusRequest(validate=validate))


def wait_settled(
    address: str,
    timeout_s: float,
    progress: Progress,
    now: Callable[[], float] = time.monotonic,
) -> Any:
    """The status once as many workers serve as are wanted. Raises ``Unavailable``, saying what is
    missing, if that takes longer than ``timeout_s``."""
    end, shown = now() + timeout_s, ""
    while not (status := fetch_status(address)).settled:
        pending = describe_pending(status)
        if now() >= end:
            raise _too_late(timeout_s, pending)
        if pending != shown:
            progress.step(pending)
            shown = pending
        time.sleep(_POLL_S)
    return status


def wait_gone(
    address: str,
    workers: Collection[str],
    timeout_s: float,
    progress: Progress,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Until none of these ``workers`` is there any more. Raises ``Unavailable`` if that takes
    longer than ``timeout_s``."""
    end = now() + timeout_s
    while left := _still_there(address, workers):
        if now() >= end:
            raise _too_late(timeout_s, f"{', '.join(left)} still there")
        progress.step(f"waiting for {', '.join(left)}")
        time.sleep(_POLL_S)


def _still_there(address: str, workers: Collection[str]) -> list[str]:
    if not workers:
        return []
    return [w.worker for w in fetch_status(address).workers if w.worker in workers]


def describe_pending(status: Any) -> str:
    """E.g. "decode-1 starting, decode-0 draining (finishes what it has)"."""
    pending = [
        f"{worker.worker} {worker.state}" + (f" ({worker.detail})" if worker.detail else "")
        for worker in status.workers
        if worker.state != "ready" or worker.detail
    ]
    return ", ".join(pending) or "routers connect to new workers"


def _too_late(timeout_s: float, pending: str) -> CrossdockError:
    return Unavailable(
        f"the change goes on, but is not complete after {timeout_s:g} s: {pending}",
        reason="NOT_SETTLED",
    )
