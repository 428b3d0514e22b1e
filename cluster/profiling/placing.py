"""Which cores each process of a measurement is bound to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.shards import ParallelShape
from tuner.profile.points import EngineSetting

Cores = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placing:
    """Cores of each rank of the measured replica, and of each replica that keeps it company."""

    ranks: tuple[Cores, ...]
    company: tuple[Cores, ...]


def place(setting: EngineSetting, cores: Sequence[int]) -> Placing:
    """The measured replica gets the last cores: the first ones have more of the system's work.

    Company that shares its cores comes first; others have the cores before, in turn.
    """
    groups = _groups(cores, setting.threads)
    ranks = tuple(groups[: setting.shape.num_ranks])
    others = groups[len(ranks) :]
    sharing = [ranks[0]] if setting.core_share < 1 else []
    apart = setting.company - len(sharing)
    company = (*sharing, *(others[i % len(others)] for i in range(apart)))
    return Placing(ranks, company)


def place_edge(
    source: ParallelShape, target: ParallelShape, threads: int, cores: Sequence[int]
) -> tuple[tuple[Cores, ...], tuple[Cores, ...]]:
    """Cores of each rank of P and of D, up to ``threads`` each: P's are the first ones, D's the
    last. Ranks take turns on a half that has fewer."""
    half = max(1, len(cores) // 2)
    return (
        _shares(cores[:half], source.num_ranks, threads),
        _shares(cores[-half:][::-1], target.num_ranks, threads),
    )


def _shares(cores: Sequence[int], parts: int, most: int) -> tuple[Cores, ...]:
    size = max(1, min(most, len(cores) // parts))
    firsts = [part * size % len(cores) for part in range(parts)]
    return tuple(tuple(sorted(cores[first : first + size])) for first in firsts)


def _groups(cores: Sequence[int], size: int) -> list[Cores]:
    """As many whole groups as there are, the last cores first."""
    count = len(cores) // size
    first = len(cores) - count * size
    groups = [tuple(cores[first + i * size : first + (i + 1) * size]) for i in range(count)]
    return groups[::-1]
