"""Fields of a model folder's JSON files, each checked by name.

Covers: reading a JSON object, whole and real numbers, flags, fields that may hold only some values.
Does not cover: which fields a model has (``engine.model_config``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import Incompatible, InvalidField, NotFound

JsonObject = Mapping[str, Any]


def read_json(path: Path) -> JsonObject:
    """A JSON object from a file of a model folder."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(
            f"{path} does not exist: give a Hugging Face model folder, or make one with "
            "`crossdock model import`",
            reason="MODEL_FILE_MISSING",
            metadata={"file": str(path)},
        ) from None
    except ValueError as error:
        raise InvalidField(path.name, str(path), f"is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InvalidField(path.name, str(path), "must hold a JSON object")
    return value


def size(raw: JsonObject, field: str, default: int | None = None) -> int:
    """A positive whole number; ``default`` stands for a field that is missing or null."""
    value = raw.get(field)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidField(field, value, "config.json must give a positive whole number")
    return value


def positive(raw: JsonObject, field: str, default: float | None = None) -> float:
    """A positive finite number; ``default`` stands for a field that is missing or null."""
    value = raw.get(field)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InvalidField(field, value, "must be a positive number")
    return float(value)


def flag(raw: JsonObject, field: str, default: bool = False) -> bool:
    """True or false; ``default`` stands for a field that is missing or null."""
    value = raw.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidField(field, value, "must be true or false")
    return value


def check_values(raw: JsonObject, supported: Mapping[str, tuple[object, ...]]) -> None:
    """Raises Incompatible for a field that holds none of its supported values.

    A field that is missing or null is as its model family has it by default, and passes.
    """
    for field, values in supported.items():
        if raw.get(field) is not None and raw[field] not in values:
            raise unsupported(field, raw[field], *values)


def unsupported(field: str, value: object, *supported: object) -> Incompatible:
    """The error for what would change the result and is not implemented."""
    runs = " or ".join(repr(one) for one in supported or (None,))
    return Incompatible(
        f"config.json: {field} = {value!r} is not supported; this engine runs {runs}",
        reason="MODEL_NOT_SUPPORTED",
        metadata={"field": field, "value": repr(value), "supported": runs},
    )
