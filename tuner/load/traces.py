"""Recorded traffic: when requests came and how long they were.

Reads three public formats, Mooncake (JSON lines with ``hash_ids``), Azure LLM inference (CSV) and
BurstGPT (CSV), and what `crossdock bench --save` writes. A bad line is refused by its number. Does
not cover what the prompts say: traces hold no text (``prompts`` makes some).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import InvalidField

# Tokens that one of Mooncake's hash ids stands for.
TRACE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """``stamp_s``: seconds since any moment. Prompts with the same leading ``block_ids`` share
    that many times 512 tokens."""

    stamp_s: float
    prompt_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()


def read_trace(path: Path, limit: int | None = None) -> list[TraceEntry]:
    """The first ``limit`` requests. Raises ``InvalidField`` naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidField("--trace", str(path), f"can't be read: {error}") from None
    entries = list(_parse(path, lines))[:limit]
    if not entries:
        raise InvalidField("--trace", str(path), "holds no request that was answered")
    return entries


def _parse(path: Path, lines: list[str]) -> Iterator[TraceEntry]:
    if not lines or lines[0].lstrip().startswith("{"):
        is_bench = bool(lines) and '"planned_s"' in lines[0]
        return _numbered(path, enumerate(lines, 1), BenchRecords().entry if is_bench else _mooncake)
    rows = csv.reader(lines)
    header = next(rows)
    for columns, make in _CSV_FORMATS.items():
        if columns <= set(header):
            named = ((rows.line_num, dict(zip(header, row, strict=False))) for row in rows)
            return _numbered(path, named, make)
    fix = (
        "must be a trace of Mooncake (JSON lines), Azure or BurstGPT (CSV with their header), or "
        "what `crossdock bench --save` wrote"
    )
    raise InvalidField("--trace", str(path), fix)


def _numbered(
    path: Path, lines: Iterable[tuple[int, Any]], make: Callable[[Any], TraceEntry]
) -> Iterator[TraceEntry]:
    """Entries of all lines that aren't empty, but those without an answer: their request failed
    when the trace was taken."""
    latest = -math.inf
    for number, line in lines:
        if not line:
            continue
        try:
            entry = make(line)
            _check(entry)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            field = f"{path.name} line {number}"
            raise InvalidField(field, line, f"is no request of this trace: {error!r}") from None
        if entry.stamp_s < latest:
            fix = "came earlier than the request before it; sort the trace by time"
            raise InvalidField(f"{path.name} line {number}", line, fix)
        latest = entry.stamp_s
        if entry.prompt_tokens and entry.output_tokens:
            yield entry


def _check(entry: TraceEntry) -> None:
    numbers = (entry.prompt_tokens, entry.output_tokens, *entry.block_ids)
    if min(numbers) < 0 or not math.isfinite(entry.stamp_s):
        raise ValueError("no number may be negative, no time endless")


def _mooncake(line: str) -> TraceEntry:
    fields = json.loads(line)
    return TraceEntry(
        stamp_s=float(fields["timestamp"]) / 1000,
        prompt_tokens=int(fields["input_length"]),
        output_tokens=int(fields["output_length"]),
        block_ids=tuple(int(block) for block in fields.get("hash_ids", ())),
    )


class BenchRecords:
    """Runs with several seeds, each of which began at 0, follow one another."""

    def __init__(self) -> None:
        self._seed: object = None
        self._start_s = 0.0
        self._end_s = 0.0

    def entry(self, line: str) -> TraceEntry:
        fields = json.loads(line)
        if fields.get("seed") != self._seed:
            self._seed, self._start_s = fields.get("seed"), self._end_s
        stamp_s = self._start_s + float(fields["planned_s"])
        self._end_s = max(self._end_s, stamp_s)
        return TraceEntry(
            stamp_s=stamp_s,
            prompt_tokens=int(fields["wanted_prompt_tokens"]),
            output_tokens=int(fields["wanted_output_tokens"]),
        )


def _azure(row: Mapping[str, str]) -> TraceEntry:
    # Seven digits of a second where Python reads six.
    stamp = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC)
    return TraceEntry(
        stamp_s=stamp.timestamp(),
        prompt_tokens=int(row["ContextTokens"]),
        output_tokens=int(row["GeneratedTokens"]),
    )


def _burstgpt(row: Mapping[str, str]) -> TraceEntry:
    return TraceEntry(
        stamp_s=float(row["Timestamp"]),
        prompt_tokens=int(row["Request tokens"]),
        output_tokens=int(row["Response tokens"]),
    )


_CSV_FORMATS: dict[frozenset[str], Callable[[Mapping[str, str]], TraceEntry]] = {
    frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}): _azure,
    frozenset({"Timestamp", "Request tokens", "Response tokens"}): _burstgpt,
}
