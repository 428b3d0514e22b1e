"""The safetensors files of a model folder: found, opened, and checked by name and shape.

Covers: one ``model.safetensors`` or shards with an index; only headers are read, and no torch is
needed, so that a folder can be refused before any worker starts. Never reads pickles.
Does not cover: reading the weights (``engine.weights``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from core.errors import Incompatible, InvalidField, NotFound
from engine.config_fields import read_json
from engine.model_config import ModelConfig
from engine.weight_shapes import EMBEDDING, HEAD, Shape, expected_shapes

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")
_FLOAT_DTYPES = ("F32", "BF16", "F16", "F64")


def check_weights(folder: Path, config: ModelConfig) -> dict[str, Path]:
    """The file of each tensor of the model; of a tied head too, if it is stored.

    Raises NotFound for a missing file, Incompatible for a tensor that is missing, superfluous,
    given twice, of the wrong shape or quantized, InvalidField for a broken file.
    """
    expected = expected_shapes(config)
    found: dict[str, Path] = {}
    for path in weight_files(folder):
        with opened(path, "numpy") as file:
            for name in sorted(file.keys()):
                if not _is_ignored(name):
                    _check_tensor(path, file, name, _expected_shape(name, expected, config))
                    _check_once(name, path, found)
    missing = [name for name in expected if name not in found]
    if missing:
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise incompatible(f"{folder} lacks the tensor {missing[0]}{others}", missing[0])
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; raises NotFound that says what lies there instead."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _shards(folder)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    found = (
        f"only {', '.join(pickles)}, which may run code when read and is never loaded; "
        "convert it to safetensors"
        if pickles
        else "neither that nor an index of shards"
    )
    raise NotFound(
        f"{folder} has no {SINGLE_FILE}: it holds {found}",
        reason="WEIGHTS_MISSING",
        metadata={"folder": str(folder), "pickles": ",".join(pickles)},
    )


def _shards(folder: Path) -> list[Path]:
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidField("weight_map", weight_map, f"{INDEX_FILE} must map tensors to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InvalidField("weight_map", name, "must name a file of the model's own folder")
        if not (folder / name).is_file():
            raise NotFound(
                f"{folder} lacks the shard {name}, which {INDEX_FILE} names: copy it there",
                reason="WEIGHTS_MISSING",
                metadata={"folder": str(folder), "shard": name},
            )
    return [folder / name for name in names]


@contextmanager
def opened(path: Path, framework: str) -> Iterator[Any]:
    """The file as safetensors opens it; Any, because its methods have no types."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise InvalidField(
            "model", path.name, f"is not a whole safetensors file ({error}); copy it again"
        ) from None


def incompatible(message: str, tensor: str) -> Incompatible:
    """The error for a tensor that is not what config.json promises."""
    return Incompatible(message, reason="WEIGHTS_DO_NOT_FIT", metadata={"tensor": tensor})


def _is_ignored(name: str) -> bool:
    """Old checkpoints carry the rotary frequencies, which follow from config.json."""
    return name.endswith("rotary_emb.inv_freq")


def _expected_shape(name: str, expected: Mapping[str, Shape], config: ModelConfig) -> Shape:
    """A tensor that is not used and would change the result (a bias, say) is refused."""
    if name in expected:
        return expected[name]
    if name == HEAD and config.tie_word_embeddings:
        return expected[EMBEDDING]
    raise incompatible(
        f"the tensor {name} is not part of a {config.model_type} model of this config.json", name
    )


def _check_tensor(path: Path, file: Any, name: str, expected: Shape) -> None:
    stored = file.get_slice(name)
    shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
    if shape != expected:
        raise incompatible(
            f"{path.name}: {name} has shape {shape}, but config.json makes it {expected}", name
        )
    if dtype not in _FLOAT_DTYPES:
        raise incompatible(
            f"{path.name}: {name} is stored as {dtype}; only unquantized floats are supported", name
        )


def _check_once(name: str, path: Path, found: dict[str, Path]) -> None:
    if name in found:
        raise incompatible(f"{name} is in {found[name].name} and in {path.name}: keep one", name)
    found[name] = path
