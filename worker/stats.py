"""A worker's statistics as `Worker.GetStats` tells them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2 as pb
from wire.attempts import load_to_wire
from worker.brain import Brain


def make_stats(
    settings: WorkerSettings,
    epoch: int,
    brain: Brain[Any, Any],
    edges: Sequence[pb.EdgeStats],
    ranks: Sequence[pb.RankStats],
    routers: int,
) -> pb.WorkerStats:
    """A snapshot; the caller holds the lock that guards ``brain``."""
    counters, pool = brain.counters, brain.pool
    return pb.WorkerStats(
        worker=settings.worker,
        epoch=epoch,
        role=settings.role.value,
        load=load_to_wire(brain.load),
        total_blocks=pool.num_blocks,
        free_blocks=pool.num_free,
        cached_blocks=pool.num_cached,
        leased_blocks=pool.num_leased,
        quarantined_blocks=pool.num_quarantined,
        prefill_tokens_computed=counters.prefill_tokens_computed,
        recomputed_tokens=counters.recomputed_tokens,
        decode_tokens=counters.decode_tokens,
        preemptions=counters.preemptions,
        prefix_tokens_hit=counters.prefix_tokens_hit,
        leases=brain.num_leases,
        edges=edges,
        events=[
            pb.LoggedEvent(at_s=e.at, name=e.name, attempt=str(e.key), detail=e.detail)
            for e in brain.events
        ],
        cores=sorted(os.sched_getaffinity(0)),
        threads=settings.threads,
        pid=os.getpid(),
        steps=counters.steps,
        routers=routers,
        ranks=ranks,
        max_num_seqs=settings.max_num_seqs,
    )
