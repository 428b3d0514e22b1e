"""Which cores and how many threads a process of the engine uses. Imports no torch by itself."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Sequence
from pathlib import Path


def bind_cores(cores: Sequence[int]) -> None:
    """Pins all threads of this process, and those started later; no cores: leaves it as it is.

    All of them: Ray has started its own before, which otherwise take turns with other workers.
    """
    if not cores:
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # It has ended meanwhile.
            os.sched_setaffinity(int(thread.name), cores)


def bind_process(cores: Sequence[int], threads: int) -> None:
    """Pins this process and torch's threads. Call before anything starts threads: torch reads the
    affinity of the process when it is imported."""
    bind_cores(cores)
    import torch

    torch.set_num_threads(threads)
    from native import library

    library.set_threads(threads)


def exempt_from_collection() -> None:
    """Call when all is loaded: the garbage collector no longer walks what is there by then (Ray,
    modules, the model), which is a pause of up to 0.2 s in the midst of a stream."""
    gc.collect()
    gc.freeze()
