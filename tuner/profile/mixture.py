"""How config.json files say that their MLPs are mixtures of experts, in the words of `ModelShape`.

Covers: Mixtral and gpt-oss (``num_local_experts``), Qwen2-MoE and Qwen3-MoE (``num_experts``, some
layers dense), DeepSeek-MoE (``n_routed_experts``, shared experts, dense layers first). Others are
refused by the name of what is not understood: with all experts taken for one they would be modelled
wrongly by factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import InvalidField

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
# What is read below, or says the same again.
_UNDERSTOOD = {
    *_COUNTS,
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "n_shared_experts",
    "moe_layer_freq",
    "experts_per_token",
}
_MARKS = ("expert", "moe")
# More than any model has; how many there may be is checked with the other sizes.
_MOST_LAYERS = 10_000


def with_mixture(stated: Mapping[str, Any]) -> dict[str, Any]:
    """``stated`` with the fields of `ModelShape` for its experts. Raises ``InvalidField``."""
    if isinstance(stated.get("kv_lora_rank"), int):
        fix = "latent attention (MLA) is not modelled: its KV is no heads of keys and values"
        raise InvalidField("kv_lora_rank", stated["kv_lora_rank"], fix)
    _refuse_unknown(stated)
    count, layers = _first(stated, _COUNTS), _mixed_layers(stated)
    if count <= 1 or not layers:
        return {**stated, "num_experts": 0}
    each = stated.get("moe_intermediate_size", stated.get("intermediate_size"))
    shared = stated.get("shared_expert_intermediate_size") or 0
    if not shared and isinstance(each, int):
        shared = _number(stated, "n_shared_experts") * each
    return {
        **stated,
        "num_experts": count,
        "moe_intermediate_size": each,
        "shared_expert_intermediate_size": shared,
        "num_moe_layers": layers,
    }


def _mixed_layers(stated: Mapping[str, Any]) -> int:
    """How many layers have experts: without the first ones (DeepSeek), of those that are left every
    n-th (Qwen: ``decoder_sparse_step``, DeepSeek: ``moe_layer_freq``), but those that are listed as
    dense (Qwen: ``mlp_only_layers``)."""
    layers = _number(stated, "num_hidden_layers")
    first = _number(stated, "first_k_dense_replace")
    listed = stated.get("mlp_only_layers")
    dense = {one for one in listed if isinstance(one, int)} if isinstance(listed, list) else set()
    every = max(1, _number(stated, "decoder_sparse_step"))
    of_rest = max(1, _number(stated, "moe_layer_freq"))
    return sum(
        layer >= first and layer not in dense and (layer + 1) % every == 0 and layer % of_rest == 0
        for layer in range(min(layers, _MOST_LAYERS))
    )


def _refuse_unknown(stated: Mapping[str, Any]) -> None:
    """A size of experts by another name."""
    for name, value in stated.items():
        marked = any(mark in name.lower() for mark in _MARKS)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 1
        if marked and is_count and name not in _UNDERSTOOD:
            fix = "this mixture of experts is not understood; give the sizes under `model:`"
            raise InvalidField(name, value, fix)


def _first(stated: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((found for name in names if (found := _number(stated, name))), 0)


def _number(stated: Mapping[str, Any], name: str) -> int:
    """0 if it is left out or none: what must be there is checked with the other sizes."""
    value = stated.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
