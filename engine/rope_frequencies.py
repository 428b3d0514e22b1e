"""Rotary frequencies of a model, scaled as its config.json says.

Covers: plain, linear, llama3 and yarn frequencies. Formulas as in transformers'
``modeling_rope_utils``, computed in the same precision.
Does not cover: reading the parameters (``engine.rope_config``), applying them
(``kernels.rotary``).
"""

from __future__ import annotations

import math

import torch

from engine.rope_config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling


def inverse_frequencies(
    rope: RopeConfig, head_dim: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Radians per position, ``dtype`` [head_dim / 2]; theta ** (-2i / head_dim) before scaling."""
    exponents = torch.arange(0, head_dim, 2, dtype=dtype, device=device) / head_dim
    plain = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling() as llama3:
            return _llama3(plain, llama3)
        case YarnScaling() as yarn:
            return _yarn(plain, yarn, rope.theta, head_dim)


def attention_factor(rope: RopeConfig) -> float:
    """What cos and sin are multiplied by."""
    return rope.scaling.attention_factor if isinstance(rope.scaling, YarnScaling) else 1.0


def _llama3(plain: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Llama 3.1: with s = (original / wavelength - low) / (high - low), clipped to 0 and 1,
    the frequency is s * plain + (1 - s) * plain / factor."""
    wavelengths = 2 * math.pi / plain
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_positions / wavelengths - scaling.low_freq_factor) / span
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _yarn(plain: torch.Tensor, scaling: YarnScaling, theta: float, head_dim: int) -> torch.Tensor:
    """YaRN, "NTK by parts" (section 3.2): a ramp over the dimensions from kept to divided."""
    low = _dimension_of_turns(scaling.beta_fast, scaling, theta, head_dim)
    high = _dimension_of_turns(scaling.beta_slow, scaling, theta, head_dim)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # transformers' way around a division by zero.
    width = high - low if high != low else 0.001
    dimensions = torch.arange(head_dim // 2, dtype=plain.dtype, device=plain.device)
    divided = ((dimensions - low) / width).clamp(0, 1)
    return plain / scaling.factor * divided + plain * (1 - divided)


def _dimension_of_turns(turns: float, scaling: YarnScaling, theta: float, head_dim: int) -> float:
    """The dimension, as a real number, that turns so often over the original context."""
    ratio = scaling.original_positions / (turns * 2 * math.pi)
    return head_dim * math.log(ratio) / (2 * math.log(theta))
