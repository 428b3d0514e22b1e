"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc

from crossdock.client.errors import decode
from crossdock.client.requests import CHANNEL_OPTIONS, generate_request
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1.inference_pb2_grpc import InferenceStub


class Client:
    """Talks to a router at ``address`` (host:port). All methods raise ``ServerError``."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = InferenceStub(self._channel)

    def generate(
        self,
        text: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        request_id: str = "",
        timeout: float | None = None,
        **sampling: Any,
    ) -> Iterator[pb.GenerateResponse]:
        """Stream an answer. ``sampling``: fields of SamplingParams; ``timeout`` in seconds.

        Closing the iterator before its end cancels the request.
        """
        request = generate_request(text, token_ids, request_id, sampling)
        call = self._stub.Generate(request, timeout=timeout)
        return _responses(call)

    def abort(self, request_id: str) -> None:
        try:
            self._stub.Abort(pb.AbortRequest(request_id=request_id))
        except grpc.RpcError as error:
            raise decode(error) from error

    def model_info(self, timeout: float | None = None) -> pb.GetModelInfoResponse:
        try:
            request = pb.GetModelInfoRequest()
            info: pb.GetModelInfoResponse = self._stub.GetModelInfo(request, timeout=timeout)
        except grpc.RpcError as error:
            raise decode(error) from error
        return info

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _responses(call: Any) -> Iterator[pb.GenerateResponse]:
    try:
        yield from call
    except grpc.RpcError as error:
        raise decode(error) from error
    finally:
        call.cancel()
