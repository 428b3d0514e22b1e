"""Latency profiles as files: JSON with a schema version, replaced as a whole or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from core.errors import Incompatible, InvalidField
from core.latency_profile import EngineProfile, Interference, LatencyProfile
from tuner.files import write_files

FORMAT = "crossdock latency profile"
SCHEMA = 1

_adapter = TypeAdapter(LatencyProfile)


def read_profile(path: Path) -> LatencyProfile:
    """Raises ``InvalidField`` for a file that can't be read or is damaged, ``Incompatible`` for one
    of a newer schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
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
    _check_numbers(path, profile)
    return profile


def write_profile(profile: LatencyProfile, path: Path) -> None:
    """The file appears complete or stays as it was. Raises ``InvalidField`` if it can't."""
    content = {"format": FORMAT, "schema": SCHEMA, "profile": to_plain(profile)}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_files({path: text})


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


def _check_numbers(path: Path, profile: LatencyProfile) -> None:
    """What types don't say: times don't run backwards."""
    if not profile.engines:
        raise _damaged(path, "it has no engine")
    for engine in profile.engines:
        if problem := _engine_problem(engine):
            raise _damaged(path, f"{problem} of engine {engine}")
    for transfer in profile.transfers:
        if min(transfer.model.per_batch, transfer.model.per_token) < 0:
            raise _damaged(path, f"a negative time of the {transfer.transport} transfer")
    if not _is_interference(profile.interference):
        raise _damaged(path, "interference must be numbers from 1 on")
    seconds = (profile.message_s, profile.request_s)
    if not all(0 <= value < math.inf for value in seconds):
        raise _damaged(path, "message_s and request_s must be seconds from 0 on")


def _is_interference(found: Interference | None) -> bool:
    return found is None or all(1 <= factor < math.inf for factor in astuple(found))


def _engine_problem(engine: EngineProfile) -> str | None:
    step = engine.step
    times = [step.per_sampled, step.per_prefill_pair, step.per_decode_context]
    times += [time for _, time in step.rows.points]
    if min(times) < 0:
        return "a negative time"
    if not 0 < engine.core_share <= 1:
        return f"core share {engine.core_share}"
    if min(engine.threads, engine.shape.tensor, engine.shape.pipeline, engine.kv_tokens) < 1:
        return "a size below 1"
    return None


def _damaged(path: Path, detail: str) -> InvalidField:
    return InvalidField(
        "profile", str(path), f"is damaged ({detail}); measure again with `crossdock profile`"
    )
