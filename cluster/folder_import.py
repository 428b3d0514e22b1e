"""A Hugging Face model folder as a source of ``crossdock model import``.

Covers: which of its files serving reads, their fingerprint, and copying them (links, as the
Hugging Face cache has them, become files).
Does not cover: checking the folder (``cluster.model_folder``), publishing the copy
(``cluster.model_import``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import xxhash

from engine.model_hash import model_hash
from engine.weight_files import INDEX_FILE, weight_files

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def is_model_folder(path: Path) -> bool:
    """Whether this is meant as a Hugging Face folder; it may still be incomplete."""
    return (path / "config.json").is_file()


def folder_fingerprint(folder: Path) -> str:
    """16 hex digits over the small files and what ``model_hash`` covers of the weights."""
    digest = xxhash.xxh3_64(model_hash(folder).to_bytes(8, "little"))
    for name in _SMALL_FILES:
        file = folder / name
        digest.update(f"\x00{name}\x00".encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


def files_to_copy(folder: Path) -> list[Path]:
    """Raises what ``weight_files`` raises."""
    small = [folder / name for name in (*_SMALL_FILES, INDEX_FILE)]
    return [path for path in small if path.is_file()] + weight_files(folder)


def copy_folder(source: Path, destination: Path) -> None:
    """Copies what serving reads; ``destination`` exists."""
    for path in files_to_copy(source):
        shutil.copyfile(path, destination / path.name)
