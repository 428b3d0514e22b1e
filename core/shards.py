"""How a replica is split into ranks, and which part of the KV each rank holds.

A replica is tensor × pipeline ranks. The stages of the pipeline share the layers; the tensor ranks
of a stage share its heads. Rank = stage × tensor + tensor rank; rank 0 leads the replica.
Does not cover: how weights are split (``engine.model_shard``), moving KV between two splits
(``core.transfer_plan``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.errors import InvalidField
from core.kv_layout import KVLayout

# Of one replica; whoever states more at a handshake is refused.
MAX_RANKS = 256


@dataclass(frozen=True, slots=True)
class ParallelShape:
    """``tensor`` ranks in each of ``pipeline`` stages."""

    tensor: int = 1
    pipeline: int = 1

    def __str__(self) -> str:
        return f"{self.tensor}×{self.pipeline}"

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.pipeline

    def stage_of(self, rank: int) -> int:
        return rank // self.tensor

    def tensor_rank_of(self, rank: int) -> int:
        return rank % self.tensor


ONE_RANK = ParallelShape()


@dataclass(frozen=True, slots=True)
class Region:
    """A part of one rank's blocks: these layers and KV heads, for all tokens, K and V."""

    layers: range
    heads: range

    @property
    def is_empty(self) -> bool:
        return not self.layers or not self.heads

    def within(self, outer: Region) -> Region:
        """The same part, counted from where ``outer`` begins."""
        return Region(
            _shift(self.layers, -outer.layers.start), _shift(self.heads, -outer.heads.start)
        )

    def intersection(self, other: Region) -> Region:
        return Region(_common(self.layers, other.layers), _common(self.heads, other.heads))


def kv_shards(layout: KVLayout, shape: ParallelShape) -> tuple[Region, ...]:
    """What each rank holds, in the order of ranks, of a replica whose whole KV is ``layout``.

    Heads are split where they divide, and held several times where ``tensor`` is a multiple of
    them. Raises ``InvalidField`` as `check_kv_split` does.
    """
    check_kv_split(shape, layout.num_layers, layout.num_kv_heads)
    return tuple(
        Region(
            part_of(layout.num_layers, shape.pipeline, shape.stage_of(rank)),
            _heads_of(layout.num_kv_heads, shape.tensor, shape.tensor_rank_of(rank)),
        )
        for rank in range(shape.num_ranks)
    )


def shard_layout(layout: KVLayout, shard: Region) -> KVLayout:
    """The layout of the blocks of a rank that holds ``shard``."""
    return replace(layout, num_layers=len(shard.layers), num_kv_heads=len(shard.heads))


def part_of(total: int, parts: int, index: int) -> range:
    """The ``index``-th of ``parts`` adjacent ranges over ``total`` things; the first ones are
    longer by one where it does not divide."""
    size, longer = divmod(total, parts)
    start = index * size + min(index, longer)
    return range(start, start + size + (index < longer))


def check_kv_split(
    shape: ParallelShape,
    num_layers: int,
    num_kv_heads: int,
    num_heads: int | None = None,
    where: str = "",
) -> None:
    """Raises ``InvalidField`` with the valid sizes if a model can't be split like that.

    ``num_heads``: query heads, if their split is to be checked too; ``where``: path of the
    settings, with a dot at its end.
    """
    tensor_sizes = valid_tensor_sizes(num_kv_heads, num_heads, shape.tensor)
    if shape.tensor not in tensor_sizes:
        of_heads = "" if num_heads is None else f"{num_heads} heads and "
        valid = valid_tensor_sizes(num_kv_heads, num_heads, num_heads or 4 * num_kv_heads)
        raise InvalidField(
            f"{where}tensor_parallel_size",
            shape.tensor,
            f"a model of {of_heads}{num_kv_heads} KV heads can be split into "
            f"{', '.join(map(str, valid))}",
            reason="CANNOT_SPLIT",
        )
    if not 1 <= shape.pipeline <= num_layers:
        raise InvalidField(
            f"{where}pipeline_parallel_size",
            shape.pipeline,
            f"a model of {num_layers} layers can be split into 1 to {num_layers} stages",
            reason="CANNOT_SPLIT",
        )


def valid_tensor_sizes(num_kv_heads: int, num_heads: int | None, largest: int) -> list[int]:
    """All sizes up to ``largest`` that divide the heads, and divide the KV heads or are a multiple
    of them."""
    return [
        size
        for size in range(1, largest + 1)
        if (num_heads is None or num_heads % size == 0)
        and (num_kv_heads % size == 0 or size % num_kv_heads == 0)
    ]


def _heads_of(num_kv_heads: int, tensor: int, tensor_rank: int) -> range:
    if tensor <= num_kv_heads:
        return part_of(num_kv_heads, tensor, tensor_rank)
    head = tensor_rank * num_kv_heads // tensor
    return range(head, head + 1)


def _shift(numbers: range, by: int) -> range:
    return range(numbers.start + by, numbers.stop + by)


def _common(a: range, b: range) -> range:
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))
