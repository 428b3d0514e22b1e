"""``kernels.paged_attention`` on a GPU: one launch for the decodes of a batch, one for the rest."""

from __future__ import annotations

import torch

from kernels.decode_attention_triton import launch_decode_attention
from kernels.paged_sequences import PagedSequences
from kernels.prefill_attention_triton import launch_prefill_attention


def launch_paged_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    sequences: PagedSequences,
    window: int | None,
) -> torch.Tensor:
    """As `kernels.paged_attention.paged_attention`; it only enqueues work on torch's stream."""
    q = q.contiguous()
    out = torch.empty_like(q)
    if sequences.num_decodes:
        launch_decode_attention(q, pool, layer, sequences, window, out)
    if sequences.num_decodes < len(sequences.lengths):
        launch_prefill_attention(q, pool, layer, sequences, window, out)
    return out
