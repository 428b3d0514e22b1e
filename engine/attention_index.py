"""What the attention of one step reads, for all layers of one window.

Does not cover: the order of slices in a batch (``engine.batch``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from core.step import Slice
from engine.sliding_window import Window
from kernels.paged_attention import (
    DecodeIndex,
    PoolShape,
    PrefillIndex,
    decode_index,
    prefill_index,
)


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Rows ``first`` to ``last - 1`` of the batch are one sequence's chunk."""

    first: int
    last: int
    index: PrefillIndex


@dataclass(frozen=True, slots=True)
class AttentionIndex:
    """``decodes`` is None without single tokens; their rows come before those of ``prefills``."""

    decodes: DecodeIndex | None
    prefills: tuple[PrefillSpan, ...]


def attention_index(
    decodes: list[Slice],
    prefills: list[Slice],
    shape: PoolShape,
    device: torch.device,
    window: Window,
) -> AttentionIndex:
    """Index over slices of one token and, after them, slices of more."""
    return AttentionIndex(
        _decode_index(decodes, shape, device, window),
        _prefill_spans(prefills, len(decodes), shape, device, window),
    )


def _decode_index(
    decodes: list[Slice], shape: PoolShape, device: torch.device, window: Window
) -> DecodeIndex | None:
    if not decodes:
        return None
    lengths = np.array([part.end for part in decodes], dtype=np.int32)
    return decode_index([part.block_table for part in decodes], lengths, shape, device, window)


def _prefill_spans(
    prefills: list[Slice], first: int, shape: PoolShape, device: torch.device, window: Window
) -> tuple[PrefillSpan, ...]:
    spans: list[PrefillSpan] = []
    for part in prefills:
        last = first + len(part.tokens)
        index = prefill_index(part.block_table, part.start, part.end, shape, device, window)
        spans.append(PrefillSpan(first, last, index))
        first = last
    return tuple(spans)
