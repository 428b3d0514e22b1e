"""From files to the requests of a simulation: recorded traces, or a description of traffic.

Does not cover: the formats of traces (``tuner.load.traces``), drawing described traffic
(``tuner.simulate.synthetic``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.errors import InvalidField
from tuner.load.traces import TRACE_BLOCK_TOKENS, TraceEntry, read_trace
from tuner.simulate.requests import MAX_DURATION_S, RequestTrace
from tuner.simulate.synthetic import draw_requests, read_description

MAX_TOKENS = 10_000_000


def load_requests(path: Path, limit: int | None = None, seed: int | None = None) -> RequestTrace:
    """The first ``limit`` requests of a trace, or of the traffic that a YAML file describes.

    ``seed`` is for descriptions, instead of their own. Raises ``InvalidField`` naming file, line
    or entry.
    """
    if path.suffix in (".yaml", ".yml"):
        trace = draw_requests(read_description(path), path.name, seed)
        return trace if limit is None else trace.first(limit)
    return from_entries(path.name, read_trace(path, limit, "TRACE"))


def from_entries(name: str, entries: list[TraceEntry]) -> RequestTrace:
    """``entries`` by time, at least one."""
    longest = max(max(entry.prompt_tokens, entry.output_tokens) for entry in entries)
    if longest > MAX_TOKENS:
        raise InvalidField(name, longest, f"no request has more than {MAX_TOKENS} tokens")
    duration_s = entries[-1].stamp_s - entries[0].stamp_s
    if duration_s > MAX_DURATION_S:
        fix = "seconds from the first to the last request are more than a year: is it another unit?"
        raise InvalidField(name, duration_s, fix)
    stamps = np.array([entry.stamp_s for entry in entries], dtype=np.float64)
    return RequestTrace(
        name=name,
        arrivals_s=stamps - stamps[0],
        prompt_tokens=np.array([entry.prompt_tokens for entry in entries], dtype=np.int32),
        output_tokens=np.array([entry.output_tokens for entry in entries], dtype=np.int32),
        shared=_shared(entries),
        part_tokens=TRACE_BLOCK_TOKENS,
    )


def _shared(entries: list[TraceEntry]) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """The traces' own ids may be any numbers; here they are counted from 0."""
    if not any(entry.block_ids for entry in entries):
        return []
    numbers: dict[int, int] = {}
    return [
        np.array([numbers.setdefault(b, len(numbers)) for b in entry.block_ids], dtype=np.int32)
        for entry in entries
    ]
