"""How long handed-over blocks and control messages take between two replicas of this host.

Both ends are production code (``kv_transfer``, the lease rules), every rank in a process of its
own, bound to cores as P and D would be. Nothing else computes on those: beside a busy engine a long
copy takes up to twice as long. Does not cover: hosts connected by a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.profiling.child import Child
from cluster.profiling.tasks import EdgeEnd, EdgeTask


@dataclass(frozen=True, slots=True)
class EdgeBatch:
    """Medians of ``runs`` batches of ``blocks`` blocks; seconds. ``ticket_s``: a small message to
    the other process and the answer to it; ``verified_s``: from announcing to the news of it."""

    transport: str
    blocks: int
    ticket_s: float
    verified_s: float
    runs: int


@dataclass(frozen=True, slots=True)
class EdgeFailed:
    """A transport that does not work between those two, and why."""

    transport: str
    failed: str


def measure_edges(task: EdgeTask) -> Iterator[EdgeBatch | EdgeFailed]:
    """Raises ``InternalError`` if a process ends."""
    # Both load at the same time.
    with (
        _child("cluster.profiling.handoff_decode_child", task, task.decode) as decode,
        _child("cluster.profiling.handoff_prefill_child", task, task.prefill) as prefill,
    ):
        prefill.tell(str(decode.hear()["port"]))
        for said in prefill.lines():
            yield EdgeFailed(**said) if "failed" in said else EdgeBatch(**said)


def _child(module: str, task: EdgeTask, end: EdgeEnd) -> Child:
    gpu = end.rank_gpus[0] if end.rank_gpus else None
    return Child(module, task, max(1, len(end.rank_cores[0])), gpu)
