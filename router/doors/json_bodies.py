"""Reads the JSON of a request body; refuses what JSON readers usually let through.

Covers: encoding, syntax with its position, duplicate fields, NaN and infinities, lone surrogates,
endless nesting. Does not cover: which fields there may be (``router.doors.openai_bodies``).
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from core.errors import InvalidField

_SHOWN = 20
# An escape that stands for half a character; in pairs they are fine.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


# Reading so many takes a few hundredths of a second, in which no stream gets its tokens.
MAX_OBJECTS = 100_000


def read_object(raw: bytes) -> dict[str, Any]:
    """The fields of a JSON object; raises InvalidField for anything else."""
    # Braces inside of texts count, too: a bound that costs nothing need not be exact.
    objects = raw.count(b"{")
    if objects > MAX_OBJECTS:
        raise InvalidField("body", f"{objects} opening braces", f"at most {MAX_OBJECTS}")
    text = _decoded(raw)
    value = _parsed(text)
    if not isinstance(value, dict):
        raise InvalidField("body", value, "must be a JSON object")
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        bad = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise InvalidField("body", bad, "must be UTF-8") from None


def _parsed(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - _SHOWN) : error.pos + _SHOWN]
        where = f"line {error.lineno}, column {error.colno}"
        shown = near if text.strip() else "an empty body"
        raise InvalidField("body", shown, f"is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        limit = f"at most {sys.getrecursionlimit()} levels"
        raise InvalidField("body", "arrays or objects nested too deeply", limit) from None
    except InvalidField:
        raise
    # Python's reader refuses to spend its time on integers of thousands of digits.
    except ValueError:
        limit = f"at most {sys.get_int_max_str_digits()} digits"
        raise InvalidField("body", "an integer that is too long", limit) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise InvalidField(twice, "given more than once", "give each field once")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidField("body", name, "JSON has no such number; give a finite one")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def _check_surrogates(fields: dict[str, Any]) -> None:
    for path, text in _texts(fields):
        found = _SURROGATE.search(text)
        if found is not None:
            at = found.start()
            shown = text[max(0, at - _SHOWN) : at + _SHOWN]
            fix = f"must be Unicode text, and has half a surrogate pair at character {at}"
            raise InvalidField(path, shown, fix)


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Every string inside ``value`` with its dotted path; field names, too."""
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        path, value = left.pop()
        if isinstance(value, str):
            yield path or "body", value
        elif isinstance(value, dict):
            left += [(path or "body", name) for name in value]
            left += [(f"{path}.{name}".lstrip("."), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(f"{path}.{number}", inner) for number, inner in enumerate(value)]
