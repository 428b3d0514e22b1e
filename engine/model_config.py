"""A model folder's ``config.json`` as a frozen ``ModelConfig``.

Covers: Llama, Mistral, Qwen2 and Qwen3 (``engine.model_families``). Whatever would change the
result and is not implemented is refused by name.
Does not cover: weights (``engine.weights``), tokenizers (``text``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import InvalidField
from core.kv_layout import KVLayout
from engine.config_fields import JsonObject, flag, positive, read_json, size
from engine.model_families import find_family
from engine.rope_config import RopeConfig, YarnScaling, read_rope
from engine.sliding_window import Window, layer_windows


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a decoder, and the ids that end its answers.

    ``qkv_bias``, ``output_bias`` and ``mlp_bias``: which projections add one; ``qk_norm``: Q and K
    are normalized per head; ``layer_windows``: see ``engine.sliding_window``.
    """

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    layer_windows: tuple[Window, ...]

    @property
    def windows(self) -> tuple[Window, ...]:
        """The different windows of the layers; ``(None,)`` for a model without any."""
        return tuple(dict.fromkeys(self.layer_windows))

    @property
    def max_positions(self) -> int:
        """The longest sequence in tokens. YaRN folders may state only the length before it."""
        scaling = self.rope.scaling
        if not isinstance(scaling, YarnScaling):
            return self.max_position_embeddings
        return max(self.max_position_embeddings, int(scaling.factor * scaling.original_positions))

    def kv_layout(self, block_size: int, dtype: str) -> KVLayout:
        """Layout of the blocks of a worker that holds the whole model."""
        return KVLayout(self.num_layers, self.num_kv_heads, self.head_dim, block_size, dtype)


def read_model_config(folder: Path) -> ModelConfig:
    """Raises NotFound without a config.json, Incompatible or InvalidField for what can't be run."""
    stated = read_json(folder / "config.json")
    family = find_family(stated)
    raw = {**family.defaults, **stated}
    num_layers, num_heads = size(raw, "num_hidden_layers"), size(raw, "num_attention_heads")
    max_position_embeddings = size(raw, "max_position_embeddings")
    attention_bias = flag(raw, "attention_bias")
    config = ModelConfig(
        model_type=family.model_type,
        hidden_size=size(raw, "hidden_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=size(raw, "num_key_value_heads", num_heads),
        head_dim=_head_dim(raw),
        intermediate_size=size(raw, "intermediate_size"),
        vocab_size=size(raw, "vocab_size"),
        rms_norm_eps=positive(raw, "rms_norm_eps", 1e-6),
        rope=read_rope(raw, max_position_embeddings),
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=flag(raw, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias and not family.qkv_bias,
        mlp_bias=flag(raw, "mlp_bias"),
        qk_norm=family.qk_norm,
        layer_windows=layer_windows(raw, family.model_type, num_layers),
    )
    _check_heads(config)
    return config


def _check_heads(config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise InvalidField(
            "num_key_value_heads",
            config.num_kv_heads,
            f"must divide num_attention_heads = {config.num_heads}",
        )
    if config.head_dim % 2:
        raise InvalidField("head_dim", config.head_dim, "must be even for rotary embeddings")


def _head_dim(raw: JsonObject) -> int:
    hidden, heads = size(raw, "hidden_size"), size(raw, "num_attention_heads")
    if raw.get("head_dim") is None and hidden % heads:
        raise InvalidField("hidden_size", hidden, f"must be a multiple of {heads} heads")
    return size(raw, "head_dim", hidden // heads)
