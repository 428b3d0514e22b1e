"""What workers are told of an attempt, as messages.

Does not cover: which workers (``router.routing_state``), the streams (``router.worker_link``).
"""

from __future__ import annotations

from core.request import AttemptKey
from crossdock.v1 import worker_pb2 as pb
from router.answer_stream import Prompt
from router.flow_messages import SendOpen, SendPrefill, SendRelay
from wire.attempts import key_to_wire, sampling_to_wire, tokens_to_wire

# In which the client has to come with its ticket. It is sent when the attempt begins.
_TICKET_VALID_S = 10.0


def open_message(
    key: AttemptKey, prompt: Prompt, command: SendOpen, first_answer: int
) -> pb.RouterMessage:
    """To D: it gets the tokens only if it is to compute them. ``first_answer``: its number."""
    message = pb.Open(
        key=key_to_wire(key),
        mode=pb.Open.HANDOFF if command.handoff else pb.Open.LOCAL,
        token_ids=b"" if command.handoff else tokens_to_wire(prompt.tokens),
        sampling=sampling_to_wire(prompt.sampling),
        salt=prompt.salt,
        deadline_s=command.deadline_s,
        first_answer=first_answer,
    )
    if command.by_ticket:
        message.read.valid_s, message.read.prompt_tokens = _TICKET_VALID_S, len(prompt.tokens)
    return pb.RouterMessage(open=message)


def prefill_message(
    key: AttemptKey, prompt: Prompt, command: SendPrefill, decode_endpoint: str
) -> pb.RouterMessage:
    """To P. ``decode_endpoint``: host:port of D."""
    message = pb.Prefill(
        key=key_to_wire(key),
        token_ids=tokens_to_wire(prompt.tokens),
        sampling=sampling_to_wire(prompt.sampling),
        decode_worker=command.decode.name,
        decode_endpoint=decode_endpoint,
        decode_epoch=command.decode.epoch,
        salt=prompt.salt,
        deadline_s=command.deadline_s,
    )
    return pb.RouterMessage(prefill=message)


def relay_message(key: AttemptKey, command: SendRelay) -> pb.RouterMessage:
    return pb.RouterMessage(relay=pb.RelayTokens(key=key_to_wire(key), position=command.position))


def abort_message(key: AttemptKey) -> pb.RouterMessage:
    return pb.RouterMessage(abort=pb.Abort(key=key_to_wire(key)))
