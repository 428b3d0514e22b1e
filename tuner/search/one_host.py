"""How many threads workers have that share the cores of one host, as `crossdock serve` binds them.

A measured CPU profile is of one host. Whatever is simulated with it runs there: one worker has all
cores, several have a share each, and where there are more ranks than cores some share a core. Pure.
Does not cover: how much slower that makes them (``tuner.simulate.shared_host``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.affinity import assign_cores
from core.latency_profile import EngineProfile, LatencyProfile
from core.shards import ParallelShape

Holds = Callable[[ParallelShape, EngineProfile], bool]


def threads_on_host(
    profile: LatencyProfile,
    replicas: Sequence[ParallelShape],
    holds: Holds,
    wanted: int | None = None,
) -> int | None:
    """Of each rank of ``replicas`` (the shape of each) on the host of ``profile``: the most that
    were profiled and have a core each, or ``wanted``. ``holds``: whether a replica has memory
    enough. None if no such number of threads was profiled like that.
    """
    ranks = sum(shape.num_ranks for shape in replicas)
    cores_of_rank = min(map(len, assign_cores(range(profile.cores), ranks)))
    shares = (1.0, 0.5) if ranks > profile.cores else (1.0,)
    shapes = set(replicas)

    def suits(threads: int) -> bool:
        there = {(e.shape, e.core_share) for e in profile.engines if e.threads == threads}
        return there >= {(shape, share) for shape in shapes for share in shares} and all(
            holds(shape, profile.engine(shape, threads=threads, company=len(replicas) - 1))
            for shape in shapes
        )

    profiled = sorted({engine.threads for engine in profile.engines}, reverse=True)
    allowed = [n for n in profiled if n <= cores_of_rank and wanted in (None, n)]
    return next((n for n in allowed if suits(n)), None)


def common_threads(
    profiles: Sequence[LatencyProfile],
    shapes: Sequence[ParallelShape],
    wanted: int | None = None,
) -> int | None:
    """Of workers with hardware of their own: one config says one number for all pools. The most
    that every one of ``profiles`` has of its shape, or ``wanted``; None if they have none such."""
    profiled = [
        {e.threads for e in profile.engines if (e.shape, e.core_share) == (shape, 1.0)}
        for profile, shape in zip(profiles, shapes, strict=True)
    ]
    allowed = [n for n in set.intersection(*profiled) if wanted in (None, n)]
    return max(allowed, default=None)
