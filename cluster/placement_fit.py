"""Says in plain words that a Ray cluster can never hold what is wanted, instead of waiting.

Also decides, from the size of the nodes, into which bundles a replica's ranks go. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.errors import Unavailable
from core.shards import ONE_RANK, ParallelShape

Resources = Mapping[str, float]

# Ray counts in ten-thousandths.
_EPSILON = 1e-4


@dataclass(frozen=True, slots=True)
class ReplicaNeed:
    """What one replica takes of Ray's resources: ``rank`` for each of its ranks."""

    rank: Resources
    shape: ParallelShape = ONE_RANK

    @property
    def total(self) -> Resources:
        return _times(self.rank, self.shape.num_ranks)


@dataclass(frozen=True, slots=True)
class Bundles:
    """A replica as Ray places it: each of the ``needs`` goes to one node. ``of_rank``: which one
    each rank is in."""

    needs: tuple[Resources, ...]
    of_rank: tuple[int, ...]


def split_into_bundles(need: ReplicaNeed, nodes: Sequence[Resources]) -> Bundles:
    """One bundle for each stage of the pipeline, so that its tensor ranks stay together, if the
    ``nodes`` (total resources of each) are large enough for that; else one for each rank."""
    shape = need.shape
    stage = _times(need.rank, shape.tensor)
    ranks = range(shape.num_ranks)
    if sum(_count_fitting(stage, node) for node in nodes) >= shape.pipeline:
        return Bundles((stage,) * shape.pipeline, tuple(shape.stage_of(rank) for rank in ranks))
    return Bundles((need.rank,) * shape.num_ranks, tuple(ranks))


def fits_on_one_node(need: ReplicaNeed, nodes: Iterable[Resources]) -> bool:
    """Whether some node, if nothing else ran there, could hold the whole replica."""
    return any(_fits(need.total, node) for node in nodes)


def check_fit(nodes: Sequence[Resources], wanted: Mapping[str, Sequence[ReplicaNeed]]) -> None:
    """``nodes``: total resources of each; ``wanted``: the replicas of each pool.

    Raises ``Unavailable`` if a rank is larger than every node, or all are more than all nodes.
    """
    for pool, replicas in wanted.items():
        for need in replicas:
            if not any(_fits(need.rank, node) for node in nodes):
                has = "; ".join(show(_relevant(node, need.rank)) for node in nodes)
                who = "a" if need.shape == ONE_RANK else "each rank of a"
                raise _unavailable(
                    f"{who} {pool} replica needs {show(need.rank)}, and no node of this Ray "
                    f"cluster has that much (nodes: {has})"
                )
    _check_totals(nodes, [need for replicas in wanted.values() for need in replicas])


def check_free(
    needs: Sequence[ReplicaNeed], free: Resources, leaving: Sequence[ReplicaNeed] = ()
) -> None:
    """``free``: resources of the whole cluster that nobody has at present; ``leaving``: replicas
    that end before. Raises ``Unavailable``."""
    for name, total in _sums(needs).items():
        room = free.get(name, 0.0) + _sums(leaving).get(name, 0.0)
        if total > room + _EPSILON:
            raise _unavailable(
                f"{_count(needs, 'more ')} need {name} {total:g}, and only {room:g} of this Ray "
                "cluster is free: add nodes, or scale another pool down first"
            )


def choose_node(nodes: Mapping[str, Resources], needs: Sequence[ReplicaNeed], own: str) -> str:
    """A node (by id) that is large enough for all, rather our ``own`` one."""
    total = _sums(needs)
    large = [node for node, has in nodes.items() if _fits(total, has)]
    return own if own in large or not large else large[0]


def show(resources: Resources) -> str:
    """E.g. "CPU 0.5, GPU 1"."""
    return ", ".join(f"{name} {amount:g}" for name, amount in resources.items()) or "nothing"


def _check_totals(nodes: Sequence[Resources], needs: Sequence[ReplicaNeed]) -> None:
    for name, total in _sums(needs).items():
        there = sum(node.get(name, 0.0) for node in nodes)
        if total > there + _EPSILON:
            raise _unavailable(
                f"{_count(needs)} need {name} {total:g} together, and this Ray cluster has "
                f"{there:g}; set pools.prefill.resources and pools.decode.resources lower, or "
                "start fewer replicas"
            )


def _count(needs: Sequence[ReplicaNeed], more: str = "") -> str:
    ranks = sum(need.shape.num_ranks for need in needs)
    of_ranks = "" if ranks == len(needs) else f" of {ranks} ranks together"
    return f"{len(needs)} {more}replicas{of_ranks}"


def _sums(needs: Sequence[ReplicaNeed]) -> dict[str, float]:
    totals = [need.total for need in needs]
    names = sorted({name for total in totals for name in total})
    return {name: sum(total.get(name, 0.0) for total in totals) for name in names}


def _times(resources: Resources, count: int) -> Resources:
    return {name: amount * count for name, amount in resources.items()}


def _fits(need: Resources, node: Resources) -> bool:
    return all(node.get(name, 0.0) + _EPSILON >= amount for name, amount in need.items())


def _count_fitting(need: Resources, node: Resources) -> int:
    """How many of these one node holds."""
    counts = [int((node.get(name, 0.0) + _EPSILON) / amount) for name, amount in need.items()]
    return min(counts)


def _relevant(node: Resources, need: Resources) -> Resources:
    return {name: node.get(name, 0.0) for name in need}


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, reason="NOT_ENOUGH_RESOURCES")
