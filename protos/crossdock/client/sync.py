"""The blocking client."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Any

import grpc

from crossdock.client import health
from crossdock.client.answers import Answer, AnswerBuilder
from crossdock.client.connection import CHANNEL_OPTIONS, authorization
from crossdock.client.errors import ServerError, Unavailable, decode
from crossdock.client.requests import generate_request, retry_id
from crossdock.client.retries import RetryPolicy, Tries
from crossdock.client.sync_tickets import TicketReader
from crossdock.client.tls import Tls, open_channel
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1.inference_pb2_grpc import InferenceStub


class Client:
    """Talks to a router at ``address`` (host:port). All methods raise ``ServerError``.
    ``api_key``: as the cluster's operator gave it; None where none is needed. ``tls`` None: in the
    clear.

    Threads may share it. ``close`` it, or use it as a context manager. ``timeout`` is in seconds
    everywhere, for everything that a call does: its tries, the pauses between them, the last token.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        self._channel = open_channel(address, tls, CHANNEL_OPTIONS)
        self._stub = InferenceStub(self._channel)
        self._metadata = authorization(api_key)
        workers_tls = None if tls is None else tls.for_workers_of(address)
        self._tickets = TicketReader(self._stub, self._metadata, workers_tls)
        self._policy = retries or RetryPolicy()
        self._random = Random()
        self._renamed: dict[str, str] = {}

    def generate(
        self,
        text: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        request_id: str = "",
        priority: int | None = None,
        timeout: float | None = None,
        by_ticket: bool = False,
        **sampling: Any,
    ) -> Generator[pb.GenerateResponse]:
        """Stream an answer; ``index`` of a response says which of the n sequences it is about.

        ``sampling``: fields of SamplingParams. The request is sent when the first response is
        asked for; closing the iterator before its end cancels it, on all workers. It is tried
        again only while nothing has been received; a retry runs under another id, since the server
        keeps the first one taken.

        ``by_ticket``: tokens come from the decode worker itself where the cluster allows it and
        this client reaches it, else from the router as ever.
        """
        request = generate_request(text, token_ids, request_id, priority, sampling, by_ticket)
        return self._stream(request, timeout)

    def answer(
        self,
        text: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        request_id: str = "",
        priority: int | None = None,
        timeout: float | None = None,
        by_ticket: bool = False,
        **sampling: Any,
    ) -> Answer:
        """The whole answer; arguments as in ``generate``."""
        request = generate_request(text, token_ids, request_id, priority, sampling, by_ticket)
        builder = AnswerBuilder(sampling.get("n") or 1)
        for response in self._stream(request, timeout):
            builder.add(response)
        return builder.build(request.request_id)

    def abort(self, request_id: str, timeout: float | None = None) -> None:
        """End a running request by its id; ``NotFound`` if there is none."""
        request = pb.AbortRequest(request_id=self._renamed.get(request_id, request_id))
        try:
            self._stub.Abort(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise decode(error) from error

    def model_info(self, timeout: float | None = None) -> pb.GetModelInfoResponse:
        request = pb.GetModelInfoRequest()
        tries = self._tries(self._policy, timeout)
        while True:
            left = tries.remaining(time.monotonic())
            try:
                info: pb.GetModelInfoResponse = self._stub.GetModelInfo(
                    request, timeout=left, metadata=self._metadata
                )
            except grpc.RpcError as error:
                self._pause_or_raise(tries, error)
            else:
                return info

    def is_ready(self, timeout: float | None = None) -> bool:
        """Whether requests can be served now; False also if nobody answers at the address."""
        try:
            response = health.check(self._channel)(health.REQUEST, timeout=timeout)
        except grpc.RpcError as error:
            failure = decode(error)
            if isinstance(failure, Unavailable):
                return False
            raise failure from error
        return health.is_serving(response)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Return when requests can be served; raises DeadlineExceeded after ``timeout``."""
        tries = self._tries(replace(self._policy, max_tries=sys.maxsize), timeout)
        while not self._watch(tries):
            pass

    def close(self) -> None:
        """Ends what still runs."""
        self._tickets.close()
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

    def _stream(
        self, request: pb.GenerateRequest, timeout: float | None
    ) -> Generator[pb.GenerateResponse]:
        given = request.request_id
        tries = self._tries(self._policy, timeout)
        try:
            while True:
                left = tries.remaining(time.monotonic())
                call = self._stub.Generate(request, timeout=left, metadata=self._metadata)
                responses: Any = call
                if request.by_ticket:
                    responses = self._tickets.responses(call, request, left)
                try:
                    for response in responses:
                        tries.received()
                        yield response
                    return
                except grpc.RpcError as error:
                    self._pause_or_raise(tries, error)
                except ServerError as failure:
                    self._pause_after(tries, failure)
                finally:
                    call.cancel()
                    if request.by_ticket:
                        responses.close()
                request.request_id = self._renamed[given] = retry_id(given)
        finally:
            if self._renamed.get(given) == request.request_id:
                del self._renamed[given]

    def _watch(self, tries: Tries) -> bool:
        """One call; True if the server said that it serves, False if the call broke off."""
        left = tries.remaining(time.monotonic())
        call = health.watch(self._channel)(health.REQUEST, timeout=left, wait_for_ready=True)
        try:
            for response in call:
                if health.is_serving(response):
                    return True
        except grpc.RpcError as error:
            self._pause_or_raise(tries, error)
        finally:
            call.cancel()
        return False

    def _tries(self, policy: RetryPolicy, timeout: float | None) -> Tries:
        deadline = None if timeout is None else time.monotonic() + timeout
        return Tries(policy, deadline, self._random)

    def _pause_or_raise(self, tries: Tries, error: grpc.RpcError) -> None:
        self._pause_after(tries, decode(error), error)

    def _pause_after(
        self, tries: Tries, failure: ServerError, cause: grpc.RpcError | None = None
    ) -> None:
        pause = tries.pause_after(failure, time.monotonic())
        if pause is None:
            raise failure from cause
        time.sleep(pause)
