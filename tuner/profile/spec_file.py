"""Reads a description of hardware and model (YAML) for a modelled profile.

hardware: h100            # built in, or a section with the fields of HardwareSpec
model: llama-3.1-8b       # built in, a model folder, or a section with sizes
dtype: bfloat16
shapes: ["1x1", "2x1"]    # tensor x pipeline; without it all usual ones
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from core.errors import InvalidField
from core.kv_layout import DTYPE_BYTES
from core.latency_profile import LatencyProfile
from core.shards import MAX_RANKS, ParallelShape
from core.yaml_text import parse_yaml
from tuner.profile import hardware, model_shape
from tuner.profile.hardware import HardwareSpec
from tuner.profile.model_shape import ModelShape, read_model_shape, shape_of
from tuner.profile.modelled import SHAPES, Roofline, modelled_profile, refusal

_KEYS = ("hardware", "model", "dtype", "shapes")


def profile_from_spec(path: Path, created: str) -> LatencyProfile:
    """Raises ``InvalidField`` naming the entry, its value and the fix."""
    content = _read(path)
    for key in content:
        if key not in _KEYS:
            raise InvalidField(str(key), content[key], f"unknown entry; valid: {', '.join(_KEYS)}")
    dtype = content.get("dtype", "bfloat16")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InvalidField("dtype", dtype, f"must be one of {', '.join(DTYPE_BYTES)}")
    stated = parse_hardware(_needed(content, "hardware", path))
    model = parse_model(_needed(content, "model", path), path.parent)
    shapes = _shapes(content.get("shapes"), Roofline(stated, model, DTYPE_BYTES[dtype]))
    return modelled_profile(stated, model, dtype, created, shapes)


def parse_hardware(stated: object) -> HardwareSpec:
    """A built-in name, or a mapping with the fields of ``HardwareSpec``."""
    if isinstance(stated, str):
        if stated not in hardware.BUILT_IN:
            fix = f"is not built in; known: {', '.join(hardware.BUILT_IN)}; or give its numbers"
            raise InvalidField("hardware", stated, fix)
        return hardware.BUILT_IN[stated]
    if not isinstance(stated, Mapping):
        raise InvalidField("hardware", stated, "must be a built-in name, or a section of numbers")
    _refuse_unknown(stated, "hardware", HardwareSpec)
    try:
        return HardwareSpec.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(["hardware", *map(str, first["loc"])])
        value = first["input"] if not isinstance(first["input"], Mapping) else None
        raise InvalidField(entry, value, first["msg"].lower()) from None


def parse_model(stated: object, folder: Path) -> ModelShape:
    """A built-in name, a model folder (relative to ``folder``), or a mapping of sizes."""
    if isinstance(stated, Mapping):
        _refuse_unknown(stated, "model", ModelShape)
        return shape_of({"name": "custom", **stated}, "model")
    if isinstance(stated, str) and stated in model_shape.BUILT_IN:
        return model_shape.BUILT_IN[stated]
    if isinstance(stated, str) and "\0" not in stated and (folder / stated).is_dir():
        return read_model_shape(folder / stated)
    known = ", ".join(model_shape.BUILT_IN)
    raise InvalidField("model", stated, f"is neither built in ({known}) nor a model folder")


def parse_shape(stated: object) -> ParallelShape:
    """ "2x1": tensor x pipeline."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})[x×]([1-9][0-9]{0,3})", str(stated).lower()[:16])
    if not isinstance(stated, str) or match is None:
        raise InvalidField("shapes", stated, 'must be TENSORxPIPELINE, e.g. "2x1"')
    shape = ParallelShape(int(match[1]), int(match[2]))
    if shape.num_ranks > MAX_RANKS:
        raise InvalidField("shapes", stated, f"a replica has at most {MAX_RANKS} ranks")
    return shape


def _shapes(stated: object, roofline: Roofline) -> tuple[ParallelShape, ...]:
    """All usual ones, of which those that can't run are left out; one that was asked for is not."""
    if stated is None:
        return SHAPES
    if not isinstance(stated, list) or not stated:
        raise InvalidField("shapes", stated, 'must be a list such as ["1x1", "2x1"]')
    shapes = tuple(dict.fromkeys(parse_shape(item) for item in stated))
    for shape in shapes:
        if reason := refusal(roofline, shape):
            raise InvalidField("shapes", str(shape), reason)
    return shapes


def _needed(content: Mapping[str, Any], key: str, path: Path) -> Any:
    if content.get(key) is None:
        raise InvalidField(key, None, f"is missing in {path.name}")
    return content[key]


def _refuse_unknown(stated: Mapping[str, Any], section: str, kind: type[BaseModel]) -> None:
    unknown = [key for key in stated if key not in kind.model_fields]
    if unknown:
        fix = f"unknown entry; valid: {', '.join(kind.model_fields)}"
        raise InvalidField(f"{section}.{unknown[0]}", stated[unknown[0]], fix)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InvalidField("--from-spec", str(path), "is no text file") from None
    except OSError as error:
        raise InvalidField("--from-spec", str(path), f"can't be read: {error}") from None
    except ValueError as error:
        raise InvalidField("--from-spec", str(path), str(error)) from None
    if not isinstance(content, Mapping):
        raise InvalidField("--from-spec", str(path), "must hold `hardware: …` and `model: …`")
    return content
