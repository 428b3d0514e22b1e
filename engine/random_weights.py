"""Weights that nobody trained, made where they are used: to measure a shape without its files.

Does not cover: what a model with them says (nothing of use).
"""

from __future__ import annotations

import torch

from engine.model_config import ModelConfig
from engine.weight_shapes import expected_shapes

# As most models are initialized: logits stay small and finite.
_DEVIATION = 0.02


def random_weights(
    config: ModelConfig, dtype: torch.dtype, device: str, seed: int
) -> dict[str, torch.Tensor]:
    """All tensors of the model by their Hugging Face names; norms are ones.

    Equal seeds give equal weights on one kind of device, not on different ones.
    """
    generator = torch.Generator(device).manual_seed(seed)
    return {
        name: _random(name, shape, dtype, generator)
        for name, shape in expected_shapes(config).items()
    }


def _random(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=dtype, device=generator.device)
    empty = torch.empty(shape, dtype=dtype, device=generator.device)
    return empty.normal_(0.0, _DEVIATION, generator=generator)
