"""How long handed-over blocks and control messages take between two processes of this host.

Both ends are production code (``kv_transfer``, the lease rules) in processes of their own, bound to
cores as P and D would be. Nothing else computes on those: beside a busy engine a long copy takes up
to twice as long. Does not cover: hosts connected by a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.profiling.child import Child
from cluster.profiling.tasks import EdgeTask


@dataclass(frozen=True, slots=True)
class EdgeBatch:
    """Medians of ``runs`` batches of ``blocks`` blocks; seconds. ``ticket_s``: a small message to
    the other process and the answer to it; ``verified_s``: from announcing to the news of it."""

    transport: str
    blocks: int
    ticket_s: float
    verified_s: float
    runs: int


def measure_edges(task: EdgeTask, prefill_cores: tuple[int, ...]) -> Iterator[EdgeBatch]:
    """``task``: D's end, with its cores. Raises ``InternalError`` if a transport doesn't work."""
    threads = max(1, len(task.cores))
    ours = replace(task, cores=prefill_cores)
    # Both load at the same time.
    with (
        Child("cluster.profiling.handoff_decode_child", task, threads) as decode,
        Child("cluster.profiling.handoff_prefill_child", ours, threads) as prefill,
    ):
        prefill.tell(str(decode.hear()["port"]))
        for said in prefill.lines():
            yield EdgeBatch(**said)
