"""A validated request on its way in, and the stream of its answer on its way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from core.block_hash import HashArray, TokenArray
from core.request import RequestKey, SamplingParams
from router.flow_messages import Emit, Fail, Finish
from router.policy import PromptShape


@dataclass(frozen=True, slots=True)
class Prompt:
    """A validated request. ``tokens`` int32 [n]; ``hashes`` uint64 of its full blocks.

    ``arrived`` and ``deadline`` in seconds on the router's monotonic clock.
    """

    key: RequestKey
    arrived: float
    tokens: TokenArray
    hashes: HashArray
    salt: int
    sampling: SamplingParams
    deadline: float | None

    def shape(self, block_size: int) -> PromptShape:
        return PromptShape(len(self.tokens), block_size)


class AnswerStream:
    """The answer to one request: ``Emit`` any number of times, then one ``Finish``.

    Iterating raises the CrossdockError that ended the request instead. ``close`` must be called
    when nobody reads any more; a request that still runs is cancelled by it.
    """

    def __init__(
        self,
        request_id: str,
        prompt_tokens: int,
        events: asyncio.Queue[Emit | Finish | Fail],
        close: Callable[[], None],
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self._events = events
        self.close = close

    async def __aiter__(self) -> AsyncIterator[Emit | Finish]:
        while True:
            event = await self._events.get()
            if isinstance(event, Fail):
                raise event.error
            yield event
            if isinstance(event, Finish):
                return
