"""Tokens of a worker's step that go straight to their clients, and what is counted of them.

An output is taken if it is more of an answer that has begun, and neither ends it nor brings
log-probabilities, nor was read elsewhere: then what `Flow.handle` would make of it is known
beforehand. Everything else takes the way of all events. Metrics are counted once a step.
"""

from __future__ import annotations

from crossdock.v1.worker_pb2 import SequenceOutput
from router.metrics import Metrics
from router.placement import WorkerId
from router.running_request import RunningRequest


class StepTokens:
    """Of one step of ``worker``, at ``now`` (seconds, monotonic)."""

    __slots__ = ("_followed", "_generated", "_now", "_worker")

    def __init__(self, worker: WorkerId, now: float) -> None:
        self._worker, self._now = worker, now
        # How many outputs followed one at each time: few different ones, as steps are common.
        self._followed: dict[float, int] = {}
        self._generated: dict[str, int] = {}

    def pass_on(self, running: RunningRequest, output: SequenceOutput) -> bool:
        """Whether the output was one to take."""
        if output.finish_reason or output.logprobs or output.counted:
            return False
        index, token_ids = output.index, output.token_ids
        count, attempt = len(token_ids), output.key.attempt
        if not count or not running.flow.continues(self._worker, attempt, index, count):
            return False
        last = running.last_output_at[index]
        running.last_output_at[index] = self._now
        self._followed[last] = self._followed.get(last, 0) + 1
        tenant = running.prompt.key.tenant
        self._generated[tenant] = self._generated.get(tenant, 0) + count
        running.answers.tokens(index, token_ids, output.text)
        return True

    def count(self, metrics: Metrics) -> None:
        for last, outputs in self._followed.items():
            metrics.next_outputs(outputs, self._now - last)
        for tenant, tokens in self._generated.items():
            metrics.generated(tenant, tokens)
