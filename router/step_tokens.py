"""Tokens of a worker's step that go straight to their clients, and what is counted of them.

What `Flow.handle` would make of a further token of an answer that has begun is known beforehand.
Metrics are counted once a step. Does not cover: outputs that tell more (``router.worker_answers``).
"""

from __future__ import annotations

from crossdock.v1 import worker_pb2 as pb
from router.metrics import Metrics
from router.placement import WorkerId
from router.running_request import RunningRequest


class StepTokens:
    """Of one step of ``worker``, at ``now`` (seconds, monotonic)."""

    __slots__ = ("_followed", "_generated", "_now", "_worker")

    def __init__(self, worker: WorkerId, now: float) -> None:
        self._worker, self._now = worker, now
        # How many tokens followed one at each time: few different ones, as steps are common.
        self._followed: dict[float, int] = {}
        self._generated: dict[str, int] = {}

    def pass_on(
        self, running: RunningRequest, attempt: int, index: int, token: int, text: str
    ) -> bool:
        """Whether the answer goes on with it."""
        if not running.flow.continues(self._worker, attempt, index, 1):
            return False
        last = running.last_output_at[index]
        running.last_output_at[index] = self._now
        self._followed[last] = self._followed.get(last, 0) + 1
        tenant = running.prompt.key.tenant
        self._generated[tenant] = self._generated.get(tenant, 0) + 1
        running.answers.tokens(index, (token,), text)
        return True

    def count(self, metrics: Metrics) -> None:
        for last, outputs in self._followed.items():
            metrics.next_outputs(outputs, self._now - last)
        for tenant, tokens in self._generated.items():
            metrics.generated(tenant, tokens)


def further_tokens(further: pb.FurtherTokens) -> zip[tuple[int, int, str]]:
    """Number of the answer, token, text. Raises ``ValueError`` if the columns don't fit."""
    # Lists at once: the containers of a message make an object for each look at them.
    numbers, tokens, texts = list(further.answers), list(further.token_ids), list(further.texts)
    if not len(numbers) == len(tokens) == len(texts):
        raise ValueError(f"{len(numbers)} answers, {len(tokens)} tokens and {len(texts)} texts")
    return zip(numbers, tokens, texts, strict=True)
