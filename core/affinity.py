"""Which CPU cores belong to which worker of a node: shares do not overlap while cores last.

A stray spinning thread, or two engines on one core by accident, triples the time per token;
so cores are given out on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import InvalidField


def share_cores(
    available: Sequence[int], taken: Sequence[Sequence[int]], workers: int = 1
) -> list[tuple[int, ...]]:
    """Cores of each of ``workers`` more workers beside those whose cores are ``taken``: as many as
    a fair share of all would be (at least one), the least crowded ones."""
    size = max(1, len(available) // (len(taken) + workers))
    crowd = {core: sum(core in cores for cores in taken) for core in available}
    shares: list[tuple[int, ...]] = []
    for _ in range(workers):
        share = sorted(available, key=lambda core: (crowd[core], core))[:size]
        crowd |= {core: crowd[core] + 1 for core in share}
        shares.append(tuple(sorted(share)))
    return shares


def assign_cores(available: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Cores of each of ``workers`` workers, from the ids of the ``available`` ones.

    With enough cores the shares are disjoint, adjacent, and differ by at most one core (the
    first workers get the larger ones). Else each worker gets one core, in turn.
    """
    if not available:
        raise InvalidField("available", list(available), "a node has at least one CPU core")
    cores = list(available)
    if workers > len(cores):
        return [(cores[i % len(cores)],) for i in range(workers)]
    shares: list[tuple[int, ...]] = []
    start = 0
    for i in range(workers):
        size = len(cores) // workers + (i < len(cores) % workers)
        shares.append(tuple(cores[start : start + size]))
        start += size
    return shares
