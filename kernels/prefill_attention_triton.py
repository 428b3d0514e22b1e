"""The Triton kernel of ``kernels.paged_attention`` for sequences with any number of new tokens.

FlashAttention-2 (Dao, 2023) over paged keys and values, for all sequences of a batch in one launch.
The rows of a tile are pairs (new token, query head of one KV head's group), token by token, so that
K and V are read once for the group, whatever its size. Loaded on GPUs only, and by tests.

The host knows how many rows there are but not whose they are: it launches the most tiles that there
can be, and each finds its sequence in ``first_rows``; surplus tiles end at once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kernels.autotune import fitting_prefill, prefill_configs
from kernels.paged_sequences import PagedSequences


@triton.jit
def _first_tile(first_rows, first_sequence, sequence, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """The tile that ``sequence`` begins with, if each before it has as many as it can ever need."""
    before = tl.load(first_rows + sequence) - tl.load(first_rows + first_sequence)
    return before * GROUP // ROWS + sequence - first_sequence


@triton.jit
def _find_sequence(
    first_rows, first_sequence, sequences, tile, GROUP: tl.constexpr, ROWS: tl.constexpr
):
    """The last of the sequences that does not begin after ``tile``, by binary search."""
    low = first_sequence
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        begins = _first_tile(first_rows, first_sequence, middle, GROUP, ROWS)
        low = tl.where(begins <= tile, middle, low)
        high = tl.where(begins <= tile, high, middle)
    return low


@triton.jit
def _attend(
    queries,
    position,
    highest,
    total,
    values,
    keys,
    side,
    table,
    block_stride,
    window,
    scale,
    begin,
    start,
    stop,
    end,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASKED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Online softmax over the tokens ``start`` to ``stop``; ``start`` is a multiple of TILE.

    Where MASKED, tokens outside ``begin`` to ``end`` are not read, and each row sees those up to
    its own position and within its window; else every row sees all of them.
    """
    dim = tl.arange(0, PADDED_DIM)
    for at in tl.range(start, stop, TILE):
        token = at + tl.arange(0, TILE)
        there = (dim < HEAD_DIM)[None, :]
        if MASKED:
            known = (token >= begin) & (token < end)
            block = tl.load(table + token // BLOCK_SIZE, mask=known, other=0)
            # Cells that no token wrote may hold NaN: 0 × NaN must not come into the values.
            there = known[:, None] & there
        else:
            block = tl.load(table + token // BLOCK_SIZE)
        cell = block.to(tl.int64) * block_stride + token % BLOCK_SIZE * HEAD_DIM
        address = keys + cell[:, None] + dim[None, :]
        if MASKED or HEAD_DIM < PADDED_DIM:
            k = tl.load(address, mask=there, other=0.0)
        else:
            k = tl.load(address)
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee")
        if MASKED:
            seen = token[None, :] <= position[:, None]
            if WINDOWED:
                seen &= token[None, :] > position[:, None] - window
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1) * scale)
        # A row that has seen no token yet has −inf, and −inf − −inf is NaN.
        finite = tl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher
        weights = tl.exp2(scores * scale - finite[:, None])
        shrink = tl.exp2(highest - finite)
        total = total * shrink + tl.sum(weights, 1)
        if MASKED or HEAD_DIM < PADDED_DIM:
            v = tl.load(address + side, mask=there, other=0.0)
        else:
            v = tl.load(address + side)
        values = tl.dot(weights.to(v.dtype), v, values * shrink[:, None], input_precision="ieee")
        highest = higher
    return highest, total, values


