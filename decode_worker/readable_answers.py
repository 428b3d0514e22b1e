"""Answers that clients read from this worker themselves: what each has, who reads it, until when.

Pure: time is passed in. All outputs of an attempt are kept in their order until it is over, so
that a reader whose connection broke goes on where it was; a position is a number of outputs. What
was given to a reader is *read*, and only that is told to the router, as a number of tokens: so a
request none of whose tokens was read may be tried elsewhere.
Does not cover: tickets (``wire.tickets``), streams (``decode_worker.token_streams``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from core.errors import CrossdockError, InternalError, InvalidField, NotFound, RequestAborted
from core.request import AttemptKey
from crossdock.v1 import worker_pb2 as pb

# How long an answer is kept for a reader whose connection broke, and after its end.
PATIENCE_S = 5.0
# How often the router is told what was read, beside the first tokens and the last.
REPORT_S = 0.25


@dataclass(slots=True, eq=False)
class Reader:
    """``position``: outputs that it has. ``error``: why it gets nothing more; None: it goes on."""

    key: AttemptKey
    position: int
    error: CrossdockError | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was read since the last one. ``last``: there is nothing more to tell."""

    key: AttemptKey
    outputs: tuple[pb.SequenceOutput, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class Relayed:
    """What the router gets of an answer that nobody reads any more. ``complete``: it is all."""

    outputs: tuple[pb.SequenceOutput, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class RelayUnread:
    """Nobody has come with the ticket: the router gets the tokens."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class ReaderLost:
    """The reader has not come back: the attempt is for nobody."""

    key: AttemptKey


@dataclass(slots=True)
class ReadableAnswer:
    """All n answers of one attempt. ``claim_by``, ``unread_since``, ``told_at``: seconds.

    ``read``: outputs that some reader got; ``told``: those of them that the router knows of.
    """

    key: AttemptKey
    prompt_tokens: int
    ticket_key: bytes
    claim_by: float
    unread_since: float
    outputs: list[pb.SequenceOutput] = field(default_factory=list)
    read: int = 0
    told: int = 0
    told_at: float = 0.0
    reader: Reader | None = None
    complete: bool = False
    router_lost: bool = False

    @property
    def over(self) -> bool:
        """All there will be has been read."""
        return self.complete and self.read == len(self.outputs)

    def report_due(self, now: float) -> bool:
        if self.told == self.read or self.router_lost:
            return False
        ends = any(output.finish_reason for output in self.outputs[self.told : self.read])
        return ends or not self.told or now - self.told_at >= REPORT_S

    def report(self, now: float) -> Report:
        """One output for each of the n that was read of, with a number instead of tokens."""
        by_index: dict[int, pb.SequenceOutput] = {}
        for output in self.outputs[self.told : self.read]:
            said = by_index.setdefault(
                output.index, pb.SequenceOutput(key=output.key, index=output.index)
            )
            said.read_tokens += len(output.token_ids)
            said.cached_tokens = max(said.cached_tokens, output.cached_tokens)
            said.finish_reason = output.finish_reason
        self.told, self.told_at = self.read, now
        return Report(self.key, tuple(by_index.values()), self.over)

    def abandoned(self, now: float) -> RelayUnread | ReaderLost | None:
        """What to do if nobody has read for long."""
        if self.reader is not None or self.over:
            return None
        if not self.read and not self.router_lost:
            return RelayUnread(self.key) if now >= self.claim_by else None
        return ReaderLost(self.key) if now - self.unread_since >= PATIENCE_S else None


class ReadableAnswers:
    """Those of all attempts that clients have tickets for. Times in seconds, monotonic."""

    def __init__(self) -> None:
        self._answers: dict[AttemptKey, ReadableAnswer] = {}

    def __contains__(self, key: AttemptKey) -> bool:
        return key in self._answers

    def __iter__(self) -> Iterator[AttemptKey]:
        return iter(tuple(self._answers))

    @property
    def idle(self) -> bool:
        """No answer waits for its reader, or goes on."""
        return all(answer.over for answer in self._answers.values())

    def answer(self, key: AttemptKey) -> ReadableAnswer | None:
        return self._answers.get(key)

    # What the worker does

    def open(
        self, key: AttemptKey, prompt_tokens: int, ticket_key: bytes, valid_s: float, now: float
    ) -> None:
        """An attempt begins whose tokens a client may read within ``valid_s`` seconds."""
        self._answers[key] = ReadableAnswer(key, prompt_tokens, ticket_key, now + valid_s, now)

    def new_output(self, key: AttemptKey) -> pb.SequenceOutput | None:
        """A place for the next output; None if the router gets it."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        answer.outputs.append(pb.SequenceOutput())
        return answer.outputs[-1]

    def completed(self, key: AttemptKey, now: float) -> None:
        """All n have ended: there will be no more outputs."""
        answer = self._answers[key]
        answer.complete = True
        answer.unread_since = max(answer.unread_since, now)

    def drop(self, key: AttemptKey, why: CrossdockError) -> None:
        """The attempt is over without an end that could be read."""
        answer = self._answers.pop(key, None)
        if answer is not None and answer.reader is not None:
            answer.reader.error = why

    # What routers say

    def relay(self, key: AttemptKey, position: int) -> Relayed | None:
        """From now on the router gets the outputs, those after ``position`` at once; a report of
        what was read has to leave before. None if the router gets them already."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        if position > answer.read:
            raise InvalidField("position", position, f"at most {answer.read} outputs were read")
        self.drop(key, _elsewhere("its router has been asked for the tokens"))
        outputs = answer.outputs[position:]
        for output in outputs[: answer.read - position]:
            output.counted = True
        return Relayed(tuple(outputs), answer.complete)

    def lost_router(self, key: AttemptKey, now: float) -> bool:
        """Whether the attempt goes on without its router, for whoever reads it."""
        answer = self._answers.get(key)
        if answer is None:
            return False
        answer.router_lost = True
        answer.unread_since = max(answer.unread_since, now)
        return True

    # What readers do

    def claim(self, key: AttemptKey, position: int, now: float) -> Reader:
        """A reader that has all outputs up to ``position``; one before it gets nothing more.

        Raises ``NotFound``, ``InvalidField``.
        """
        answer = self._answers.get(key)
        if answer is None or (not answer.read and not answer.reader and now >= answer.claim_by):
            raise NotFound(
                f"nothing of {key} is to be read here: it is over, or its tokens go by the router",
                reason="NOTHING_TO_READ",
            )
        if position > answer.read:
            raise InvalidField("position", position, f"at most {answer.read}: so many were read")
        if answer.reader is not None:
            answer.reader.error = _elsewhere("another call reads with the same ticket")
        answer.reader = Reader(key, position)
        return answer.reader

    def take(self, reader: Reader) -> ReadableAnswer:
        """Moves the reader behind all there is, which counts as read. Raises what has ended the
        reading."""
        if reader.error is not None:
            raise reader.error
        answer = self._answers[reader.key]
        reader.position = len(answer.outputs)
        answer.read = max(answer.read, reader.position)
        return answer

    def has_all(self, reader: Reader) -> bool:
        """Whether there will be nothing more for it."""
        answer = self._answers.get(reader.key)
        return answer is not None and answer.complete and reader.position == len(answer.outputs)

    def left(self, reader: Reader, now: float) -> None:
        """The reader's call has ended, by whomever."""
        answer = self._answers.get(reader.key)
        if answer is not None and answer.reader is reader:
            answer.reader, answer.unread_since = None, now

    # What follows

    def report(self, key: AttemptKey, now: float) -> Report | None:
        """What its router is to be told now."""
        answer = self._answers[key]
        return answer.report(now) if answer.report_due(now) else None

    def report_all(self, key: AttemptKey, now: float) -> Report | None:
        """What its router does not know yet; None if it knows all, or is gone."""
        answer = self._answers.get(key)
        if answer is None or answer.router_lost or answer.told == answer.read:
            return None
        return answer.report(now)

    def tick(self, now: float) -> list[RelayUnread | ReaderLost]:
        """What to do about answers that nobody reads; those that were read to the end are
        forgotten after a while."""
        for answer in list(self._answers.values()):
            if answer.over and not answer.reader and now - answer.unread_since >= PATIENCE_S:
                del self._answers[answer.key]
        abandoned = [answer.abandoned(now) for answer in self._answers.values()]
        return [command for command in abandoned if command is not None]

    def validate(self) -> None:
        """Raises `InternalError` if the numbers of an answer don't fit."""
        for answer in self._answers.values():
            position = answer.read if answer.reader is None else answer.reader.position
            if not answer.told <= answer.read <= len(answer.outputs) or position > answer.read:
                raise InternalError(f"{answer.key}: {answer}", reason="INVARIANT")


def _elsewhere(why: str) -> RequestAborted:
    return RequestAborted(f"the tokens are read elsewhere: {why}", reason="READ_ELSEWHERE")
