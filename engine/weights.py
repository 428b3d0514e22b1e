"""Reads a model's weights from safetensors, after all of them were checked by name and shape.

Does not cover: the files and checks (``engine.weight_files``), how the weights are used
(``engine.decoder``).
"""

from __future__ import annotations

from pathlib import Path

import torch

from engine.model_config import ModelConfig
from engine.weight_files import EMBEDDING, HEAD, check_weights, incompatible, opened


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: str
) -> dict[str, torch.Tensor]:
    """Every tensor of ``expected_shapes``, by its Hugging Face name, in ``dtype`` on ``device``.

    Raises what ``check_weights`` raises, and Incompatible if a tied model has a head of its own.
    """
    files = check_weights(folder, config)
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(set(files.values())):
        with opened(path, "pt") as file:
            for name in (name for name, holder in files.items() if holder == path):
                weights[name] = file.get_tensor(name).to(device=device, dtype=dtype)
    if config.tie_word_embeddings and HEAD in weights:
        _check_tied(weights.pop(HEAD), weights[EMBEDDING])
    return weights


def _check_tied(head: torch.Tensor, embedding: torch.Tensor) -> None:
    """transformers 5 unties a head that is stored and differs; older ones drop it."""
    if not torch.equal(head, embedding):
        raise incompatible(
            f"config.json ties the head to the embeddings, but {HEAD} differs from {EMBEDDING}: "
            f"set tie_word_embeddings to false, or remove {HEAD}",
            HEAD,
        )
