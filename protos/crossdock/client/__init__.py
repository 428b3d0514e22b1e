"""A light client: needs gRPC and nothing else of Crossdock but the wire format.

Ships with ``crossdock.v1`` as a distribution of its own, ``crossdock-client``.
"""

from crossdock.client.aio import AsyncClient
from crossdock.client.answers import Answer, Output
from crossdock.client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Overloaded,
    ServerError,
    Unauthenticated,
    Unavailable,
)
from crossdock.client.retries import RetryPolicy
from crossdock.client.sync import Client
from crossdock.client.tls import Tls

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Answer",
    "AsyncClient",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "InvalidArgument",
    "NotFound",
    "Output",
    "Overloaded",
    "RetryPolicy",
    "ServerError",
    "Tls",
    "Unauthenticated",
    "Unavailable",
]
