"""Latency profiles as files: JSON with a schema version, replaced as a whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from core.errors import Incompatible, InvalidField
from core.latency_profile import LatencyProfile
from tuner.files import check_writable, write_files
from tuner.profile.profile_checks import find_problem, unknown_field

FORMAT = "crossdock latency profile"
SCHEMA = 1
# A profile says there what it is.
_HEAD_BYTES = 4096

_adapter = TypeAdapter(LatencyProfile)


def read_profile(path: Path) -> LatencyProfile:
    """Raises ``InvalidField`` for a file that can't be read or is damaged, ``Incompatible`` for one
    of a newer schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InvalidField("profile", str(path), "is no text file, and no profile") from None
    except OSError as error:
        raise InvalidField("profile", str(path), f"can't be read: {error}") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "it is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        fix = "is no latency profile; make one with `crossdock profile --out FILE`"
        raise InvalidField("profile", str(path), fix)
    _check_schema(path, content.get("schema"))
    try:
        # From JSON, where an enum is its value and a tuple is a list; numbers stay what they are.
        profile = _adapter.validate_json(json.dumps(content.get("profile")), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{where or 'profile'}: {first['msg']}") from None
    except InvalidField as error:
        raise _damaged(path, error.message) from None
    if unknown := unknown_field(content, _content(profile)):
        raise _damaged(path, f"{unknown} is no field that this version knows")
    if problem := find_problem(profile):
        raise _damaged(path, problem)
    return profile


def check_profile_path(path: Path) -> None:
    """Before the work. Raises ``InvalidField`` if ``path`` can't be written, or holds what is no
    profile: a trace or a config, named by a slip, can't be had again."""
    check_writable(path)
    if path.is_file() and (head := _head(path)) and FORMAT.encode() not in head:
        fix = "is there and is no latency profile: name another file, or remove it first"
        raise InvalidField("--out", str(path), fix)


def write_profile(profile: LatencyProfile, path: Path) -> None:
    """The file appears complete or stays as it was. Raises ``InvalidField`` if it can't."""
    text = json.dumps(_content(profile), indent=1, allow_nan=False) + "\n"
    write_files({path: text})


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise InvalidField("--out", str(path), f"can't be read: {error.strerror}") from None


def require_model(profile: LatencyProfile, model_hash: str, model: str) -> None:
    """Raises ``Incompatible`` for a profile that was measured with other weights than ``model``'s.
    Computed profiles belong to no weights and suit any."""
    if profile.model_hash in ("", model_hash):
        return
    raise Incompatible(
        f"the profile is of {profile.model} ({profile.model_hash}), not of {model} ({model_hash}): "
        "name the profile's model with --model, or measure this one with `crossdock profile`",
        reason="PROFILE_OF_ANOTHER_MODEL",
        metadata={"profile": profile.model, "model": model},
    )


def to_plain(profile: LatencyProfile) -> dict[str, Any]:
    """Dicts, lists, numbers and strings."""
    plain: dict[str, Any] = _adapter.dump_python(profile, mode="json")
    return plain


def _content(profile: LatencyProfile) -> dict[str, Any]:
    return {"format": FORMAT, "schema": SCHEMA, "profile": to_plain(profile)}


def _check_schema(path: Path, schema: object) -> None:
    if isinstance(schema, int) and schema > SCHEMA:
        raise Incompatible(
            f"{path} has schema {schema}, this version reads up to {SCHEMA}: "
            "update crossdock, or measure again",
            reason="PROFILE_TOO_NEW",
            metadata={"profile": str(path), "schema": str(schema)},
        )
    if schema != SCHEMA or isinstance(schema, bool):
        raise _damaged(path, f"schema is {schema!r}")


def _damaged(path: Path, detail: str) -> InvalidField:
    return InvalidField(
        "profile", str(path), f"is damaged ({detail}); measure again with `crossdock profile`"
    )
