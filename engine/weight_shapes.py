"""Names and shapes of all weights that a model of some config has.

Names are those of Hugging Face folders, weights of projections are [out, in].
"""

from __future__ import annotations

from engine.model_config import ModelConfig

Shape = tuple[int, ...]

EMBEDDING, FINAL_NORM = "model.embed_tokens.weight", "model.norm.weight"
HEAD = "lm_head.weight"


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of all tensors of the model by their Hugging Face names."""
    shapes: dict[str, Shape] = {
        EMBEDDING: (config.vocab_size, config.hidden_size),
        FINAL_NORM: (config.hidden_size,),
    }
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    for i in range(config.num_layers):
        for name, shape in layer_shapes(config).items():
            shapes[f"model.layers.{i}.{name}"] = shape
    return shapes


def layer_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of the tensors of one layer, all alike, by their names within it."""
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (config.hidden_size,),
        "post_attention_layernorm.weight": (config.hidden_size,),
    }
    if config.qk_norm:
        shapes |= {f"self_attn.{x}_norm.weight": (config.head_dim,) for x in ("q", "k")}
    for name, (shape, has_bias) in _projections(config).items():
        shapes[f"{name}.weight"] = shape
        if has_bias:
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _projections(config: ModelConfig) -> dict[str, tuple[Shape, bool]]:
    """Shape of each projection's weight, and whether it has a bias."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": ((q_size, hidden), config.qkv_bias),
        "self_attn.k_proj": ((kv_size, hidden), config.qkv_bias),
        "self_attn.v_proj": ((kv_size, hidden), config.qkv_bias),
        "self_attn.o_proj": ((hidden, q_size), config.output_bias),
        "mlp.gate_proj": ((inner, hidden), config.mlp_bias),
        "mlp.up_proj": ((inner, hidden), config.mlp_bias),
        "mlp.down_proj": ((hidden, inner), config.mlp_bias),
    }
