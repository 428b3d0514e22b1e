"""The Triton kernels of ``kernels.paged_attention`` for sequences with one new token each.

Flash-decoding (Dao, Haziza, Massa and Sizov, 2023): programs (KV head, split, sequence) attend with
all query heads of the KV head's group, so that K and V are read once, to a part of the context by
online softmax; a second kernel adds up the parts, each weighted by its sum of exponentials. Loaded
on GPUs only, and by tests.

The number of splits depends on what the host knows, so a launch asks the device for nothing and can
be captured into a CUDA graph; each program finds its own range from ``lengths``. A sequence of
length 0 (padding of a graph's bucket) gives zeros.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl

from kernels.autotune import decode_configs, fitting_decode
from kernels.paged_sequences import PagedSequences

# Tokens of a split: fewer do not pay for a program, more make the others wait for the last.
_SHORTEST_SPLIT = 128
_LONGEST_SPLIT = 2048
_MOST_SPLITS = 128
# Programs for each multiprocessor, so that ragged contexts even out.
_PROGRAMS_PER_PROCESSOR = 4
# Splits that the second kernel adds up at a time.
_COMBINED = 8


@triton.autotune(
    configs=decode_configs(),
    key=["HEAD_DIM", "GROUP", "BLOCK_SIZE", "WINDOWED"],
    prune_configs_by={"early_config_prune": fitting_decode},
    cache_results=True,
)
@triton.jit(do_not_specialize=["layer", "table_stride", "window", "splits"])
def decode_kernel(
    q,
    pool,
    block_tables,
    lengths,
    out,
    part_values,
    part_sums,
    layer,
    table_stride,
    block_stride,
    window,
    splits,
    scale,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attends to split ``program_id(1)`` of the context, TILE tokens at a time.

    q and out [S, heads, HEAD_DIM]. Where SPLIT: part_values float32 [S, heads, splits, HEAD_DIM]
    and part_sums float32 [S, heads, splits], the base-2 logarithm of the sum of exponentials, −inf
    for a split without tokens, whose values are not written. ``scale`` is that of the scores times
    log2 e.
    """
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    split = tl.program_id(1)
    sequence = tl.program_id(2)
    length = tl.load(lengths + sequence)
    first = tl.maximum(length - window, 0) if WINDOWED else 0
    first_tile = first // TILE
    tiles_of_split = tl.cdiv(tl.cdiv(length, TILE) - first_tile, splits)
    start = (first_tile + split * tiles_of_split) * TILE
    stop = tl.minimum(start + tiles_of_split * TILE, length)

    row = tl.arange(0, ROWS)
    dim = tl.arange(0, PADDED_DIM)
    head = (sequence * kv_heads + kv_head).to(tl.int64) * GROUP + row
    own = (row < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    queries = tl.load(q + head[:, None] * HEAD_DIM + dim[None, :], mask=own, other=0.0)

    table = block_tables + sequence.to(tl.int64) * table_stride
    side = kv_heads * BLOCK_SIZE * HEAD_DIM
    keys = pool + (layer * 2 * kv_heads + kv_head) * BLOCK_SIZE * HEAD_DIM
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    values = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    for at in tl.range(start, stop, TILE):
        token = at + tl.arange(0, TILE)
        seen = (token >= first) & (token < stop)
        block = tl.load(table + token // BLOCK_SIZE, mask=seen, other=0)
        cell = block.to(tl.int64) * block_stride + token % BLOCK_SIZE * HEAD_DIM
        address = keys + cell[:, None] + dim[None, :]
        # Cells that no token wrote may hold NaN: as keys their scores are replaced, as values zero.
        there = seen[:, None] & (dim < HEAD_DIM)[None, :]
        k = tl.load(address, mask=there, other=0.0)
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # Every tile has a token that is seen, so this is finite.
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(address + side, mask=there, other=0.0)
        values = tl.dot(weights.to(v.dtype), v, values * shrink[:, None], input_precision="ieee")
        highest = higher

    divisor = tl.where(total > 0, total, 1.0)
    values = values / divisor[:, None]
    if SPLIT:
        part = head * splits + split
        # Where there was no token, −inf + log2(1).
        tl.store(part_sums + part, highest + tl.log2(divisor), mask=row < GROUP)
        if start < stop:
            tl.store(part_values + part[:, None] * HEAD_DIM + dim[None, :], values, mask=own)
    else:
        address = out + head[:, None] * HEAD_DIM + dim[None, :]
        tl.store(address, values.to(out.dtype.element_ty), mask=own)


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(
    part_values,
    part_sums,
    out,
    splits,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    MOST: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program (head, sequence) adds up its ``splits`` parts, CHUNK at a time."""
    head = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    split = tl.arange(0, MOST)
    dim = tl.arange(0, PADDED_DIM)
    sums = part_sums + head * splits
    highest = tl.max(tl.load(sums + split, mask=split < splits, other=float("-inf")), 0)
    # −inf where the sequence has no token: every weight is then 0 instead of NaN.
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    total = 0.0
    values = tl.zeros([PADDED_DIM], tl.float32)
    for at in tl.range(0, splits, CHUNK):
        part = at + tl.arange(0, CHUNK)
        logarithm = tl.load(sums + part, mask=part < splits, other=float("-inf"))
        weight = tl.exp2(logarithm - highest)
        address = part_values + (head * splits + part)[:, None] * HEAD_DIM + dim[None, :]
        written = (logarithm > float("-inf"))[:, None] & (dim < HEAD_DIM)[None, :]
        values += tl.sum(tl.load(address, mask=written, other=0.0) * weight[:, None], 0)
        total += tl.sum(weight, 0)
    values = values / tl.where(total > 0, total, 1.0)
    address = out + head * HEAD_DIM + dim
    tl.store(address, values.to(out.dtype.element_ty), mask=dim < HEAD_DIM)


def launch_decode_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    sequences: PagedSequences,
    window: int | None,
    out: torch.Tensor,
) -> None:
    """Fills the rows of the first ``num_decodes`` sequences; q and out [T, heads, head_dim].

    All contiguous; shapes and dtypes as in `kernels.paged_attention.paged_attention`.
    """
    count, heads, head_dim = sequences.num_decodes, q.shape[1], q.shape[2]
    kv_heads, block_size = pool.shape[3:5]
    group = heads // kv_heads
    seen = sequences.longest if window is None else min(sequences.longest, window)
    splits = num_splits(count * kv_heads, seen, processors(q.device))
    shape = (count, heads, splits if splits > 1 else 0, head_dim)
    part_values = torch.empty(shape, dtype=torch.float32, device=q.device)
    part_sums = torch.empty(shape[:3], dtype=torch.float32, device=q.device)
    padded_dim = triton.next_power_of_2(head_dim)
    decode_kernel[(kv_heads, splits, count)](
        q,
        pool,
        sequences.block_tables,
        sequences.lengths,
        out,
        part_values,
        part_sums,
        layer,
        sequences.block_tables.stride(0),
        pool.stride(0),
        0 if window is None else window,
        splits,
        math.log2(math.e) / math.sqrt(head_dim),
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        GROUP=group,
        # The least that tensor cores take.
        ROWS=max(16, triton.next_power_of_2(group)),
        BLOCK_SIZE=block_size,
        WINDOWED=window is not None,
        SPLIT=splits > 1,
    )
    if splits > 1:
        combine_kernel[(heads, count)](
            part_values,
            part_sums,
            out,
            splits,
            HEAD_DIM=head_dim,
            PADDED_DIM=padded_dim,
            MOST=_MOST_SPLITS,
            CHUNK=_COMBINED,
        )


def num_splits(pairs: int, tokens: int, processors: int) -> int:
    """Parts of a context of ``tokens`` for ``pairs`` of sequence and KV head: a power of two.

    Enough that every multiprocessor has several programs and that no long context among short ones
    is a straggler; parts cost next to nothing (their results are head_dim + 1 numbers a head).
    """
    filling = _PROGRAMS_PER_PROCESSOR * processors / pairs
    wanted = max(min(filling, tokens / _SHORTEST_SPLIT), tokens / _LONGEST_SPLIT, 1)
    return min(1 << (math.ceil(wanted) - 1).bit_length(), _MOST_SPLITS)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 where Triton's interpreter stands in for one."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
