"""Has the attention kernels of a GPU find their configuration before the first request.

The first launch with a head size, group, block size and dtype decides for all (`kernels.autotune`):
let it be one of a size that counts, and not within the capture of a CUDA graph.
"""

from __future__ import annotations

import torch

from kernels.decode_attention_triton import launch_decode_attention
from kernels.paged_sequences import PagedSequences
from kernels.prefill_attention_triton import launch_prefill_attention


def tune_attention(
    pool: torch.Tensor,
    heads: int,
    window: int | None,
    batch: int = 64,
    context: int = 4096,
) -> None:
    """Launches both kernels: ``batch`` decodes at ``context``, and one prompt of that length.

    ``pool`` and ``window`` as in serving, ``heads`` of queries. The pool is read, whatever it
    holds, and not written. Some seconds for the first time on a machine.
    """
    decodes = _sequences(pool, batch, context, new=1)
    q = pool.new_zeros(batch, heads, pool.shape[-1])
    launch_decode_attention(q, pool, 0, decodes, window, torch.empty_like(q))
    prompt = _sequences(pool, 1, context, new=context)
    q = pool.new_zeros(context, heads, pool.shape[-1])
    launch_prefill_attention(q, pool, 0, prompt, window, torch.empty_like(q))


def _sequences(pool: torch.Tensor, count: int, length: int, new: int) -> PagedSequences:
    """Blocks are drawn at random: in a small pool sequences share some."""
    blocks = -(-length // pool.shape[4])
    tables = torch.randint(len(pool), (count, blocks), dtype=torch.int32, device=pool.device)
    return PagedSequences(
        block_tables=tables,
        lengths=torch.full_like(tables[:, 0], length),
        first_rows=torch.arange(count + 1, dtype=torch.int32, device=pool.device) * new,
        num_decodes=count if new == 1 else 0,
        longest_query=new,
        longest=length,
    )