@triton.autotune(
    configs=prefill_configs(),
    key=["HEAD_DIM", "GROUP", "BLOCK_SIZE", "WINDOWED"],
    prune_configs_by={"early_config_prune": fitting_prefill},
    cache_results=True,
)
@triton.jit(do_not_specialize=["layer", "table_stride", "window", "first_sequence", "sequences"])
def prefill_kernel(
    q,
    pool,
    block_tables,
    lengths,
    first_rows,
    out,
    layer,
    kv_heads,
    table_stride,
    block_stride,
    window,
    first_sequence,
    sequences,
    scale,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attends with ROWS pairs (token, head of the group), to TILE tokens at a time.

    q and out [T, heads, HEAD_DIM]; ``sequences`` from ``first_sequence`` on. ``scale``: of the
    scores, times log2 e. The last tiles, which have the most to read, start first.
    """
    kv_head = tl.program_id(0) % kv_heads
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // kv_heads
    sequence = _find_sequence(first_rows, first_sequence, sequences, tile, GROUP, ROWS)
    first_row = tl.load(first_rows + sequence)
    new = tl.load(first_rows + sequence + 1) - first_row
    mine = (tile - _first_tile(first_rows, first_sequence, sequence, GROUP, ROWS)) * ROWS
    if mine >= new * GROUP:
        return

    pair = mine + tl.arange(0, ROWS)
    dim = tl.arange(0, PADDED_DIM)
    row = first_row + pair // GROUP
    head = row.to(tl.int64) * (kv_heads * GROUP) + kv_head * GROUP + pair % GROUP
    own = (pair < new * GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    queries = tl.load(q + head[:, None] * HEAD_DIM + dim[None, :], mask=own, other=0.0)

    # Positions of the first and the last query, and of the tokens that at least one of them sees.
    before = tl.load(lengths + sequence) - new
    lowest = before + mine // GROUP
    last = before + tl.minimum((mine + ROWS - 1) // GROUP, new - 1)
    position = tl.minimum(before + pair // GROUP, last)
    end = last + 1
    begin = tl.maximum(lowest - window + 1, 0) if WINDOWED else 0
    # Tiles from ``whole`` to ``partial`` are seen by every row in full: they need no mask.
    first = begin // TILE * TILE
    whole = first
    if WINDOWED:
        whole = tl.cdiv(tl.maximum(last - window + 1, 0), TILE) * TILE
        whole = tl.minimum(whole, tl.cdiv(end, TILE) * TILE)
    partial = tl.maximum((lowest + 1) // TILE * TILE, whole)

    table = block_tables + sequence.to(tl.int64) * table_stride
    side = kv_heads * BLOCK_SIZE * HEAD_DIM
    keys = pool + (layer * 2 * kv_heads + kv_head) * BLOCK_SIZE * HEAD_DIM
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    values = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    if WINDOWED:
        highest, total, values = _attend(
            queries, position, highest, total, values, keys, side, table, block_stride, window,
            scale, begin, first, whole, end,
            HEAD_DIM, PADDED_DIM, BLOCK_SIZE, WINDOWED, True, TILE,
        )  # fmt: skip
    highest, total, values = _attend(
        queries, position, highest, total, values, keys, side, table, block_stride, window,
        scale, begin, whole, partial, end,
        HEAD_DIM, PADDED_DIM, BLOCK_SIZE, WINDOWED, False, TILE,
    )  # fmt: skip
    highest, total, values = _attend(
        queries, position, highest, total, values, keys, side, table, block_stride, window,
        scale, begin, partial, end, end,
        HEAD_DIM, PADDED_DIM, BLOCK_SIZE, WINDOWED, True, TILE,
    )  # fmt: skip

    values = values / total[:, None]
    tl.store(out + head[:, None] * HEAD_DIM + dim[None, :], values.to(out.dtype.element_ty), own)


def launch_prefill_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    sequences: PagedSequences,
    window: int | None,
    out: torch.Tensor,
) -> None:
    """Fills the rows of all but the first ``num_decodes`` sequences; q, out [T, heads, head_dim].

    All contiguous; shapes and dtypes as in `kernels.paged_attention.paged_attention`.
    """
    heads, head_dim = q.shape[1:]
    kv_heads, block_size = pool.shape[3:5]
    group = heads // kv_heads
    first, count = sequences.num_decodes, len(sequences.lengths)
    # A decode has one row, so the others begin with this one.
    pairs = (len(q) - first) * group

    def grid(constants: dict[str, int]) -> tuple[int]:
        return ((pairs // constants["ROWS"] + count - first) * kv_heads,)

    prefill_kernel[grid](
        q,
        pool,
        sequences.block_tables,
        sequences.lengths,
        sequences.first_rows,
        out,
        layer,
        kv_heads,
        sequences.block_tables.stride(0),
        pool.stride(0),
        0 if window is None else window,
        first,
        count,
        math.log2(math.e) / math.sqrt(head_dim),
        HEAD_DIM=head_dim,
        PADDED_DIM=triton.next_power_of_2(head_dim),
        GROUP=group,
        BLOCK_SIZE=block_size,
        WINDOWED=window is not None,
    )
