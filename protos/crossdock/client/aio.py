"""The asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from crossdock.client.errors import decode
from crossdock.client.requests import CHANNEL_OPTIONS, generate_request
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1.inference_pb2_grpc import InferenceStub


class AsyncClient:
    """Talks to a router at ``address`` (host:port). All methods raise ``ServerError``."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = InferenceStub(self._channel)

    async def generate(
        self,
        text: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        request_id: str = "",
        timeout: float | None = None,
        **sampling: Any,
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Stream an answer. ``sampling``: fields of SamplingParams; ``timeout`` in seconds.

        Closing the iterator (``aclose``) before its end cancels the request.
        """
        request = generate_request(text, token_ids, request_id, sampling)
        call = self._stub.Generate(request, timeout=timeout)
        try:
            async for response in call:
                yield response
        except grpc.RpcError as error:
            raise decode(error) from error
        finally:
            call.cancel()

    async def abort(self, request_id: str) -> None:
        try:
            await self._stub.Abort(pb.AbortRequest(request_id=request_id))
        except grpc.RpcError as error:
            raise decode(error) from error

    async def model_info(self, timeout: float | None = None) -> pb.GetModelInfoResponse:
        try:
            request = pb.GetModelInfoRequest()
            info: pb.GetModelInfoResponse = await self._stub.GetModelInfo(request, timeout=timeout)
        except grpc.RpcError as error:
            raise decode(error) from error
        return info

    async def close(self) -> None:
        await self._channel.close(None)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
