"""What the runner asks of a server under load, and what it is told while an answer comes.

Failures are raised as ``CrossdockError``; its ``reason`` is the kind under which they are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from core.errors import Unavailable
from tuner.load.prompts import Prompt
from tuner.load.records import NO_TOKENS, Usage


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of its model; None where it doesn't."""

    name: str
    max_model_len: int | None = None
    vocab_size: int | None = None
    eos_token_ids: tuple[int, ...] = ()


class AnswerLog:
    """Notes when the pieces of one answer come, by ``clock`` (seconds)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.chunk_times: list[float] = []
        self.chunk_tokens: list[int | None] = []
        self.usage: Usage | None = None

    def chunk(self, tokens: int | None = None) -> None:
        """A piece of the answer is here now; ``tokens`` None: nobody says how many it holds."""
        self.chunk_times.append(self._clock())
        self.chunk_tokens.append(tokens)

    def require_tokens(self) -> None:
        """Raises ``Unavailable`` for an answer that ended well without any token."""
        if not self.chunk_times:
            raise Unavailable("the answer ended without a single token", reason=NO_TOKENS)


class Target(Protocol):
    """One server. ``prepare`` may run in a thread beside the event loop; it does all the work that
    can be done before a request is due."""

    async def describe(self) -> ServedModel:
        """Raises ``CrossdockError`` if the server can't be reached or asked."""

    async def check(self, prompt: Prompt, output_tokens: int) -> AnswerLog:
        """Send one request outside of any measurement; raises a ``CrossdockError`` that says what
        to change if requests like it are refused."""

    def prepare(self, prompt: Prompt, output_tokens: int) -> Any:
        """The request as ``send`` takes it."""

    async def send(self, prepared: Any, answer: AnswerLog) -> None:
        """Send one request and note its answer until it ends; raises ``CrossdockError``."""

    async def close(self) -> None: ...
