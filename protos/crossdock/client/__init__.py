"""A light client: needs gRPC and nothing else of Crossdock but the wire format."""

from crossdock.client.aio import AsyncClient
from crossdock.client.errors import ServerError
from crossdock.client.sync import Client

__all__ = ["AsyncClient", "Client", "ServerError"]
