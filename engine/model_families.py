"""The model families that the engine runs, and where their config.json files differ.

Covers: Llama, Mistral, Qwen2 and Qwen3. They are one decoder: what tells them apart is which
projections carry a bias, whether Q and K are normalized, which layers look through a sliding
window, and what transformers assumes of a field that config.json leaves out.
Does not cover: mixtures of experts, other activations, other norms: refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.errors import InvalidField
from engine.config_fields import JsonObject, check_values, unsupported


@dataclass(frozen=True, slots=True)
class Family:
    """``defaults``: fields that config.json may leave out, as the family's config class has them.

    ``supported``: fields that may hold only these values, beside being absent or null.
    ``qkv_bias``: Q, K and V have a bias whatever config.json says, and the output projection none.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, object] = field(default_factory=dict)
    supported: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    qkv_bias: bool = False
    qk_norm: bool = False


_NO_BIAS: Mapping[str, tuple[object, ...]] = {"attention_bias": (False,), "mlp_bias": (False,)}
_QWEN_DEFAULTS: Mapping[str, object] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        defaults={"max_position_embeddings": 2048},
        supported={"sliding_window": (), "use_sliding_window": (False,)},
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        supported=_NO_BIAS,
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        defaults=_QWEN_DEFAULTS,
        supported={"attention_bias": (True,), "mlp_bias": (False,)},
        qkv_bias=True,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        supported={"mlp_bias": (False,)},
        qk_norm=True,
    ),
)

# Of every family. Where nothing is listed, the field may only be absent or null.
_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "quantization_config": (),
    "partial_rotary_factor": (1.0,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "per_layer_config": (),
    "dual_chunk_attention_config": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
}


def find_family(raw: JsonObject) -> Family:
    """The family of a config.json; raises Incompatible for what would change the result."""
    names = [family.model_type for family in FAMILIES]
    model_type = raw.get("model_type")
    if model_type is None:
        raise InvalidField("model_type", None, f"config.json must name it: {', '.join(names)}")
    if model_type not in names:
        raise unsupported("model_type", model_type, *names)
    family = FAMILIES[names.index(model_type)]
    architectures = raw.get("architectures") or [family.architecture]
    if architectures != [family.architecture]:
        raise unsupported("architectures", architectures, [family.architecture])
    check_values(raw, _SUPPORTED)
    check_values(raw, family.supported)
    return family
