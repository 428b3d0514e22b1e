"""Tokens of a worker's step that go straight to their clients, and what is counted of them.

What `Flow.handle` would make of a further token of an answer that has begun is known beforehand.
Metrics are counted once a step. Does not cover: outputs that tell more
(``router.workers.worker_answers``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from core.values import value
from crossdock.v1 import worker_pb2 as pb
from router.metrics.metrics import Metrics
from router.placement import WorkerId
from router.requests.running_request import RunningAnswer


@value()
class Left:
    """A token that takes the long way: ``error`` None, or a defect that it met on the short one."""

    answer: RunningAnswer
    token: int
    text: str
    error: Exception | None = None


class StepTokens:
    """Of one step of ``worker``, at ``now`` (seconds, monotonic)."""

    __slots__ = ("_followed", "_generated", "_now", "_worker", "_writes", "left")

    def __init__(self, worker: WorkerId, now: float) -> None:
        self._worker, self._now = worker, now
        # How many tokens followed one at each time: few different ones, as steps are common.
        self._followed: dict[float | None, int] = {}
        self._generated: dict[str, int] = {}
        self._writes: dict[asyncio.WriteTransport, bytes] = {}
        self.left: list[Left] = []

    def take(self, further: pb.FurtherTokens, find: Callable[[int], RunningAnswer | None]) -> None:
        """Raises ``ValueError`` for what makes no sense."""
        for number, token, text in further_tokens(further):
            answer = find(number)
            if answer is None:
                continue
            try:
                if answer.told.continues(self._worker, 1):
                    self._pass_on(answer, token, text)
                else:
                    self.left.append(Left(answer, token, text))
            except Exception as error:
                self.left.append(Left(answer, token, text, error))

    def _pass_on(self, answer: RunningAnswer, token: int, text: str) -> None:
        last, tenant = answer.last_output_at, answer.tenant
        answer.last_output_at = self._now
        self._followed[last] = self._followed.get(last, 0) + 1
        self._generated[tenant] = self._generated.get(tenant, 0) + 1
        write = answer.choice.sink.token(token, text)
        if write is not None:
            transport, data = write
            earlier = self._writes.get(transport)
            self._writes[transport] = data if earlier is None else earlier + data

    def write(self) -> None:
        """One write for each client, one after the other: what the system does for them displaces
        from the processor's caches what the tokens need, and the other way round."""
        for transport, data in self._writes.items():
            if not transport.is_closing():
                transport.write(data)

    def count(self, metrics: Metrics) -> None:
        for last, outputs in self._followed.items():
            if last is not None:
                metrics.next_outputs(outputs, self._now - last)
        for tenant, tokens in self._generated.items():
            metrics.generated(tenant, tokens)


def further_tokens(further: pb.FurtherTokens) -> zip[tuple[int, int, str]]:
    """Number of the answer, token, text. Raises ``ValueError`` if the columns don't fit."""
    # Slices are lists, made at once: going through a column of a message takes twice as long.
    numbers, tokens, texts = further.answers[:], further.token_ids[:], further.texts[:]
    if not len(numbers) == len(tokens) == len(texts):
        raise ValueError(f"{len(numbers)} answers, {len(tokens)} tokens and {len(texts)} texts")
    return zip(numbers, tokens, texts, strict=True)
