"""A Llama's forward pass over a flat batch of tokens and a paged KV pool.

Covers: the decoder with grouped-query attention, rotary positions and a gated MLP (Touvron et
al., 2023). Q, K, V and gate, up are one matrix each, joined once when the model is made.
Does not cover: sharding, sampling (``engine.sampler``), reading files (``engine.weights``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from engine.batch import Batch
from engine.model_config import ModelConfig
from kernels.linear import Linear
from kernels.paged_attention import decode_attention, prefill_attention
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary_angles, rotate_and_store
from kernels.silu_mul import silu_mul

Weights = Mapping[str, torch.Tensor]
Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: torch.Tensor
    qkv: Linear
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class Llama:
    """All layers of a model; the weights decide dtype and device."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        """``weights``: what ``engine.weights.load_weights`` gives for ``config``."""
        self.config = config
        self._embedding = weights["model.embed_tokens.weight"]
        self._layers = [_layer(weights, i) for i in range(config.num_layers)]
        self._norm = weights["model.norm.weight"]
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self._head = Linear(weights[head])

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: torch.Tensor) -> torch.Tensor:
        """Writes the KV of all tokens to ``pool`` and gives float32 logits [R, vocab].

        ``pool`` [blocks, layers, 2, kv_heads, block_size, head_dim] in the model's dtype; R is the
        number of rows that the batch wants logits of, and may be 0.
        """
        config = self.config
        angles = rotary_angles(batch.positions, config.head_dim, config.rope_theta, self.dtype)
        x = self._embedding[batch.token_ids]
        for i, layer in enumerate(self._layers):
            x = x + self._attention(i, layer, x, batch, pool, angles)
            x = x + self._mlp(layer, x)
        if not batch.sampled_slices:
            return torch.empty(0, config.vocab_size)
        last = rms_norm(x[batch.sampled_rows], self._norm, config.rms_norm_eps)
        return self._head(last).float()

    def _attention(
        self,
        i: int,
        layer: _Layer,
        x: torch.Tensor,
        batch: Batch,
        pool: torch.Tensor,
        angles: Angles,
    ) -> torch.Tensor:
        config = self.config
        qkv = layer.qkv(rms_norm(x, layer.attention_norm, config.rms_norm_eps))
        by_head = qkv.view(len(x), -1, config.head_dim)
        q = rotate_and_store(by_head, angles, pool[:, i], batch.block_ids, batch.offsets)
        return layer.output(_attend(q, pool, i, batch).reshape(len(x), -1))

    def _mlp(self, layer: _Layer, x: torch.Tensor) -> torch.Tensor:
        normed = rms_norm(x, layer.mlp_norm, self.config.rms_norm_eps)
        return layer.down(silu_mul(layer.gate_up(normed)))


def _attend(q: torch.Tensor, pool: torch.Tensor, layer: int, batch: Batch) -> torch.Tensor:
    """Attention of every row over its own sequence; [T, heads, head_dim] in and out."""
    parts: list[torch.Tensor] = []
    if batch.decodes is not None:
        parts.append(decode_attention(q[: batch.num_decodes], pool, layer, batch.decodes))
    for span in batch.prefills:
        parts.append(prefill_attention(q[span.first : span.last], pool, layer, span.index))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _layer(weights: Weights, i: int) -> _Layer:
    def get(name: str) -> torch.Tensor:
        return weights[f"model.layers.{i}.{name}.weight"]

    def joined(*names: str) -> Linear:
        return Linear(torch.cat([get(name) for name in names]))

    return _Layer(
        attention_norm=get("input_layernorm"),
        qkv=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output=Linear(get("self_attn.o_proj")),
        mlp_norm=get("post_attention_layernorm"),
        gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
        down=Linear(get("mlp.down_proj")),
    )
