"""Reads a rank's part of a model's weights from safetensors, after all were checked by name and
shape.

Only the slices that the rank holds are read. Does not cover: the files and checks
(``engine.weight_files``), which slices these are (``engine.weight_slices``), how the weights are
used (``engine.decoder``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from core.shards import ONE_RANK, ParallelShape
from engine.model_config import ModelConfig
from engine.model_shard import model_shard
from engine.weight_files import check_weights, incompatible, opened
from engine.weight_shapes import EMBEDDING, HEAD
from engine.weight_slices import Slices, held_slices


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: str,
    shape: ParallelShape = ONE_RANK,
    rank: int = 0,
) -> dict[str, torch.Tensor]:
    """Every tensor of ``held_slices``, by its Hugging Face name, in ``dtype`` on ``device``.

    Raises what ``check_weights`` and ``model_shard`` raise, and Incompatible if a tied model has a
    head of its own.
    """
    held = held_slices(config, model_shard(config, shape, rank))
    files = check_weights(folder, config)
    wanted = dict(held)
    if config.tie_word_embeddings and HEAD in files and EMBEDDING in held:
        wanted[HEAD] = held[EMBEDDING]
    weights = _read(files, wanted, dtype, device)
    if HEAD in wanted.keys() - held.keys():
        _check_tied(weights.pop(HEAD), weights[EMBEDDING])
    return weights


def _read(
    files: Mapping[str, Path], wanted: Mapping[str, Slices], dtype: torch.dtype, device: str
) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for path in sorted({files[name] for name in wanted}):
        with opened(path, "pt") as file:
            for name in (name for name in wanted if files[name] == path):
                stored = file.get_slice(name)[wanted[name]]
                weights[name] = stored.to(device=device, dtype=dtype)
    return weights


def _check_tied(head: torch.Tensor, embedding: torch.Tensor) -> None:
    """transformers 5 unties a head that is stored and differs; older ones drop it."""
    if not torch.equal(head, embedding):
        raise incompatible(
            f"config.json ties the head to the embeddings, but {HEAD} differs from {EMBEDDING}: "
            f"set tie_word_embeddings to false, or remove {HEAD}",
            HEAD,
        )
