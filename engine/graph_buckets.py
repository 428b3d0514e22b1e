"""Which decode steps run as a captured graph, and how a batch is padded to fit one: decisions only.

A graph computes a fixed number of rows, so there is one for each of some numbers (buckets), and a
step takes the smallest that holds it. The rows beyond the batch belong to sequences of length 0
(their attention reads nothing) and have no slot (−1: they write nothing); their logits are ignored.
A graph is captured once: what may differ from step to step is in the arrays, and all else (weights,
pool, widths) stays as it is for as long as the runner lives, so that nothing is captured again.
Does not cover: capturing and replaying (``engine.cuda_graphs``).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from core.shards import ONE_RANK, ParallelShape
from engine.batch import BatchArrays, Int32Array, Int64Array

NO_SLOT = -1
# As vLLM: beyond the first few a row more or less costs next to nothing.
_FIRST, _EVERY = (1, 2, 4), 8


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """What a graph of ``rows`` rows reads; the fields as in `BatchArrays`, without its own order.

    The first M columns of the graph's block tables; beyond a sequence's own they may be anything.
    """

    token_ids: Int64Array
    positions: Int64Array
    slots: Int64Array
    lengths: Int32Array
    block_tables: Int32Array

    @property
    def rows(self) -> int:
        return len(self.token_ids)

    @property
    def arrays(self) -> tuple[Int64Array | Int32Array, ...]:
        """In the order in which they are packed: those of a fixed size first."""
        return (self.token_ids, self.positions, self.slots, self.lengths, self.block_tables)


@dataclass(frozen=True, slots=True)
class DecodeBuckets:
    """``sizes``, ascending, in rows; ``table_width``: blocks of the longest sequence."""

    sizes: tuple[int, ...]
    table_width: int

    def bucket_for(self, arrays: BatchArrays) -> int | None:
        """The size to pad to; None where the step has to be computed without a graph.

        That is: with prompts in it, with rows whose logits nobody wants, or larger than any graph.
        """
        rows = len(arrays.token_ids)
        if arrays.longest_query > 1 or len(arrays.sampled_rows) < rows:
            return None
        if rows > self.sizes[-1] or arrays.block_tables.shape[1] > self.table_width:
            return None
        return self.sizes[bisect_left(self.sizes, rows)]


def has_graphs(device: str, shape: ParallelShape, max_rows: int) -> bool:
    """Only on GPUs, and only for replicas of one rank: what ranks say to each other is not captured
    (gloo can't be, and a graph with NCCL in it would hang where an eager step fails).

    ``max_rows``: the most sequences that decode in a step; 0 on workers that don't.
    """
    return device.startswith("cuda") and shape == ONE_RANK and max_rows > 0


def bucket_sizes(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, then every multiple of 8, and ``max_rows`` (at least 1) itself."""
    small = (size for size in _FIRST if size < max_rows)
    return (*small, *range(_EVERY, max_rows, _EVERY), max_rows)


def decode_buckets(
    max_rows: int, max_positions: int, num_blocks: int, block_size: int
) -> DecodeBuckets:
    """For sequences as long as the model (``max_positions``) and the pool allow."""
    width = min(-(-max_positions // block_size), num_blocks)
    return DecodeBuckets(bucket_sizes(max_rows), width)


def padded(arrays: BatchArrays, rows: int) -> DecodeInputs:
    """The inputs of a graph of ``rows`` rows; ``arrays`` has one token for each sequence."""
    missing = rows - len(arrays.token_ids)
    return DecodeInputs(
        token_ids=np.pad(arrays.token_ids, (0, missing)),
        positions=np.pad(arrays.positions, (0, missing)),
        slots=np.pad(arrays.slots, (0, missing), constant_values=NO_SLOT),
        lengths=np.pad(arrays.lengths, (0, missing)),
        block_tables=np.pad(arrays.block_tables, ((0, missing), (0, 0))),
    )


def padding(rows: int, width: int) -> DecodeInputs:
    """Padding only, with block tables of ``width`` columns: what graphs are captured with."""
    return DecodeInputs(
        token_ids=np.zeros(rows, np.int64),
        positions=np.zeros(rows, np.int64),
        slots=np.full(rows, NO_SLOT, np.int64),
        lengths=np.zeros(rows, np.int32),
        block_tables=np.zeros((rows, width), np.int32),
    )
