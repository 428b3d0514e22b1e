"""Validated requests on their way in, and the stream of their answers on its way out.

One call of a client may bring several prompts, and each of them gets n answers: *choices*, counted
through as ``prompt * n + index``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import chain, groupby
from typing import Protocol

from core.block_hash import HashArray, TokenArray
from core.errors import CrossdockError
from core.request import RequestKey, SamplingParams
from core.values import value
from router.flow.messages import Emit, Fail, Finish
from router.placement import Placement
from router.routing.candidates import PromptShape

AnswerEvent = Emit | Finish | Fail
# What a client's connection is still to be given.
Write = tuple[asyncio.WriteTransport, bytes]


class TokenSink(Protocol):
    """Who gets the further tokens of one answer."""

    def token(self, token_id: int, text: str) -> Write | None:
        """One more of an answer that has begun, without log-probabilities. What it gives is
        written by the caller: together with other answers', which takes less time."""
        ...


class Choice:
    """One answer on its way out. ``sink`` changes: it is asked for with each token."""

    __slots__ = ("sink",)

    def __init__(self, sink: TokenSink) -> None:
        self.sink = sink


class Receiver(Protocol):
    """Who gets the n answers to one prompt."""

    def choice(self, index: int) -> Choice: ...

    def event(self, event: AnswerEvent) -> None: ...


@value()
class Prompt:
    """A validated request. ``tokens`` int32 [n]; ``hashes`` uint64 of its full blocks.

    ``arrived`` and ``deadline`` in seconds on the router's monotonic clock. ``priority``: class, 0
    is served first. ``by_ticket``: the client may read tokens from D itself. ``with_others``: of
    the same call.
    """

    key: RequestKey
    arrived: float
    tokens: TokenArray
    hashes: HashArray
    salt: int
    sampling: SamplingParams
    deadline: float | None
    priority: int = 0
    by_ticket: bool = False
    with_others: bool = False

    def shape(self, block_size: int) -> PromptShape:
        return PromptShape(len(self.tokens), block_size)

    def expected_cached(self, placement: Placement, block_size: int) -> int:
        """Tokens that need not be computed if the index is right; the last one always is."""
        forecast = placement.forecast
        held = forecast.decode_held if placement.prefill is None else forecast.prefill_held
        return min(held * block_size, len(self.tokens) - 1)


@value()
class ChoiceEvent:
    """Something about one choice; ``prompt`` is the number of its prompt within the call."""

    prompt: int
    choice: int
    event: Emit | Finish


class AnswerSink(Protocol):
    """Who gets what comes of all choices of a call, at the moment when it comes."""

    def choice(self, choice: int) -> TokenSink: ...

    def event(self, item: ChoiceEvent) -> None: ...


