"""One step's slices as the flat arrays that a model's forward reads.

Slices of one token come first. Order in the batch is therefore not the order in the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from core.step import Slice, StepPlan
from kernels.paged_sequences import PagedSequences

IntArray = npt.NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of several sequences; all arrays int64 on the model's device.

    ``slots`` [T] say where each token's KV goes: block id * block_size + offset. ``sampled_rows``
    [R] are the rows whose logits are wanted; they belong to ``sampled_slices`` in this order.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sequences: PagedSequences
    sampled_rows: torch.Tensor
    sampled_slices: tuple[Slice, ...]


def build_batch(plan: StepPlan, block_size: int, device: torch.device) -> Batch:
    """Lays a plan's slices out for a pool with blocks of ``block_size`` tokens."""
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
    return Batch(
        token_ids=_to_device(np.concatenate([part.tokens for part in ordered]), device),
        positions=_to_device(flat_positions, device),
        slots=_to_device(slots, device),
        sequences=_sequences(ordered, counts, block_size, device),
        sampled_rows=_to_device(counts.cumsum()[wanted] - 1, device),
        sampled_slices=tuple(ordered[i] for i in wanted),
    )


def _sequences(
    ordered: list[Slice], counts: IntArray, block_size: int, device: torch.device
) -> PagedSequences:
    lengths = np.array([part.end for part in ordered], dtype=np.int32)
    used = -(-lengths // block_size)
    tables = np.zeros((len(ordered), int(used.max())), dtype=np.int32)
    for row, part, count in zip(tables, ordered, used, strict=True):
        row[:count] = part.block_table[:count]
    first_rows = np.zeros(len(ordered) + 1, dtype=np.int32)
    counts.cumsum(out=first_rows[1:])
    return PagedSequences(
        block_tables=torch.from_numpy(tables).to(device),
        lengths=torch.from_numpy(lengths).to(device),
        first_rows=torch.from_numpy(first_rows).to(device),
        num_decodes=int((counts == 1).sum()),
        longest_query=int(counts.max()),
        longest=int(lengths.max()),
    )


def _to_device(values: IntArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)
