"""What the router must know of the served model, read from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from core.errors import Incompatible, InvalidField, NotFound
from text.tokenizer import read_eos_token_ids


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """``vocab_size``: ids below it are valid. ``max_model_len``: tokens of prompt and answer.
    ``digest``: of the folder's config and tokenizer, tells this model from others."""

    name: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    digest: str = field(default="", compare=False)

    @classmethod
    def load(cls, folder: Path, name: str = "", max_model_len: int | None = None) -> ModelInfo:
        """Read ``config.json``; ``name`` defaults to the folder's name.

        A ``max_model_len`` is taken as it is: whoever starts the workers has checked it against the
        model and its rope scaling. Without one, it is the config's ``max_position_embeddings``.
        """
        path = folder / "config.json"
        config = _read_config(path)
        if max_model_len is None:
            max_model_len = _whole(path, config, "max_position_embeddings")
        if max_model_len < 1:
            raise InvalidField("max_model_len", max_model_len, "must be at least 1 token")
        vocab_size = _whole(path, config, "vocab_size")
        eos = read_eos_token_ids(folder)
        name = name or folder.resolve().name
        return cls(name, vocab_size, max_model_len, eos, _digest(folder))

    def check_name(self, name: str) -> None:
        """Raises NotFound if ``name`` is another model's."""
        if name != self.name:
            raise NotFound(
                f"model {name!r} is not served here; this is {self.name!r}",
                reason="MODEL_NOT_FOUND",
                metadata={"field": "model", "value": name, "served": self.name},
            )


def _digest(folder: Path) -> str:
    digest = xxhash.xxh3_128()
    for name in ("config.json", "tokenizer.json"):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(path, str(error)) from error


def _whole(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise _unusable(path, f"it has no positive {key}")
    return value


def _unusable(path: Path, why: str) -> Incompatible:
    return Incompatible(
        f"{path} can't be used: {why}; give the folder of a Hugging Face model",
        reason="MODEL_UNUSABLE",
        metadata={"file": str(path), "why": why},
    )
