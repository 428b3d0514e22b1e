"""An answer whose tokens come from decode workers, by the tickets that the router gives. Pure.

Covers: which of the two ways goes on when one breaks, that no token is given twice or left out, and
that the end of a sequence is given after its last token: the router tells it, maybe before.
Does not cover: the calls themselves (``crossdock.client.aio_tickets``, ``sync_tickets``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from crossdock.client.errors import Aborted, ServerError, Unavailable
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1 import token_stream_pb2


@dataclass(frozen=True, slots=True)
class Give:
    """To whoever asked."""

    response: pb.GenerateResponse


@dataclass(frozen=True, slots=True)
class Read:
    """Read this attempt's tokens after ``position`` at ``ticket.endpoint``, and no other's."""

    ticket: pb.ReadTicket
    position: int


@dataclass(frozen=True, slots=True)
class StopReading:
    """An attempt is over, or its tokens come from the router."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Ask the router for what follows ``position``."""

    attempt: int
    position: int


@dataclass(frozen=True, slots=True)
class End:
    """All sequences have been given to their end."""


@dataclass(frozen=True, slots=True)
class Fail:
    error: ServerError


Action = Give | Read | StopReading | Relay | End | Fail


@dataclass(slots=True)
class _Sequence:
    """What was given of one sequence: ``ids``, ``text``; ``seen``, ``seen_text``: how much came of
    it in the present attempt. Its end as the router tells it, and as the worker does."""

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seen: int = 0
    seen_text: int = 0
    repeated: str = ""
    complete: pb.Complete | None = None
    read_complete: pb.Complete | None = None
    ended: bool = False

    def begin_again(self) -> None:
        """A new attempt repeats what there is already."""
        self.repeated = "".join(self.texts)
        self.seen = self.seen_text = 0
        self.complete = self.read_complete = None

    def new_part(self, chunk: pb.Chunk) -> pb.Chunk | None:
        """What of ``chunk`` was not given before; None if an earlier attempt had other tokens."""
        known = min(len(chunk.token_ids), len(self.ids) - self.seen)
        known_text = min(len(chunk.text), max(0, len(self.repeated) - self.seen_text))
        first, first_char = self.seen, self.seen_text
        self.seen += len(chunk.token_ids)
        self.seen_text += len(chunk.text)
        if not known and not known_text:
            self.ids.extend(chunk.token_ids)
            self.texts.append(chunk.text)
            return chunk
        same = self.ids[first : first + known] == list(chunk.token_ids[:known])
        if not same or not self.repeated.startswith(chunk.text[:known_text], first_char):
            return None
        rest = pb.Chunk(
            token_ids=chunk.token_ids[known:],
            text=chunk.text[known_text:],
            logprobs=chunk.logprobs[known:],
        )
        self.ids.extend(rest.token_ids)
        self.texts.append(rest.text)
        return rest