class AnswerStream:
    """The answers to all prompts of one call: per choice any number of ``Emit``, then a ``Finish``.

    Read it by `feed`, by `batch` or by iterating: all raise the CrossdockError that ended one of
    the requests instead. ``close`` must be called when nobody reads any more; requests that still
    run are cancelled by it.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.request_id = prompts[0].key.request_id
        self.prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
        self.num_choices = sum(prompt.sampling.n for prompt in prompts)
        self._prompts = prompts
        self._close: list[Callable[[], None]] = []
        self._unfinished = self.num_choices
        self._error: CrossdockError | None = None
        self._inbox = _Inbox(prompts[0].sampling.n)
        self._sink: AnswerSink = self._inbox
        self._choices = [Choice(self._inbox.choice(number)) for number in range(self.num_choices)]

    def start(self, start: Callable[[Prompt, Receiver], Callable[[], None]]) -> None:
        """Send all prompts on their way by ``start``, which returns how to end one again.

        If one can't start, none is left running.
        """
        try:
            for number, prompt in enumerate(self._prompts):
                n = prompt.sampling.n
                choices = self._choices[number * n : number * n + n]
                self._close.append(start(prompt, _PromptAnswers(self, number, choices)))
        except CrossdockError:
            self.close()
            raise

    @property
    def goes_on(self) -> bool:
        """More will come than what has been read."""
        return self._unfinished > 0

    def close(self) -> None:
        # Requests know their answers: what they are closed by is let go, so that all of it is freed
        # here and nothing left to the garbage collector.
        closing, self._close = self._close, []
        for close in closing:
            close()

    def failed(self, error: CrossdockError) -> None:
        self._error = self._error or error
        self._inbox.wake()

    def arrived(self, item: ChoiceEvent) -> None:
        if isinstance(item.event, Finish):
            self._unfinished -= 1
            self._inbox.wake()
        self._sink.event(item)

    async def feed(self, sink: AnswerSink) -> None:
        """Give ``sink`` all that comes, without a task in between, until all choices have ended."""
        for item in self._inbox.take():
            sink.event(item)
        if not self._has_more():
            return
        self._give_to(sink)
        try:
            while self._has_more():
                await self._inbox.news()
        finally:
            self._give_to(self._inbox)

    def _give_to(self, sink: AnswerSink) -> None:
        self._sink = sink
        for number, choice in enumerate(self._choices):
            choice.sink = sink.choice(number)

    async def __aiter__(self) -> AsyncIterator[ChoiceEvent]:
        while batch := await self.batch():
            for event in batch:
                yield event

    async def batch(self) -> list[ChoiceEvent]:
        """All that has come since the last one; waits until there is something, and is empty when
        nothing more will come."""
        while True:
            if (batch := self._inbox.take()) or not self._has_more():
                return batch
            await self._inbox.news()

    def _has_more(self) -> bool:
        if self._error is not None:
            raise self._error
        return self.goes_on


class _PromptAnswers:
    """The receiver of the answers to one prompt of a call, which are ``choices``."""

    __slots__ = ("_call", "_choices", "_prompt")

    def __init__(self, call: AnswerStream, prompt: int, choices: Sequence[Choice]) -> None:
        self._call, self._prompt, self._choices = call, prompt, choices

    def choice(self, index: int) -> Choice:
        return self._choices[index]

    def event(self, event: AnswerEvent) -> None:
        if isinstance(event, Fail):
            self._call.failed(event.error)
        else:
            choice = self._prompt * len(self._choices) + event.index
            self._call.arrived(ChoiceEvent(self._prompt, choice, event))


class _Inbox:
    """What has come and was not taken yet."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._items: list[ChoiceEvent] = []
        self._reader: asyncio.Future[None] | None = None

    async def news(self) -> None:
        """Until something comes, or `wake`."""
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader

    def wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def choice(self, choice: int) -> TokenSink:
        return _InboxTokens(self, *divmod(choice, self._n), choice)

    def event(self, item: ChoiceEvent) -> None:
        self._items.append(item)
        self.wake()

    def take(self) -> list[ChoiceEvent]:
        """What came of one answer one after the other is one ``Emit``, so that a reader who is
        slow has fewer of them."""
        items, self._items = self._items, []
        if len(items) < 2:
            return items
        return [_joined(list(run)) for _, run in groupby(items, _run)]


class _InboxTokens:
    """Tokens of one choice as events, for who reads."""

    __slots__ = ("_choice", "_inbox", "_index", "_prompt")

    def __init__(self, inbox: _Inbox, prompt: int, index: int, choice: int) -> None:
        self._inbox, self._prompt, self._index, self._choice = inbox, prompt, index, choice

    def token(self, token_id: int, text: str) -> Write | None:
        emit = Emit((token_id,), text, self._index)
        self._inbox.event(ChoiceEvent(self._prompt, self._choice, emit))
        return None


def _run(item: ChoiceEvent) -> tuple[bool, int]:
    """Equal for what can be joined."""
    event = item.event
    joinable = isinstance(event, Emit) and not event.logprobs and event.ticket is None
    return joinable, item.choice if joinable else id(item)


def _joined(run: list[ChoiceEvent]) -> ChoiceEvent:
    first = run[0]
    if len(run) == 1:
        return first
    emits = [item.event for item in run if isinstance(item.event, Emit)]
    ids = tuple(chain.from_iterable(emit.token_ids for emit in emits))
    text = "".join(emit.text for emit in emits)
    return ChoiceEvent(first.prompt, first.choice, Emit(ids, text, emits[0].index))
