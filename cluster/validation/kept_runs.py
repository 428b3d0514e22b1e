"""Measured runs as files, one for each configuration and load: so none has to be measured twice.

A run is found by what it is of: the config, the requests, the model's weights and the machine. Not
by the profile's times: a run stays what it was when the machine is profiled again. The records are
those of `crossdock bench --save`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from core.config import ClusterSpec
from core.errors import InvalidField
from core.latency_profile import LatencyProfile
from tuner.files import write_files
from tuner.load.metrics import RunResult
from tuner.load.records import RequestRecord
from tuner.simulate.requests import RequestTrace

_FORMAT = "crossdock measured run"


class _Header(TypedDict):
    format: Literal["crossdock measured run"]
    code: str
    measured: str


_header = TypeAdapter(_Header)
_adapter = TypeAdapter(RequestRecord)
# Of the words in a file's name; what tells runs apart is the digest behind them.
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class KeptRun:
    """``code``: of what served it (``cluster.code_digest``); ``measured``: when, ISO 8601."""

    run: RunResult
    code: str
    measured: str


@dataclass(frozen=True, slots=True)
class RunKey:
    """What a measured run is of. ``name``: for people."""

    name: str
    spec: ClusterSpec
    trace: RequestTrace
    profile: LatencyProfile

    def path(self, folder: Path) -> Path:
        words = re.sub(r"[^\w.]+", "-", self.name)[:_LONGEST]
        return folder / f"{words}-{self._digest()}.jsonl"

    def _digest(self) -> str:
        trace, profile = self.trace, self.profile
        digest = xxhash.xxh3_128()
        for part in (
            self.spec.model_dump_json(),
            profile.model_hash,
            profile.hardware,
            trace.part_tokens,
            *(json.dumps(ids.tolist()) for ids in trace.shared),
        ):
            digest.update(f"{part}\n".encode())
        # To the microsecond: a rate that was typed again gives the same times.
        digest.update(np.round(trace.arrivals_s * 1e6).astype("<i8").tobytes())
        for lengths in (trace.prompt_tokens, trace.output_tokens):
            digest.update(lengths.astype("<i8").tobytes())
        return digest.hexdigest()


def keep_run(kept: KeptRun, path: Path) -> None:
    """Appears complete or not at all. Raises ``InvalidField`` if it can't be written."""
    header = {"format": _FORMAT, "code": kept.code, "measured": kept.measured}
    lines = [header, *(record.as_json() for record in kept.run.records)]
    write_files({path: "".join(json.dumps(line) + "\n" for line in lines)}, "--records")


def read_run(path: Path, window_s: float) -> KeptRun | None:
    """None if there is no such file. ``window_s``: for how long its requests arrived. Raises
    ``InvalidField`` for a damaged one."""
    if not path.exists():
        return None
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        header = _header.validate_json(first)
        records = [_adapter.validate_json(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InvalidField("--records", str(path), f"is damaged; delete it: {error}") from None
    elapsed = max((r.ended_s for r in records if r.ended_s is not None), default=0.0)
    run = RunResult(0, tuple(records), window_s or elapsed, elapsed)
    return KeptRun(run, header["code"], header["measured"])
