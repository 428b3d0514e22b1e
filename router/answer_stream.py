"""Validated requests on their way in, and the stream of their answers on its way out.

One call of a client may bring several prompts, and each of them gets n answers: *choices*, counted
through as ``prompt * n + index``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from core.block_hash import HashArray, TokenArray
from core.errors import CrossdockError
from core.request import RequestKey, SamplingParams
from router.candidates import PromptShape
from router.flow_messages import Emit, Fail, Finish
from router.placement import Placement

AnswerEvent = Emit | Finish | Fail
Deliver = Callable[[AnswerEvent], None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A validated request. ``tokens`` int32 [n]; ``hashes`` uint64 of its full blocks.

    ``arrived`` and ``deadline`` in seconds on the router's monotonic clock. ``priority``: class, 0
    is served first.
    """

    key: RequestKey
    arrived: float
    tokens: TokenArray
    hashes: HashArray
    salt: int
    sampling: SamplingParams
    deadline: float | None
    priority: int = 0

    def shape(self, block_size: int) -> PromptShape:
        return PromptShape(len(self.tokens), block_size)

    def expected_cached(self, placement: Placement, block_size: int) -> int:
        """Tokens that need not be computed if the index is right; the last one always is."""
        forecast = placement.forecast
        held = forecast.decode_held if placement.prefill is None else forecast.prefill_held
        return min(held * block_size, len(self.tokens) - 1)


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """Something about one choice; ``prompt`` is the number of its prompt within the call."""

    prompt: int
    choice: int
    event: Emit | Finish


class AnswerStream:
    """The answers to all prompts of one call: per choice any number of ``Emit``, then a ``Finish``.

    Iterating raises the CrossdockError that ended one of the requests instead. ``close`` must be
    called when nobody reads any more; requests that still run are cancelled by it.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.request_id = prompts[0].key.request_id
        self.prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
        self.num_choices = sum(prompt.sampling.n for prompt in prompts)
        self._prompts = prompts
        self._close: list[Callable[[], None]] = []
        self._events: asyncio.Queue[tuple[int, AnswerEvent]] = asyncio.Queue()

    def start(self, start: Callable[[Prompt, Deliver], Callable[[], None]]) -> None:
        """Send all prompts on their way by ``start``, which returns how to end one again.

        If one can't start, none is left running.
        """
        try:
            for number, prompt in enumerate(self._prompts):
                self._close.append(start(prompt, partial(self._arrived, number)))
        except CrossdockError:
            self.close()
            raise

    def close(self) -> None:
        for close in self._close:
            close()

    def _arrived(self, number: int, event: AnswerEvent) -> None:
        self._events.put_nowait((number, event))

    async def __aiter__(self) -> AsyncIterator[ChoiceEvent]:
        async for batch in self.batches():
            for event in batch:
                yield event

    async def batches(self) -> AsyncIterator[list[ChoiceEvent]]:
        """All that has come since the last batch, never empty."""
        unfinished = self.num_choices
        while unfinished:
            arrived = [await self._events.get()]
            while not self._events.empty():
                arrived.append(self._events.get_nowait())
            batch, error = self._until_failure(arrived)
            unfinished -= sum(isinstance(item.event, Finish) for item in batch)
            if batch:
                yield batch
            if error is not None:
                raise error

    def _until_failure(
        self, arrived: list[tuple[int, AnswerEvent]]
    ) -> tuple[list[ChoiceEvent], Exception | None]:
        batch: list[ChoiceEvent] = []
        for number, event in arrived:
            if isinstance(event, Fail):
                return batch, event.error
            first = number * self._prompts[number].sampling.n
            batch.append(ChoiceEvent(number, first + event.index, event))
        return batch, None