class TicketAnswer:
    """``n`` sequences. Each method says what to do now; after ``End`` or ``Fail`` nothing more."""

    def __init__(self, n: int) -> None:
        self._sequences = [_Sequence() for _ in range(n)]
        self._ticket = pb.ReadTicket()
        self._position = 0
        self._reading = False
        # Whether the present call to the worker has brought anything.
        self._got_through = False
        self._router_ended = False
        self._router_error: ServerError | None = None
        self._over = False

    def from_router(self, response: pb.GenerateResponse) -> list[Action]:
        match response.WhichOneof("event"):
            case "ticket":
                return self._begin(response.ticket)
            case "complete":
                self._sequences[response.index].complete = response.complete
                return self._give_ends(response.index)
        return self._give_chunk(response.index, response.chunk)

    def router_ended(self, error: ServerError | None) -> list[Action]:
        """``error`` None: it has told everything."""
        if self._over:
            return []
        if error is not None and not _router_lost(error):
            return self._end(Fail(error))
        self._router_ended, self._router_error = True, error
        ends = [action for i in range(len(self._sequences)) for action in self._give_ends(i)]
        if self._over or self._reading:
            return ends
        return ends + self._end(Fail(error or self._cut()))

    def from_worker(self, attempt: int, response: token_stream_pb2.ReadResponse) -> list[Action]:
        if self._over or not self._reading or attempt != self._ticket.attempt:
            return []
        self._got_through = True
        self._position = response.position
        actions: list[Action] = []
        for part in response.responses:
            if part.HasField("complete"):
                self._sequences[part.index].read_complete = part.complete
                actions += self._give_ends(part.index)
            else:
                actions += self._give_chunk(part.index, part.chunk)
        return actions

    def worker_ended(self, attempt: int, error: ServerError | None) -> list[Action]:
        """``error`` None: it has given everything."""
        if self._over or not self._reading or attempt != self._ticket.attempt:
            return []
        if error is not None and self._got_through and _broken(error):
            self._got_through = False
            return [Read(self._ticket, self._position)]
        self._reading = False
        if self._router_ended:
            return self._end(Fail(self._router_error or self._cut()))
        if error is None or _router_knows(error):
            return []
        return [Relay(attempt, self._position)]

    def _begin(self, ticket: pb.ReadTicket) -> list[Action]:
        stop: list[Action] = [StopReading()] if self._reading else []
        self._ticket, self._position, self._got_through = ticket, 0, False
        for sequence in self._sequences:
            sequence.begin_again()
        self._reading = bool(ticket.endpoint)
        return [*stop, Read(ticket, 0)] if self._reading else stop

    def _give_chunk(self, index: int, chunk: pb.Chunk) -> list[Action]:
        if self._over:
            return []
        rest = self._sequences[index].new_part(chunk)
        if rest is None:
            return self._end(Fail(self._cut()))
        given: list[Action] = []
        if rest.token_ids or rest.text:
            given.append(Give(pb.GenerateResponse(index=index, chunk=rest)))
        return given + self._give_ends(index)

    def _give_ends(self, index: int) -> list[Action]:
        """The sequence's end, if all its tokens have come, and that of the answer."""
        sequence = self._sequences[index]
        complete = sequence.complete
        if complete is None and self._router_ended:
            complete = sequence.read_complete
        if self._over or sequence.ended or complete is None:
            return []
        if sequence.seen < complete.completion_tokens:
            return []
        if sequence.seen < len(sequence.ids):
            return self._end(Fail(self._cut()))
        sequence.ended = True
        give = Give(pb.GenerateResponse(index=index, complete=complete))
        if all(other.ended for other in self._sequences):
            return [give, *self._end(End())]
        return [give]

    def _end(self, last: End | Fail) -> list[Action]:
        self._over = True
        return [last]

    def _cut(self) -> Aborted:
        tokens = sum(len(sequence.ids) for sequence in self._sequences)
        return Aborted(
            grpc.StatusCode.ABORTED,
            f"the answer was cut after {tokens} tokens; send the request again",
            reason="STREAM_CUT",
            metadata={"tokens_sent": str(tokens)},
        )


def unreachable(endpoint: str) -> Unavailable:
    return Unavailable(
        grpc.StatusCode.UNAVAILABLE, f"the decode worker at {endpoint} could not be reached"
    )


def _router_lost(error: ServerError) -> bool:
    """The connection broke; the router has not said why."""
    return error.code is grpc.StatusCode.UNAVAILABLE and not error.reason


def _broken(error: ServerError) -> bool:
    """The connection to the worker broke; another may be better."""
    return error.code is grpc.StatusCode.UNAVAILABLE


def _router_knows(error: ServerError) -> bool:
    """It tells what follows: another attempt, or the request's end."""
    codes = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    failed = error.code is grpc.StatusCode.ABORTED and error.reason != "READ_ELSEWHERE"
    return failed or error.code in codes
