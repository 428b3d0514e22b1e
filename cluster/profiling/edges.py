"""How long handed-over blocks and control messages take between two processes of this host.

Both ends are production code (``kv_transfer``, the lease rules) in processes of their own, bound to
cores as P and D would be; while batches are timed, engines compute on those cores, as they do when
there is load. Does not cover: hosts connected by a network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.profiling.child import Child
from cluster.profiling.tasks import DECODING, PREFILLING, CompanyTask, EdgeTask
from core.worker_settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class EdgeBatch:
    """Medians of ``runs`` batches of ``blocks`` blocks; seconds. ``ticket_s``: a small message to
    the other process and the answer to it; ``verified_s``: from announcing to the news of it."""

    transport: str
    blocks: int
    ticket_s: float
    verified_s: float
    runs: int


def measure_edges(
    task: EdgeTask, prefill_cores: tuple[int, ...], company: Sequence[WorkerSettings]
) -> Iterator[EdgeBatch]:
    """``task``: D's end, with its cores. ``company``: engines that compute meanwhile, the first one
    prompts, the others decodes. Raises ``InternalError`` if a transport doesn't work here."""
    with contextlib.ExitStack() as children:

        def start(module: str, told: object, cores: Sequence[int]) -> Child:
            child = Child(f"cluster.profiling.{module}", told, max(1, len(cores)))
            return children.enter_context(child)

        # All load at the same time.
        decode = start("handoff_decode_child", task, task.cores)
        prefill = start("handoff_prefill_child", replace(task, cores=prefill_cores), prefill_cores)
        engines = [start("company_child", CompanyTask(one), one.cores) for one in company]
        port = decode.hear()["port"]
        for index, engine in enumerate(engines):
            engine.tell(DECODING if index else PREFILLING)
        for engine in engines:
            engine.hear()
        prefill.tell(str(port))
        for said in prefill.lines():
            yield EdgeBatch(**said)
