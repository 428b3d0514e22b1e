"""Which workers of a cluster share the cores of one host, as `crossdock serve` binds them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.affinity import assign_cores
from core.config import ClusterSpec


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """One worker of ``pool``: the cores of each of its ranks. ``crowd``: with how many other
    workers it shares a core; ``apart``: how many compute on other cores of the host."""

    pool: str
    cores: tuple[tuple[int, ...], ...]
    crowd: int
    apart: int

    @property
    def cores_of_rank(self) -> int:
        """The fewest that a rank has."""
        return min(map(len, self.cores))

    @property
    def shared_core(self) -> int | None:
        return self.cores[0][0] if self.crowd else None


def place_workers(spec: ClusterSpec, cores: int) -> list[WorkerPlace]:
    """All workers of ``spec`` on one host of ``cores`` cores, in the order in which they start."""
    pools = [pool for pool in ("prefill", "decode") for _ in range(spec.pools.of(pool).replicas)]
    sizes = [spec.pools.of(pool).shape.num_ranks for pool in pools]
    bound = [tuple(ranks) for ranks in _split(assign_cores(range(cores), sum(sizes)), sizes)]
    used = [{core for rank in ranks for core in rank} for ranks in bound]
    places = []
    for index, (pool, ranks) in enumerate(zip(pools, bound, strict=True)):
        crowd = sum(bool(used[index] & other) for other in used) - 1
        places.append(WorkerPlace(pool, ranks, crowd, len(pools) - 1 - crowd))
    return places


def _split(cores: list[tuple[int, ...]], sizes: list[int]) -> Iterator[list[tuple[int, ...]]]:
    start = 0
    for size in sizes:
        yield cores[start : start + size]
        start += size
