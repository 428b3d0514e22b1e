"""What one model costs per step: the numbers that ``core.step_cost`` counts with."""

from __future__ import annotations

from collections import Counter

from core.kv_layout import DTYPE_BYTES
from core.step_cost import CostModel
from engine.model_config import ModelConfig


def cost_model(config: ModelConfig, dtype: str) -> CostModel:
    """Of the whole model, all ranks together. ``dtype``: of weights and KV."""
    heads = config.num_heads * config.head_dim
    kv = 2 * config.num_kv_heads * config.head_dim
    attention = config.hidden_size * (2 * heads + kv)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    return CostModel(
        layer_weights=config.num_layers * layer,
        head_weights=config.vocab_size * config.hidden_size,
        head_size=heads,
        kv_size=kv,
        itemsize=DTYPE_BYTES[dtype],
        layers_of_window=tuple(Counter(config.layer_windows).items()),
    )
