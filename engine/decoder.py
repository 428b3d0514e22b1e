"""A decoder's forward pass over a flat batch of tokens and a paged KV pool.

Covers: grouped-query attention with rotary positions, biases, norms of Q and K and sliding windows
where ``ModelConfig`` has them, and a gated MLP: Llama (Touvron et al., 2023) and what is built
alike. Q, K, V and gate, up are one matrix each, joined once when the model is made. A rank of a
replica computes its layers and its heads, and exchanges hidden states with the other ranks.
Does not cover: how a model is split (``engine.model_shard``), sampling (``engine.sampler``),
reading files (``engine.weights``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from engine.batch import Batch
from engine.communicator import ALONE, Communicator
from engine.model_config import ModelConfig
from engine.model_shard import ModelShard, model_shard
from engine.rope_frequencies import attention_factor, inverse_frequencies
from engine.sliding_window import Window
from engine.vocabulary import Embedding, Head, Logits
from engine.weight_shapes import EMBEDDING, FINAL_NORM, HEAD
from kernels.linear import Linear
from kernels.paged_attention import paged_attention
from kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_heads
from kernels.rotary import rotary_angles, rotate_and_store
from kernels.silu_mul import silu_mul

Weights = Mapping[str, torch.Tensor]
Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """``qk_norm`` [heads + kv_heads, head_dim]: a row of weights for each head of Q, then K.

    ``output`` and ``down`` give this rank's part of a sum over the tensor ranks.
    """

    attention_norm: torch.Tensor
    qkv: Linear
    qk_norm: torch.Tensor | None
    window: Window
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """The layers of a model that one rank holds; the weights decide dtype and device."""

    def __init__(
        self, config: ModelConfig, weights: Weights, communicator: Communicator = ALONE
    ) -> None:
        """``weights``: what ``engine.weights.load_weights`` gives for ``config`` and this rank."""
        self.config = config
        self.shard = shard = model_shard(config, communicator.shape, communicator.rank)
        self._communicator = communicator
        self._layers = [_layer(config, shard, weights, i) for i in shard.layers]
        self.dtype = self._layers[0].attention_norm.dtype
        self.device = self._layers[0].attention_norm.device
        if shard.is_first_stage:
            self._embed = Embedding(weights[EMBEDDING], shard.vocabulary, communicator)
        if shard.is_last_stage:
            self._norm = weights[FINAL_NORM]
            head = weights[EMBEDDING if config.tie_word_embeddings else HEAD]
            self._head = Head(head, config.vocab_size, communicator)
        precise = torch.promote_types(self.dtype, torch.float32)
        frequencies = inverse_frequencies(config.rope, config.head_dim, precise, self.device)
        positions = torch.arange(config.max_positions, device=self.device)
        self._cos, self._sin = rotary_angles(
            positions, frequencies, attention_factor(config.rope), self.dtype
        )

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: torch.Tensor) -> Logits | None:
        """Writes the KV of all tokens to ``pool`` and gives logits [R, vocab].

        ``pool`` [blocks, layers, 2, kv_heads, block_size, head_dim] in the model's dtype, of the
        layers and KV heads held here; R is the number of rows that the batch wants logits of, and
        may be 0. None on ranks that do not sample.
        All ranks must compute the same batches in the same order; a rank that is lost raises
        InternalError on others.
        """
        angles = self._cos[batch.positions], self._sin[batch.positions]
        residual = self._first_hidden(batch)
        update: torch.Tensor | None = None
        for i, layer in enumerate(self._layers):
            x = self._norm_sum(update, residual, layer.attention_norm)
            x = self._attention(i, layer, x, batch, pool, angles)
            update = self._mlp(layer, self._norm_sum(x, residual, layer.mlp_norm))
        x = residual if update is None else residual.add_(update)
        if not self.shard.is_last_stage:
            self._communicator.send_to_next_stage(x)
            return None
        return self._logits(x, batch)

    def _norm_sum(
        self, update: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Adds what the last sublayer gave to ``residual``, and gives the norm of that."""
        if update is None:
            return rms_norm(residual, weight, self.config.rms_norm_eps)
        return add_rms_norm(update, residual, weight, self.config.rms_norm_eps)

    def _first_hidden(self, batch: Batch) -> torch.Tensor:
        """What goes into the first layer held here: [T, hidden], the same on all tensor ranks."""
        if self.shard.is_first_stage:
            return self._embed(batch.token_ids)
        shape = (len(batch.token_ids), self.config.hidden_size)
        x = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._communicator.receive_from_previous_stage(x)
        return x

    def _logits(self, x: torch.Tensor, batch: Batch) -> Logits | None:
        if not len(batch.sampled_rows):
            none = Logits(torch.empty(0, self.config.vocab_size))
            return none if self.shard.samples else None
        return self._head(rms_norm(x[batch.sampled_rows], self._norm, self.config.rms_norm_eps))

    def _attention(
        self,
        i: int,
        layer: _Layer,
        x: torch.Tensor,
        batch: Batch,
        pool: torch.Tensor,
        angles: Angles,
    ) -> torch.Tensor:
        rows, heads, kv_heads = x.shape[0], len(self.shard.heads), len(self.shard.kv_heads)
        qkv = layer.qkv(x).view(rows, heads + 2 * kv_heads, self.config.head_dim)
        if layer.qk_norm is not None:
            rms_norm_heads(qkv[:, : heads + kv_heads], layer.qk_norm, self.config.rms_norm_eps)
        q = rotate_and_store(qkv, angles, pool, i, batch.slots)
        attended = paged_attention(q, pool, i, batch.sequences, layer.window)
        return self._communicator.all_reduce(layer.output(attended.view(rows, -1)))

    def _mlp(self, layer: _Layer, x: torch.Tensor) -> torch.Tensor:
        return self._communicator.all_reduce(layer.down(silu_mul(layer.gate_up(x))))


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _layer(config: ModelConfig, shard: ModelShard, weights: Weights, i: int) -> _Layer:
    def get(name: str) -> torch.Tensor:
        return weights[f"model.layers.{i}.{name}"]

    def joined(*names: str, bias: bool) -> Linear:
        return Linear(
            _join([get(f"{name}.weight") for name in names]),
            _join([get(f"{name}.bias") for name in names]) if bias else None,
        )

    def qk_norm() -> torch.Tensor:
        q, k = get("self_attn.q_norm.weight"), get("self_attn.k_norm.weight")
        return torch.stack([q] * len(shard.heads) + [k] * len(shard.kv_heads))

    return _Layer(
        attention_norm=get("input_layernorm.weight"),
        qkv=joined(
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias=config.qkv_bias
        ),
        qk_norm=qk_norm() if config.qk_norm else None,
        window=config.layer_windows[i],
        output=joined("self_attn.o_proj", bias=config.output_bias and shard.leads_stage),
        mlp_norm=get("post_attention_layernorm.weight"),
        gate_up=joined("mlp.gate_proj", "mlp.up_proj", bias=config.mlp_bias),
        down=joined("mlp.down_proj", bias=config.mlp_bias and shard.leads_stage),
    )
