"""What workers answer, from worker.proto to the events of ``router.flow.flow``."""

from __future__ import annotations

from core.handoff import FailureCause
from core.request import FinishReason
from crossdock.v1 import worker_pb2 as pb
from router.flow.messages import AttemptFailed, Output
from router.placement import WorkerId
from wire.attempts import logprobs_from_wire

_FINISH_REASONS = {reason.value: reason for reason in FinishReason}


def output_from_wire(worker: WorkerId, output: pb.SequenceOutput) -> Output | AttemptFailed:
    """An output that makes no sense to this router counts as a failed attempt."""
    reason = _FINISH_REASONS.get(output.finish_reason)
    if output.finish_reason and reason is None:
        detail = f"unknown finish reason {output.finish_reason!r}"
        return AttemptFailed(worker, output.key.attempt, FailureCause.INTERNAL, detail)
    if output.logprobs and not _fit(output):
        detail = "log-probabilities that don't fit the tokens"
        return AttemptFailed(worker, output.key.attempt, FailureCause.INTERNAL, detail)
    return Output(
        worker,
        output.key.attempt,
        tuple(output.token_ids),
        output.text,
        reason,
        output.cached_tokens,
        output.index,
        tuple(logprobs_from_wire(logprobs) for logprobs in output.logprobs),
        output.read_tokens,
        output.counted,
    )


def _fit(output: pb.SequenceOutput) -> bool:
    return len(output.logprobs) == len(output.token_ids) and all(
        len(entry.top_token_ids) == len(entry.top_logprobs) for entry in output.logprobs
    )


def failure_from_wire(worker: WorkerId, failed: pb.AttemptFailed) -> AttemptFailed:
    """A cause that this router doesn't know, from a newer worker, counts as INTERNAL."""
    known = pb.AttemptFailed.Cause.DESCRIPTOR.values_by_number.get(failed.cause)
    name = known.name if known is not None else ""
    cause = FailureCause.__members__.get(name, FailureCause.INTERNAL)
    return AttemptFailed(worker, failed.key.attempt, cause, failed.detail)
