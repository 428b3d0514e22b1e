"""What a rank tells of itself."""

from __future__ import annotations

import os

from crossdock.v1 import worker_pb2 as pb
from worker.ranks.intervals import StepIntervals


def own_stats(rank: int, host: str, threads: int, intervals: StepIntervals) -> pb.RankStats:
    """For the rank that this process is; its cores are those it is bound to."""
    return pb.RankStats(
        rank=rank,
        pid=os.getpid(),
        host=host,
        cores=sorted(os.sched_getaffinity(0)),
        threads=threads,
        intervals=intervals.to_wire(),
    )
