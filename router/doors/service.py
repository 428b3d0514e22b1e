"""The gRPC door: ``Inference`` of inference.proto. A thin shell over
``router.intake.request_intake``."""

from __future__ import annotations

from typing import Any

import grpc.aio

from core.errors import CrossdockError, InvalidField
from core.step import TokenLogprobs
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1.inference_pb2_grpc import InferenceServicer
from router.doors.grpc_errors import as_crossdock_error
from router.flow.messages import Emit, Finish, Ticket
from router.intake.request_intake import Call, RequestIntake
from router.intake.validation import AskedSampling
from wire.grpc_errors import abort

Context = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]

_SCALARS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "min_tokens",
    "ignore_eos",
    "seed",
    "n",
    "logprobs",
)


class InferenceService(InferenceServicer):
    """Errors leave as gRPC statuses; a call that ends for any reason ends its request."""

    def __init__(self, intake: RequestIntake, block_size: int) -> None:
        self._intake = intake
        self._block_size = block_size

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Writes by itself: a generator takes longer for each response."""
        try:
            tenant = self._intake.tenant(_authorization(context))
            try:
                call = call_from_wire(request, context.time_remaining(), tenant)
                answer = await self._intake.submit([call])
            except Exception as error:
                self._intake.refused(tenant, error)
                raise
            try:
                while batch := await answer.batch():
                    for item in batch:
                        await context.write(_event_to_wire(item.event, answer.prompt_tokens))
            finally:
                answer.close()
        except Exception as error:
            await abort(context, as_crossdock_error(error))

    async def Abort(
        self,
        request: pb.AbortRequest,
        context: grpc.aio.ServicerContext[pb.AbortRequest, pb.AbortResponse],
    ) -> pb.AbortResponse:
        try:
            tenant = self._intake.tenant(_authorization(context))
            await self._intake.abort(tenant, request.request_id)
        except CrossdockError as error:
            await abort(context, error)
        return pb.AbortResponse()

    async def RelayTokens(
        self,
        request: pb.RelayTokensRequest,
        context: grpc.aio.ServicerContext[pb.RelayTokensRequest, pb.RelayTokensResponse],
    ) -> pb.RelayTokensResponse:
        try:
            tenant = self._intake.tenant(_authorization(context))
            await self._intake.relay(tenant, request.request_id, request.attempt, request.position)
        except CrossdockError as error:
            await abort(context, error)
        return pb.RelayTokensResponse()

    async def GetModelInfo(
        self,
        request: pb.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetModelInfoRequest, pb.GetModelInfoResponse],
    ) -> pb.GetModelInfoResponse:
        try:
            self._intake.tenant(_authorization(context))
        except CrossdockError as error:
            await abort(context, error)
        model = self._intake.model
        return pb.GetModelInfoResponse(
            model=model.name,
            vocab_size=model.vocab_size,
            max_model_len=model.max_model_len,
            block_size=self._block_size,
            eos_token_ids=model.eos_token_ids,
        )


def _authorization(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            return value
    return None


def call_from_wire(request: pb.GenerateRequest, deadline_s: float | None, tenant: str) -> Call:
    """Raises InvalidField if no input is set."""
    kind = request.WhichOneof("input")
    if kind is None:
        raise InvalidField("input", "", "must be set: either text or token_ids")
    sampling = request.sampling
    scalars = {name: getattr(sampling, name) for name in _SCALARS if sampling.HasField(name)}
    asked = AskedSampling(
        **scalars,
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        logit_bias=tuple(sorted(sampling.logit_bias.items())),
        priority=request.priority if request.HasField("priority") else None,
    )
    prompt = request.text if kind == "text" else request.token_ids.ids
    return Call(
        prompt,
        asked,
        request.request_id,
        deadline_s,
        prompt_field=kind,
        tenant=tenant,
        by_ticket=request.by_ticket,
    )


def _event_to_wire(event: Emit | Finish, prompt_tokens: int) -> pb.GenerateResponse:
    if isinstance(event, Emit):
        if event.ticket is not None:
            return pb.GenerateResponse(ticket=_ticket_to_wire(event.ticket))
        return _tokens_to_wire(event)
    prefill = event.placement.prefill
    timings = pb.Timings(
        queue_s=event.queue_s,
        ttft_s=event.ttft_s,
        total_s=event.total_s,
        prefill_worker=prefill.name if prefill is not None else "",
        decode_worker=event.placement.decode.name,
        attempts=event.attempts,
    )
    complete = pb.Complete(
        finish_reason=event.reason.value,
        prompt_tokens=prompt_tokens,
        completion_tokens=event.completion_tokens,
        cached_tokens=event.cached_tokens,
        timings=timings,
    )
    return pb.GenerateResponse(index=event.index, complete=complete)


def _ticket_to_wire(ticket: Ticket) -> pb.ReadTicket:
    return pb.ReadTicket(attempt=ticket.attempt, endpoint=ticket.endpoint, ticket=ticket.ticket)


def _tokens_to_wire(emit: Emit) -> pb.GenerateResponse:
    # Filled field by field: made of arguments the two messages take three times as long.
    response = pb.GenerateResponse()
    response.index = emit.index
    chunk = response.chunk
    chunk.token_ids.extend(emit.token_ids)
    chunk.text = emit.text
    if emit.logprobs:
        pairs = zip(emit.token_ids, emit.logprobs, strict=True)
        chunk.logprobs.extend(_logprob_to_wire(*pair) for pair in pairs)
    return response


def _logprob_to_wire(token_id: int, logprobs: TokenLogprobs) -> pb.TokenLogprob:
    candidates = zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
    top = [pb.TokenLogprob.Candidate(token_id=token, logprob=value) for token, value in candidates]
    return pb.TokenLogprob(token_id=token_id, logprob=logprobs.logprob, top=top)
