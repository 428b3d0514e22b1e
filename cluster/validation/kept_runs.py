"""Measured runs as files, one for each configuration and load: so none has to be measured twice.

The records are those of `crossdock bench --save`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from core.errors import InvalidField
from tuner.load.metrics import RunResult
from tuner.load.records import RequestRecord

_adapter = TypeAdapter(RequestRecord)


def run_path(folder: Path, configuration: str, traffic: str, rate: float) -> Path:
    name = f"{configuration} {traffic} {rate:g}"
    return folder / (re.sub(r"[^\w.]+", "-", name) + ".jsonl")


def keep_run(run: RunResult, path: Path) -> None:
    """Appears complete or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_text("".join(json.dumps(record.as_json()) + "\n" for record in run.records))
    draft.replace(path)


def read_run(path: Path, window_s: float) -> RunResult | None:
    """None if there is no such file. ``window_s``: for how long its requests arrived. Raises
    ``InvalidField`` for a damaged one."""
    if not path.exists():
        return None
    try:
        records = [_adapter.validate_json(line) for line in path.read_text().splitlines()]
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise InvalidField("records", str(path), f"is damaged; delete it: {error}") from None
    elapsed = max((r.ended_s for r in records if r.ended_s is not None), default=0.0)
    return RunResult(0, tuple(records), window_s or elapsed, elapsed)
