"""Paged attention by torch's own operations: the path that needs no compiler.

The blocks that a step reads are gathered to contiguous tensors and given to
``scaled_dot_product_attention``; decodes are padded to the longest of those with a similar length.
Every (block, layer, k/v, head) is one contiguous row of the pool, and blocks are gathered row by
row: that is 6 times quicker than indexing the pool with several index tensors. An index is built
once per step and window and serves all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kernels.paged_sequences import PagedSequences

IntArray = npt.NDArray[np.int32]


def paged_attention_torch(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    sequences: PagedSequences,
    window: int | None,
) -> torch.Tensor:
    """`kernels.paged_attention.paged_attention` for any dtype and device."""
    index = sequences.derived.get(window)
    if index is None:
        index = sequences.derived[window] = _index(sequences, PoolShape.of(pool), window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for rows, decodes in index.decodes:
        out[rows] = decode_attention(q[rows], pool, layer, decodes)
    for span, prefill in index.prefills:
        out[span] = prefill_attention(q[span], pool, layer, prefill)
    return out


@dataclass(frozen=True, slots=True)
class PoolShape:
    """Axes of the pool that a gather needs to know."""

    num_layers: int
    kv_heads: int
    block_size: int
    head_dim: int

    @staticmethod
    def of(pool: torch.Tensor) -> PoolShape:
        _, layers, _, kv_heads, block_size, head_dim = pool.shape
        return PoolShape(layers, kv_heads, block_size, head_dim)


@dataclass(frozen=True, slots=True)
class DecodeIndex:
    """What the decode gather of a step reads: S sequences, padded to M blocks each.

    ``rows`` int64 [S * 2 * kv_heads * M] for layer 0; ``mask`` bool [S, 1, 1, M * block_size], true
    where a token is that the query sees; ``unwritten`` (sequence, gathered cell), int64 each: cells
    to clear.
    """

    rows: torch.Tensor
    mask: torch.Tensor
    unwritten: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class PrefillIndex:
    """What the gather of one prefill chunk reads: ``rows`` int64 [2 * kv_heads * M] for layer 0.

    ``end`` counts the gathered tokens, cached and new. ``mask`` bool [chunk, end] is None where
    plain causality is enough: without a prefix, and with no window or a wider one.
    """

    rows: torch.Tensor
    end: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class TorchIndex:
    """What all gathers of a step read, each with the rows of the batch that it is for."""

    decodes: tuple[tuple[torch.Tensor | slice, DecodeIndex], ...]
    prefills: tuple[tuple[slice, PrefillIndex], ...]


def decode_index(
    block_tables: list[IntArray],
    lengths: IntArray,
    shape: PoolShape,
    device: torch.device,
    window: int | None = None,
) -> DecodeIndex:
    """Index for S sequences of ``lengths`` tokens (int32 [S], the new token included)."""
    first_seen = np.zeros_like(lengths)
    if window is not None:
        # From here on positions count from the first block that the window reaches into.
        first_seen = np.maximum(lengths - window, 0)
        passed = first_seen // shape.block_size
        block_tables = [table[n:] for table, n in zip(block_tables, passed, strict=True)]
        lengths, first_seen = lengths - passed * shape.block_size, first_seen % shape.block_size
    counts = -(-lengths // shape.block_size)
    padded = _pad_with_first_block(block_tables, counts)
    positions = np.arange(padded.shape[1] * shape.block_size)
    written = positions < lengths[:, None]
    # Padding repeats a sequence's own first block, which is whole unless it is the only one.
    # So what may be unwritten is the tail of the last block, and of repeats of a partial block.
    own_tail = positions < counts[:, None] * shape.block_size
    only_block = positions % shape.block_size >= lengths[:, None]
    sequences, cells = np.nonzero(~written & (own_tail | only_block))
    seen = written if window is None else written & (positions >= first_seen[:, None])
    return DecodeIndex(
        _rows(padded, shape, device),
        torch.from_numpy(seen[:, None, None, :]).to(device),
        (torch.from_numpy(sequences).to(device), torch.from_numpy(cells).to(device)),
    )


def prefill_index(
    block_table: IntArray,
    start: int,
    end: int,
    shape: PoolShape,
    device: torch.device,
    window: int | None = None,
) -> PrefillIndex:
    """Index for the tokens ``start`` to ``end - 1`` of one sequence over its first ``end`` ones."""
    block_size = shape.block_size
    passed = 0 if window is None else max(start - window + 1, 0) // block_size
    used = block_table[passed : -(-end // block_size)]
    rows = _rows(used[None].astype(np.int64), shape, device)
    narrow = window is not None and window < end
    start, end = start - passed * block_size, end - passed * block_size
    if start == 0 and not narrow:
        return PrefillIndex(rows, end, None)
    mask = torch.ones(end - start, end, dtype=torch.bool, device=device).tril(diagonal=start)
    if window is not None and narrow:
        mask = mask.triu(diagonal=start - window + 1)
    return PrefillIndex(rows, end, mask)


def decode_attention(
    q: torch.Tensor, pool: torch.Tensor, layer: int, index: DecodeIndex
) -> torch.Tensor:
    """q [S, heads, head_dim] to the same shape; sequence s attends to its own tokens."""
    sequences, heads, head_dim = q.shape
    kv_heads = pool.shape[3]
    kv = _gather(pool, layer, index.rows).view(sequences, 2, kv_heads, -1, head_dim)
    which, cells = index.unwritten
    kv[which, :, :, cells] = 0
    # The heads of a group share K and V: they stand where queries of one head stand.
    grouped = q.reshape(sequences, kv_heads, heads // kv_heads, head_dim)
    out = F.scaled_dot_product_attention(grouped, kv[:, 0], kv[:, 1], attn_mask=index.mask)
    return out.reshape(sequences, heads, head_dim)


def prefill_attention(
    q: torch.Tensor, pool: torch.Tensor, layer: int, index: PrefillIndex
) -> torch.Tensor:
    """q [chunk, heads, head_dim] of one sequence to the same shape; causal over its tokens."""
    chunk, heads, head_dim = q.shape
    kv_heads = pool.shape[3]
    group = heads // kv_heads
    kv = _gather(pool, layer, index.rows).view(2, kv_heads, 1, -1, head_dim)[:, :, :, : index.end]
    # A stride of 0 over the group: K and V are read by all its heads without being repeated.
    keys, values = kv.expand(-1, -1, group, -1, -1).unbind(0)
    grouped = q.view(chunk, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    out = F.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=index.mask, is_causal=index.mask is None
    )
    return out.permute(2, 0, 1, 3).reshape(chunk, heads, head_dim)


def _index(sequences: PagedSequences, shape: PoolShape, window: int | None) -> TorchIndex:
    device = sequences.lengths.device
    tables, lengths = sequences.block_tables.cpu().numpy(), sequences.lengths.cpu().numpy()
    first_rows = sequences.first_rows.cpu().tolist()
    decodes = []
    for group in _similar(lengths[: sequences.num_decodes], shape.block_size):
        index = decode_index([tables[i] for i in group], lengths[group], shape, device, window)
        whole = len(group) == sequences.num_decodes
        rows = slice(0, len(group)) if whole else torch.from_numpy(group).to(device)
        decodes.append((rows, index))
    prefills = []
    for i in range(sequences.num_decodes, len(lengths)):
        span, end = slice(first_rows[i], first_rows[i + 1]), int(lengths[i])
        start = end - (span.stop - span.start)
        prefills.append((span, prefill_index(tables[i], start, end, shape, device, window)))
    return TorchIndex(tuple(decodes), tuple(prefills))


def _similar(lengths: IntArray, block_size: int) -> list[npt.NDArray[np.int64]]:
    """Sequences in groups within which padding at most doubles what is read."""
    blocks = -(-lengths // block_size)
    scales = np.frexp(blocks)[1]
    return [np.flatnonzero(scales == scale) for scale in np.unique(scales)]


def _pad_with_first_block(block_tables: list[IntArray], counts: IntArray) -> npt.NDArray[np.int64]:
    padded = np.empty((len(block_tables), int(counts.max())), dtype=np.int64)
    for row, table, count in zip(padded, block_tables, counts, strict=True):
        row[:count] = table[:count]
        row[count:] = table[0]
    return padded


def _rows(tables: npt.NDArray[np.int64], shape: PoolShape, device: torch.device) -> torch.Tensor:
    """Pool rows of layer 0 for tables [S, M], ordered [S, k/v, head, M] and flattened."""
    of_block = tables[:, None, :] * (shape.num_layers * 2 * shape.kv_heads)
    rows = of_block + np.arange(2 * shape.kv_heads)[None, :, None]
    return torch.from_numpy(rows.reshape(-1)).to(device)


def _gather(pool: torch.Tensor, layer: int, rows: torch.Tensor) -> torch.Tensor:
    """Copies the rows of one layer: [len(rows), block_size * head_dim]."""
    kv_heads, block_size, head_dim = pool.shape[3:]
    flat = pool.view(-1, block_size * head_dim)
    return flat.index_select(0, rows + layer * 2 * kv_heads)
