"""One step's slices as the flat arrays that a model's forward reads.

Slices of one token come first. Order in the batch is therefore not the order in the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from core.step import Slice, StepPlan
from engine.upload import Upload
from kernels.paged_sequences import PagedSequences

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchArrays:
    """T tokens of S sequences, in host memory. `Batch` says what is in them.

    int64: ``token_ids``, ``positions`` and ``slots`` [T], ``sampled_rows`` [R]; int32:
    ``block_tables`` [S, M], ``lengths`` [S], ``first_rows`` [S + 1].
    """

    token_ids: Int64Array
    positions: Int64Array
    slots: Int64Array
    block_tables: Int32Array
    lengths: Int32Array
    first_rows: Int32Array
    sampled_rows: Int64Array
    sampled_slices: tuple[Slice, ...]
    num_decodes: int
    longest_query: int
    longest: int


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of several sequences; arrays on the model's device.

    ``slots`` [T] say where each token's KV goes: block id * block_size + offset. ``sampled_rows``
    [R] are the rows whose logits are wanted.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sequences: PagedSequences
    sampled_rows: torch.Tensor


def batch_arrays(plan: StepPlan, block_size: int) -> BatchArrays:
    """Lays a plan's slices out for a pool with blocks of ``block_size`` tokens.

    The rows that are sampled belong to ``sampled_slices`` in this order.
    """
    ordered = sorted(plan.slices, key=lambda part: len(part.tokens) > 1)
    counts = np.array([len(part.tokens) for part in ordered])
    positions = [np.arange(part.start, part.end) for part in ordered]
    block_ids = [
        part.block_table[where // block_size]
        for part, where in zip(ordered, positions, strict=True)
    ]
    flat_positions = np.concatenate(positions)
    slots = np.concatenate(block_ids).astype(np.int64) * block_size + flat_positions % block_size
    wanted = [i for i, part in enumerate(ordered) if part.samples]
    first_rows = np.zeros(len(ordered) + 1, dtype=np.int32)
    counts.cumsum(out=first_rows[1:])
    return BatchArrays(
        token_ids=np.concatenate([part.tokens for part in ordered]).astype(np.int64),
        positions=flat_positions,
        slots=slots,
        block_tables=_block_tables(ordered, block_size),
        lengths=np.array([part.end for part in ordered], dtype=np.int32),
        first_rows=first_rows,
        sampled_rows=counts.cumsum()[wanted] - 1,
        sampled_slices=tuple(ordered[i] for i in wanted),
        num_decodes=int((counts == 1).sum()),
        longest_query=int(counts.max()),
        longest=max(part.end for part in ordered),
    )


def joined_arrays(decodes: BatchArrays, others: BatchArrays) -> BatchArrays:
    """One step of both; ``decodes`` has one token of each of its sequences."""
    count = len(decodes.token_ids)
    return BatchArrays(
        token_ids=np.concatenate([decodes.token_ids, others.token_ids]),
        positions=np.concatenate([decodes.positions, others.positions]),
        slots=np.concatenate([decodes.slots, others.slots]),
        block_tables=_stacked(decodes.block_tables, others.block_tables),
        lengths=np.concatenate([decodes.lengths, others.lengths]),
        first_rows=np.concatenate([decodes.first_rows[:-1], others.first_rows + np.int32(count)]),
        sampled_rows=np.concatenate([decodes.sampled_rows, others.sampled_rows + count]),
        sampled_slices=decodes.sampled_slices + others.sampled_slices,
        num_decodes=decodes.num_decodes + others.num_decodes,
        longest_query=max(decodes.longest_query, others.longest_query),
        longest=max(decodes.longest, others.longest),
    )


def to_device(arrays: BatchArrays, upload: Upload) -> Batch:
    """Enqueues one copy on the current stream, without waiting for it."""
    token_ids, positions, slots, tables, lengths, first_rows, sampled_rows = upload.to_device(
        (
            arrays.token_ids,
            arrays.positions,
            arrays.slots,
            arrays.block_tables,
            arrays.lengths,
            arrays.first_rows,
            arrays.sampled_rows,
        )
    )
    sequences = PagedSequences(
        block_tables=tables,
        lengths=lengths,
        first_rows=first_rows,
        num_decodes=arrays.num_decodes,
        longest_query=arrays.longest_query,
        longest=arrays.longest,
    )
    return Batch(token_ids, positions, slots, sequences, sampled_rows)


def _stacked(above: Int32Array, below: Int32Array) -> Int32Array:
    """Rows of both, with as many columns as the wider one has."""
    rows, width = len(above) + len(below), max(above.shape[1], below.shape[1])
    tables = np.zeros((rows, width), np.int32)
    tables[: len(above), : above.shape[1]] = above
    tables[len(above) :, : below.shape[1]] = below
    return tables


def _block_tables(ordered: list[Slice], block_size: int) -> Int32Array:
    used = [-(-part.end // block_size) for part in ordered]
    tables = np.zeros((len(ordered), max(used)), dtype=np.int32)
    for row, part, count in zip(tables, ordered, used, strict=True):
        row[:count] = part.block_table[:count]
    return tables
