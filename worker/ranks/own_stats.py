"""What a rank tells of itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

from core.worker_settings import RankSettings
from crossdock.v1 import worker_pb2 as pb
from engine.dtypes import torch_dtype
from kernels.dispatch import description
from worker.ranks.intervals import StepIntervals

# In pages: all, resident, shared, … (Linux).
_MEMORY = Path("/proc/self/statm")


def own_stats(settings: RankSettings, intervals: StepIntervals) -> pb.RankStats:
    """For the rank that this process is; its cores are those it is bound to."""
    worker = settings.worker
    return pb.RankStats(
        rank=settings.rank,
        pid=os.getpid(),
        host=settings.host,
        cores=sorted(os.sched_getaffinity(0)),
        threads=settings.threads,
        intervals=intervals.to_wire(),
        kernels=description(worker.device, torch_dtype(worker.dtype)),
        steps=intervals.steps,
        busy_s=intervals.busy_s,
        cpu_s=time.process_time(),
        resident_bytes=_resident_bytes(),
    )


def _resident_bytes() -> int:
    try:
        pages = int(_MEMORY.read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
