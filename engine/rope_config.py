"""How a model's rotary frequencies are made: base and scaling, read from config.json.

Covers: ``rope_theta``, and scaling of type linear, llama3 and yarn, from ``rope_scaling``
(transformers 4) or ``rope_parameters`` (transformers 5).
Does not cover: the frequencies themselves (``engine.rope_frequencies``); types dynamic, longrope,
proportional, mrope and parameters that differ between layers are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import InvalidField
from engine.config_fields import JsonObject, flag, positive, size, unsupported

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_USED_BY: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
# "finetuned" tells how a model came about and changes nothing.
_USED_BY_ALL = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "finetuned",
)


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All frequencies divided by ``factor`` (Chen et al., 2023, position interpolation)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths divided by ``factor``, short ones kept, a blend between (Llama 3.1).

    A wavelength is short below ``original_positions / high_freq_factor`` tokens and long above
    ``original_positions / low_freq_factor``.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al., 2023): as Llama 3 by parts, bounded by turns over the original context.

    Dimensions that turn more than ``beta_fast`` times are kept, those below ``beta_slow`` divided
    by ``factor``. ``attention_factor`` multiplies cos and sin: the paper's sqrt(1 / t).
    """

    factor: float
    original_positions: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """``theta``: base of the frequencies theta ** (-2i / head_dim)."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None


def read_rope(raw: JsonObject, max_position_embeddings: int) -> RopeConfig:
    """Raises Incompatible or InvalidField, by name, for what would give other frequencies."""
    source, rope = _parameters(raw)
    rope_type = _rope_type(source, rope)
    _check_fields(source, rope, rope_type)
    theta = positive(rope if rope.get("rope_theta") is not None else raw, "rope_theta", 10000.0)
    # Some folders keep it outside; transformers lets that one win.
    holder = raw if raw.get("original_max_position_embeddings") is not None else rope
    original = size(holder, "original_max_position_embeddings", max_position_embeddings)
    if rope_type == "linear":
        return RopeConfig(theta, LinearScaling(positive(rope, "factor")))
    if rope_type == "llama3":
        return RopeConfig(theta, _llama3(rope, original))
    if rope_type == "yarn":
        if theta <= 1:
            raise InvalidField("rope_theta", theta, "must be above 1 for yarn")
        return RopeConfig(theta, _yarn(rope, original, max_position_embeddings))
    return RopeConfig(theta)


def _parameters(raw: JsonObject) -> tuple[str, JsonObject]:
    """Name and content of the object that holds the parameters."""
    given = {key: raw[key] for key in ("rope_scaling", "rope_parameters") if raw.get(key)}
    for key, value in given.items():
        if not isinstance(value, dict):
            raise InvalidField(key, value, "must be a JSON object")
    if len(given) == 2 and given["rope_scaling"] != given["rope_parameters"]:
        # transformers 5 would let rope_scaling win and lose the rope_theta of the other.
        raise InvalidField(
            "rope_scaling", given["rope_scaling"], "config.json has other rope_parameters: keep one"
        )
    return next(iter(given.items()), ("rope_parameters", {}))


def _rope_type(source: str, rope: JsonObject) -> str:
    """``rope_type``, or ``type``, its name in older folders."""
    names = {rope[key] for key in ("rope_type", "type") if isinstance(rope.get(key), str)}
    for key in ("rope_type", "type"):
        if rope.get(key) is not None and rope[key] not in _ROPE_TYPES:
            raise unsupported(f"{source}.{key}", rope[key], *_ROPE_TYPES)
    if len(names) == 2:
        raise InvalidField(f"{source}.type", rope["type"], f"rope_type says {rope['rope_type']!r}")
    return names.pop() if names else "default"


def _check_fields(source: str, rope: JsonObject, rope_type: str) -> None:
    partial = rope.get("partial_rotary_factor")
    if partial not in (None, 1.0):
        raise unsupported(f"{source}.partial_rotary_factor", partial, 1.0)
    known = (*_USED_BY_ALL, *_USED_BY[rope_type])
    for key, value in rope.items():
        neutral = value is None or (key == "factor" and value == 1.0)
        if key not in known and not neutral:
            raise unsupported(f"{source}.{key}", value, f"{rope_type} rope without it")


def _llama3(rope: JsonObject, original: int) -> Llama3Scaling:
    low, high = positive(rope, "low_freq_factor"), positive(rope, "high_freq_factor")
    if high <= low:
        raise InvalidField("high_freq_factor", high, f"must be above low_freq_factor = {low}")
    return Llama3Scaling(positive(rope, "factor"), low, high, original)


def _yarn(rope: JsonObject, original: int, max_position_embeddings: int) -> YarnScaling:
    factor = positive(rope, "factor", max_position_embeddings / original)
    return YarnScaling(
        factor=factor,
        original_positions=original,
        # transformers takes a zero for "not given" here.
        beta_fast=positive(rope, "beta_fast", 32.0) if rope.get("beta_fast") else 32.0,
        beta_slow=positive(rope, "beta_slow", 1.0) if rope.get("beta_slow") else 1.0,
        truncate=flag(rope, "truncate", default=True),
        attention_factor=positive(rope, "attention_factor", _attention_factor(rope, factor)),
    )


def _attention_factor(rope: JsonObject, factor: float) -> float:
    """0.1 ln(factor) + 1 (equation 22 of YaRN), or DeepSeek's ratio of two such terms."""
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        over, under = positive(rope, "mscale"), positive(rope, "mscale_all_dim")
        return _mscale(factor, over) / _mscale(factor, under)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
