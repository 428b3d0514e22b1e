"""Recorded traffic: when requests came and how long they were.

Reads three public formats, Mooncake (JSON lines with ``hash_ids``), Azure LLM inference (CSV) and
BurstGPT (CSV), and what `crossdock bench --save` writes. A bad line is refused by its number. Does
not cover what the prompts say: traces hold no text (``prompts`` makes some).
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from core.errors import InvalidField

log = logging.getLogger(__name__)

# Python reads more: 1_000, or other scripts' digits. In a trace that is a slip.
_WHOLE = re.compile(r"[-+]?[0-9]+")
_TOO_EXACT = re.compile(r"(\.[0-9]{6})[0-9]+")

# Tokens that one of Mooncake's hash ids stands for.
TRACE_BLOCK_TOKENS = 512
_FORMATS = (
    "a trace is of Mooncake (JSON lines with timestamp, input_length, output_length), of Azure "
    "(CSV with TIMESTAMP, ContextTokens, GeneratedTokens) or of BurstGPT (CSV with Timestamp, "
    "Request tokens, Response tokens), or what `crossdock bench --save` wrote"
)


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """``stamp_s``: seconds since any moment. Prompts with the same leading ``block_ids`` share
    that many times 512 tokens."""

    stamp_s: float
    prompt_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()


def read_trace(path: Path, limit: int | None = None, field: str = "--trace") -> list[TraceEntry]:
    """The first ``limit`` requests. Raises ``InvalidField`` naming file and line; ``field``: how
    the caller's user calls the file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        entries = list(islice(_parse(path.name, lines), limit))
    except UnicodeDecodeError:
        raise InvalidField(field, str(path), f"is no text file; {_FORMATS}") from None
    except (OSError, ValueError) as error:
        raise InvalidField(field, str(path), f"can't be read: {error}") from None
    except _NoTrace as error:
        raise InvalidField(field, str(path), f"{error}; {_FORMATS}") from None
    if not entries:
        raise InvalidField(field, str(path), f"holds no request that was answered; {_FORMATS}")
    return entries


class _NoTrace(Exception):
    """Why a file is none."""


def _parse(name: str, lines: list[str]) -> Iterator[TraceEntry]:
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise _NoTrace("is empty")
    if first.lstrip().startswith("{"):
        make = BenchRecords().entry if '"planned_s"' in first else _mooncake
        return _entries(name, lines, make)
    # A line is a row: no field of these formats holds a line break.
    header = _cells(lines[0])
    twice = next((column for column in header if column and header.count(column) > 1), None)
    if twice is not None:
        raise _NoTrace(f"its header has the column {twice} twice")
    for columns, make_of in _CSV_FORMATS.items():
        if columns <= set(header):
            return _entries(name, ["", *lines[1:]], partial(_row, header, make_of))
    raise _NoTrace(_unknown(header))


def _unknown(header: Sequence[str]) -> str:
    """Names what is missing of the format that is nearest."""
    columns = max(_CSV_FORMATS, key=lambda columns: len(columns & set(header)))
    if not columns & set(header):
        return "its first line is that of no trace"
    return f"its header has no column {', '.join(sorted(columns - set(header)))}"


