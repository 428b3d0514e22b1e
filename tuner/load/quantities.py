"""Amounts as people write them on a command line: `50ms`, `1.5`, `150-250`, `0,1,2`.

Every function raises ``InvalidField`` naming the option.
"""

from __future__ import annotations

import math
import re

from core.errors import InvalidField
from tuner.load.workload import TokenRange

_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0}


def parse_seconds(option: str, text: str) -> float:
    """A positive duration: `1`, `1.5s`, `50ms`, `3m`; a number alone means seconds."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(ms|s|m|)\s*", text)
    value = _number(match[1]) * _UNITS[match[2]] if match else math.nan
    if not (math.isfinite(value) and value > 0):
        raise InvalidField(option, text, "must be a time above zero, such as 1s, 50ms or 0.05")
    return value


def parse_range(option: str, text: str) -> TokenRange:
    """`A-B` (both included) or `A`, in tokens, at least 1."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise InvalidField(option, text, "must be a number of tokens from 1 on, such as 200, or a "
                           "range, such as 150-250")  # fmt: skip
    return TokenRange(low, high)


def parse_seeds(option: str, text: str) -> tuple[int, ...]:
    """`0,1,2`: one run for each, no seed twice."""
    parts = [part.strip() for part in text.split(",")]
    seeds = tuple(int(part) for part in parts if re.fullmatch(r"[0-9]{1,18}", part))
    if len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
        raise InvalidField(option, text, "must be different whole numbers, such as 0,1,2")
    return seeds


def parse_rate(option: str, value: float) -> float:
    """A positive number per second."""
    if not (math.isfinite(value) and value > 0):
        raise InvalidField(option, value, "must be a number above zero")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
