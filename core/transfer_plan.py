"""Which part of which rank's blocks goes to which rank: any split on P to any split on D.

Both sides make the plan for themselves from the two shapes, so it never travels. Each part of a
block on D comes from exactly one rank of P: heads that P holds several times are sent once, spread
over their holders. Does not cover: moving the bytes (``kv_transfer``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from core.kv_layout import DTYPE_BYTES, KVLayout
from core.shards import ParallelShape, Region, kv_shards, shard_layout


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """What one rank of P sends to one rank of D, of every block: one rectangle of layers × heads.

    ``source_region`` is counted within P's rank, ``destination_region`` within D's; they have the
    same size. ``source_layout`` and ``destination_layout``: blocks of the two ranks.
    """

    source: int
    destination: int
    source_region: Region
    destination_region: Region
    source_layout: KVLayout
    destination_layout: KVLayout

    @property
    def block_bytes(self) -> int:
        """Bytes of one block that come over this edge."""
        return shard_layout(self.source_layout, self.source_region).block_bytes

    @property
    def source_runs(self) -> Runs:
        return region_runs(self.source_layout, self.source_region)

    @property
    def destination_runs(self) -> Runs:
        return region_runs(self.destination_layout, self.destination_region)


# int64 [n, 2]: offset in bytes from the block's start, and length, in ascending order.
Runs = npt.NDArray[np.int64]


@lru_cache(maxsize=256)
def make_plan(
    layout: KVLayout, source: ParallelShape, destination: ParallelShape
) -> tuple[EdgePlan, ...]:
    """All edges, ordered by D's rank, then P's. ``layout``: blocks of the whole model.

    Raises ``InvalidField`` if the model can't be split into one of the shapes.
    """
    senders = kv_shards(layout, source)
    receivers = kv_shards(layout, destination)
    holders: dict[Region, list[int]] = {}
    for i, held in enumerate(senders):
        holders.setdefault(held, []).append(i)
    return tuple(
        _edge(layout, senders, receivers, i, j)
        for j in range(len(receivers))
        for i in _sources_of(holders, receivers[j], j)
    )


def edges_from(plan: Sequence[EdgePlan], rank: int) -> list[int]:
    """Places in the plan of the edges that start at this rank of P."""
    return [place for place, edge in enumerate(plan) if edge.source == rank]


def edges_to(plan: Sequence[EdgePlan], rank: int) -> list[int]:
    """Places in the plan of the edges that end at this rank of D."""
    return [place for place, edge in enumerate(plan) if edge.destination == rank]


def region_runs(layout: KVLayout, region: Region) -> Runs:
    """Where the region's bytes lie in a block of ``layout``, neighbours joined."""
    head_bytes = layout.block_size * layout.head_dim * DTYPE_BYTES[layout.dtype]
    side_bytes = layout.num_kv_heads * head_bytes
    sides = np.arange(2 * region.layers.start, 2 * region.layers.stop, dtype=np.int64)
    starts = sides * side_bytes + region.heads.start * head_bytes
    length = len(region.heads) * head_bytes
    if length == side_bytes:
        return np.array([[starts[0], length * len(starts)]], dtype=np.int64)
    return np.stack([starts, np.full_like(starts, length)], axis=1)


def _sources_of(
    holders: Mapping[Region, Sequence[int]], wanted: Region, destination: int
) -> list[int]:
    """The ranks of P that send to a rank of D: one for each different part that it needs.

    ``holders``: which ranks hold each part.
    """
    return sorted(
        ranks[destination % len(ranks)]
        for held, ranks in holders.items()
        if not held.intersection(wanted).is_empty
    )


def _edge(
    layout: KVLayout, senders: Sequence[Region], receivers: Sequence[Region], i: int, j: int
) -> EdgePlan:
    common = senders[i].intersection(receivers[j])
    return EdgePlan(
        source=i,
        destination=j,
        source_region=common.within(senders[i]),
        destination_region=common.within(receivers[j]),
        source_layout=shard_layout(layout, senders[i]),
        destination_layout=shard_layout(layout, receivers[j]),
    )
