"""What workers are told of an attempt, as messages.

Does not cover: which workers (``router.routing.routing_state``), the streams
(``router.workers.worker_link``).
"""

from __future__ import annotations

from core.request import AttemptKey
from crossdock.v1 import worker_pb2 as pb
from router.flow.messages import SendOpen, SendPrefill, SendRelay
from router.requests.answer_stream import Prompt
from wire.attempts import key_to_wire, sampling_to_wire, tokens_to_wire

# In which the client has to come with its ticket. It is sent when the attempt begins.
_TICKET_VALID_S = 10.0


class Assignment:
    """An attempt as both of its workers are told of it. What they are told alike is written once
    and copied into each message; a message that is given to another's constructor would be written
    as bytes and read again."""

    __slots__ = ("_key", "_prompt", "_sampling")

    def __init__(self, key: AttemptKey, prompt: Prompt) -> None:
        self._prompt = prompt
        self._key = key_to_wire(key)
        self._sampling = sampling_to_wire(prompt.sampling)

    def open_message(self, command: SendOpen, first_answer: int) -> pb.RouterMessage:
        """To D: it gets the tokens only if it is to compute them. ``first_answer``: its number."""
        message, prompt = pb.RouterMessage(), self._prompt
        opened = message.open
        opened.key.CopyFrom(self._key)
        opened.sampling.CopyFrom(self._sampling)
        opened.mode = pb.Open.HANDOFF if command.handoff else pb.Open.LOCAL
        if not command.handoff:
            opened.token_ids = tokens_to_wire(prompt.tokens)
        opened.salt, opened.deadline_s = prompt.salt, command.deadline_s
        opened.first_answer = first_answer
        if command.by_ticket:
            opened.read.valid_s, opened.read.prompt_tokens = _TICKET_VALID_S, len(prompt.tokens)
        return message

    def prefill_message(self, command: SendPrefill, decode_endpoint: str) -> pb.RouterMessage:
        """To P. ``decode_endpoint``: host:port of D."""
        message, prompt, decode = pb.RouterMessage(), self._prompt, command.decode
        prefill = message.prefill
        prefill.key.CopyFrom(self._key)
        prefill.sampling.CopyFrom(self._sampling)
        prefill.token_ids = tokens_to_wire(prompt.tokens)
        prefill.decode_worker, prefill.decode_epoch = decode.name, decode.epoch
        prefill.decode_endpoint = decode_endpoint
        prefill.salt, prefill.deadline_s = prompt.salt, command.deadline_s
        return message


def relay_message(key: AttemptKey, command: SendRelay) -> pb.RouterMessage:
    return pb.RouterMessage(relay=pb.RelayTokens(key=key_to_wire(key), position=command.position))


def abort_message(key: AttemptKey) -> pb.RouterMessage:
    return pb.RouterMessage(abort=pb.Abort(key=key_to_wire(key)))
