"""Which slice of which tensor a rank holds (Shoeybi et al., 2019, Megatron-LM).

Q, K, V, gate and up are split by their outputs, the output projection and down by their inputs,
embedding and head by tokens; norms are whole on every rank. What is split by inputs gives a part
of a sum on each rank, so one rank only, the stage's leading one, has its bias.
"""

from __future__ import annotations

from engine.model_config import ModelConfig
from engine.model_shard import ModelShard
from engine.weight_shapes import EMBEDDING, FINAL_NORM, HEAD, layer_shapes

Slices = tuple[slice, ...]
_ALL = slice(None)


def held_slices(config: ModelConfig, shard: ModelShard) -> dict[str, Slices]:
    """By Hugging Face name, one slice for each axis that is cut.

    The last stage of a model with a tied head holds the embedding for it.
    """
    of_layer = _layer_slices(config, shard)
    tokens = (_slice(shard.vocabulary),)
    held = {
        f"model.layers.{i}.{name}": slices
        for i in shard.layers
        for name, slices in of_layer.items()
    }
    if shard.is_first_stage:
        held[EMBEDDING] = tokens
    if shard.is_last_stage:
        held[FINAL_NORM] = (_ALL,)
        held[EMBEDDING if config.tie_word_embeddings else HEAD] = tokens
    return held


def _layer_slices(config: ModelConfig, shard: ModelShard) -> dict[str, Slices]:
    heads, kv_heads = (_slice(part, config.head_dim) for part in (shard.heads, shard.kv_heads))
    mlp = _slice(shard.mlp_columns)
    outputs = {
        "self_attn.q_proj": heads,
        "self_attn.k_proj": kv_heads,
        "self_attn.v_proj": kv_heads,
        "mlp.gate_proj": mlp,
        "mlp.up_proj": mlp,
    }
    inputs = {"self_attn.o_proj": heads, "mlp.down_proj": mlp}
    held: dict[str, Slices] = {}
    for name in layer_shapes(config):
        module, _, kind = name.rpartition(".")
        if module in outputs:
            held[name] = (outputs[module],)
        elif module not in inputs:
            held[name] = (_ALL,)
        elif kind == "weight":
            held[name] = (_ALL, inputs[module])
        elif shard.leads_stage:
            held[name] = (_ALL,)
    return held


def _slice(part: range, size: int = 1) -> slice:
    return slice(part.start * size, part.stop * size)
