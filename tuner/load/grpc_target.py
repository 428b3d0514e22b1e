"""Crossdock's own gRPC door: ``Inference.Generate`` of inference.proto, tokens by ticket or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import cycle
from urllib.parse import urlsplit

import grpc
import grpc.aio

from core.errors import InvalidField, Unavailable
from crossdock.client.aio_tickets import TicketReader
from crossdock.client.connection import CHANNEL_OPTIONS, authorization
from crossdock.client.errors import ServerError, decode
from crossdock.client.requests import generate_request
from crossdock.client.tls import Tls, open_async_channel
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1.inference_pb2_grpc import InferenceStub
from tuner.load.prompts import Prompt
from tuner.load.records import CONNECT_FAILED, DISCONNECTED, Usage
from tuner.load.target import AnswerLog, ServedModel

# One connection's calls share its flow control and a limit on concurrent streams.
CONNECTIONS = 8


class GrpcTarget:
    """Made inside a running event loop; must be closed. ``address``: host:port; ``tls`` None: in
    the clear. ``by_ticket``: tokens are read from the decode workers, which ``check`` makes sure
    of."""

    def __init__(
        self,
        address: str,
        ignore_eos: bool = True,
        api_key: str | None = None,
        tls: Tls | None = None,
        by_ticket: bool = False,
    ) -> None:
        self._address = address
        self._by_ticket = by_ticket
        self._ignore_eos = ignore_eos
        self._metadata = authorization(api_key)
        self._channels = [
            open_async_channel(address, tls, CHANNEL_OPTIONS) for _ in range(CONNECTIONS)
        ]
        workers_tls = None if tls is None else tls.for_workers_of(address)
        self._readers = [
            TicketReader(InferenceStub(channel), self._metadata, workers_tls)
            for channel in self._channels
        ]
        self._turns = cycle(self._readers)

    async def describe(self) -> ServedModel:
        try:
            info = await next(self._turns).stub.GetModelInfo(
                pb.GetModelInfoRequest(), metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise self._failure(decode(error)) from None
        return ServedModel(
            info.model, info.max_model_len, info.vocab_size, tuple(info.eos_token_ids)
        )

    async def check(self, prompt: Prompt, output_tokens: int) -> AnswerLog:
        answer = AnswerLog(lambda: 0.0)
        await self.send(self.prepare(prompt, output_tokens), answer)
        if self._by_ticket and not any(reader.workers.all for reader in self._readers):
            fix = (
                "no decode worker could be read from: the cluster needs token_streams.enabled, and "
                "this host has to reach the decode workers' nodes; or leave it out"
            )
            raise InvalidField("--by-ticket", True, fix)
        return answer

    def prepare(self, prompt: Prompt, output_tokens: int) -> pb.GenerateRequest:
        sampling: dict[str, object] = {"max_tokens": output_tokens, "temperature": 0.0}
        if self._ignore_eos:
            sampling |= {"ignore_eos": True, "min_tokens": output_tokens}
        if isinstance(prompt, str):
            return generate_request(prompt, None, "", None, sampling, self._by_ticket)
        return generate_request(None, prompt.tolist(), "", None, sampling, self._by_ticket)

    async def send(self, prepared: pb.GenerateRequest, answer: AnswerLog) -> None:
        reader = next(self._turns)
        call = reader.stub.Generate(prepared, metadata=self._metadata)
        try:
            if self._by_ticket:
                async with aclosing(reader.responses(call, prepared, None)) as responses:
                    await _note_all(responses, answer)
            else:
                await _note_all(call, answer)
        except grpc.RpcError as error:
            raise self._failure(decode(error)) from None
        except ServerError as error:
            raise self._failure(error) from None
        finally:
            call.cancel()
        if answer.usage is None:
            message = "the stream broke off before the answer had ended"
            raise Unavailable(message, reason=DISCONNECTED)
        answer.require_tokens()

    async def close(self) -> None:
        for reader in self._readers:
            await reader.close()
        for channel in self._channels:
            await channel.close(None)

    def _failure(self, failure: ServerError) -> Unavailable:
        """By the server's reason; by the status where the transport itself failed."""
        if failure.reason:
            return Unavailable(failure.message, reason=failure.reason)
        if failure.code is grpc.StatusCode.UNAVAILABLE and "connect" in failure.message:
            message = f"can't connect to {self._address}: {failure.message}"
            return Unavailable(message, reason=CONNECT_FAILED)
        return Unavailable(failure.message, reason=f"GRPC_{failure.code.name}")


def grpc_address(option: str, url: str) -> str:
    """host:port of `grpc://host:port` or `grpcs://host:port`; raises ``InvalidField``."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not (host and port) or parts.path.strip("/"):
        raise InvalidField(option, url, "must look like grpc://127.0.0.1:50051")
    return parts.netloc


async def _note_all(responses: AsyncIterator[pb.GenerateResponse], answer: AnswerLog) -> None:
    async for response in responses:
        _note(response, answer)


def _note(response: pb.GenerateResponse, answer: AnswerLog) -> None:
    if response.HasField("chunk"):
        if response.chunk.token_ids:
            answer.chunk(len(response.chunk.token_ids))
        return
    done = response.complete
    answer.usage = Usage(done.prompt_tokens, done.completion_tokens, done.cached_tokens)