def _cells(line: str) -> list[str]:
    """Raises ``ValueError`` for a line that is no CSV."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True), [])]
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from None


def _row(
    header: Sequence[str], make: Callable[[Mapping[str, str]], TraceEntry], line: str
) -> TraceEntry:
    cells = _cells(line)
    if any(cells[len(header) :]):
        raise ValueError(f"it has {len(cells)} fields, and the header {len(header)}")
    return make(dict(zip(header, cells, strict=False)))


def _entries(
    name: str, lines: Iterable[str], make: Callable[[str], TraceEntry]
) -> Iterator[TraceEntry]:
    """Of all lines that aren't empty, but those without an answer: their request failed when the
    trace was taken."""
    latest, left_out = -math.inf, 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _checked(make(line))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            field = f"{name} line {number}"
            raise InvalidField(field, line, f"is no request of this trace: {error}") from None
        except KeyError as error:
            fix = f"is no request of this trace: it has no {error.args[0]}"
            raise InvalidField(f"{name} line {number}", line, fix) from None
        if entry.stamp_s < latest:
            fix = "came earlier than the request before it; sort the trace by time"
            raise InvalidField(f"{name} line {number}", line, fix)
        latest = entry.stamp_s
        if entry.prompt_tokens and entry.output_tokens:
            yield entry
        else:
            left_out += 1
    if left_out:
        log.warning("%s: %d requests without prompt or answer are left out", name, left_out)


def _checked(entry: TraceEntry) -> TraceEntry:
    if not math.isfinite(entry.stamp_s):
        raise ValueError("its time is no number of seconds")
    if min(entry.prompt_tokens, entry.output_tokens) < 0:
        raise ValueError("a prompt and an answer have 0 tokens or more")
    if min(entry.block_ids, default=0) < 0:
        raise ValueError("hash_ids count from 0")
    blocks = -(-entry.prompt_tokens // TRACE_BLOCK_TOKENS)
    if entry.block_ids and len(entry.block_ids) != blocks:
        raise ValueError(
            f"hash_ids has {len(entry.block_ids)}, and {entry.prompt_tokens} tokens are {blocks} "
            f"blocks of {TRACE_BLOCK_TOKENS}"
        )
    return entry


def _object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    return fields


def _whole(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number")
    return float(value)


def _count(fields: Mapping[str, str], name: str) -> int:
    if not _WHOLE.fullmatch(fields[name]):
        raise ValueError(f"{name} must be a whole number")
    return int(fields[name])


def _mooncake(line: str) -> TraceEntry:
    fields = _object(line)
    blocks = fields.get("hash_ids", [])
    if not isinstance(blocks, list):
        raise ValueError("hash_ids must be a list of whole numbers")
    return TraceEntry(
        stamp_s=_number("timestamp", fields["timestamp"]) / 1000,
        prompt_tokens=_whole("input_length", fields["input_length"]),
        output_tokens=_whole("output_length", fields["output_length"]),
        block_ids=tuple(_whole("hash_ids", block) for block in blocks),
    )


class BenchRecords:
    """Runs with several seeds, each of which began at 0, follow one another."""

    def __init__(self) -> None:
        self._seed: object = None
        self._start_s = 0.0
        self._end_s = 0.0

    def entry(self, line: str) -> TraceEntry:
        fields = _object(line)
        if fields.get("seed") != self._seed:
            self._seed, self._start_s = fields.get("seed"), self._end_s
        stamp_s = self._start_s + _number("planned_s", fields["planned_s"])
        self._end_s = max(self._end_s, stamp_s)
        return TraceEntry(
            stamp_s=stamp_s,
            prompt_tokens=_whole("wanted_prompt_tokens", fields["wanted_prompt_tokens"]),
            output_tokens=_whole("wanted_output_tokens", fields["wanted_output_tokens"]),
        )


def _azure(row: Mapping[str, str]) -> TraceEntry:
    # Seven digits of a second where Python reads six.
    text = _TOO_EXACT.sub(r"\1", row["TIMESTAMP"])
    try:
        stamp = datetime.fromisoformat(text)
        stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
    except ValueError:
        raise ValueError("TIMESTAMP must be a time such as 2023-11-16 18:17:03.979") from None
    return TraceEntry(
        stamp_s=stamp.timestamp(),
        prompt_tokens=_count(row, "ContextTokens"),
        output_tokens=_count(row, "GeneratedTokens"),
    )


def _burstgpt(row: Mapping[str, str]) -> TraceEntry:
    try:
        stamp_s = float(row["Timestamp"])
    except ValueError:
        raise ValueError("Timestamp must be a number of seconds") from None
    return TraceEntry(
        stamp_s=stamp_s,
        prompt_tokens=_count(row, "Request tokens"),
        output_tokens=_count(row, "Response tokens"),
    )


_CSV_FORMATS: dict[frozenset[str], Callable[[Mapping[str, str]], TraceEntry]] = {
    frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}): _azure,
    frozenset({"Timestamp", "Request tokens", "Response tokens"}): _burstgpt,
}
