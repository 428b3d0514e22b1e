"""One step's slices as the flat arrays that a model's forward reads.

Slices of one token come first and are attended to together; each longer slice is a span of its
own. Order in the batch is therefore not the order in the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from core.step import Slice, StepPlan
from engine.attention_index import AttentionIndex, attention_index
from engine.sliding_window import Window
from kernels.paged_attention import PoolShape


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of several sequences; all arrays int64 on the model's device.

    ``block_ids`` and ``offsets`` [T] say where each token's KV goes. Rows 0 to ``num_decodes - 1``
    are single tokens. ``attention``: what the layers of each window read. ``sampled_rows`` [R] are
    the rows whose logits are wanted; they belong to ``sampled_slices`` in this order.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    block_ids: torch.Tensor
    offsets: torch.Tensor
    num_decodes: int
    attention: Mapping[Window, AttentionIndex]
    sampled_rows: torch.Tensor
    sampled_slices: tuple[Slice, ...]


def build_batch(
    plan: StepPlan,
    shape: PoolShape,
    device: torch.device,
    windows: tuple[Window, ...] = (None,),
) -> Batch:
    """Lays a plan's slices out for the pool that has ``shape`` and layers of these windows."""
    decodes = [part for part in plan.slices if len(part.tokens) == 1]
    prefills = [part for part in plan.slices if len(part.tokens) > 1]
    ordered = decodes + prefills
    positions = [np.arange(part.start, part.end) for part in ordered]
    block_ids = [
        part.block_table[where // shape.block_size]
        for part, where in zip(ordered, positions, strict=True)
    ]
    flat_positions = np.concatenate(positions)
    ends = np.cumsum([len(part.tokens) for part in ordered])
    wanted = [i for i, part in enumerate(ordered) if part.samples]
    return Batch(
        token_ids=_to_device(np.concatenate([part.tokens for part in ordered]), device),
        positions=_to_device(flat_positions, device),
        block_ids=_to_device(np.concatenate(block_ids), device),
        offsets=_to_device(flat_positions % shape.block_size, device),
        num_decodes=len(decodes),
        attention={
            window: attention_index(decodes, prefills, shape, device, window) for window in windows
        },
        sampled_rows=_to_device(ends[wanted] - 1, device),
        sampled_slices=tuple(ordered[i] for i in wanted),
    )


def _to_device(
    values: np.ndarray[tuple[int, ...], np.dtype[np.int64]], device: torch.device
) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)
