"""How commands speak: results on stdout as a table or JSON, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer


class Output(StrEnum):
    """What ``--output`` takes."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", help="How to print the result.")]


def emit(data: object, output: Output, as_table: Callable[[], None]) -> None:
    """Print ``data`` as one JSON document, or let ``as_table`` print it for people."""
    if output is Output.JSON:
        print(json.dumps(data, indent=2))
    else:
        as_table()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns, never folded: a line is one row, also for grep."""
    lines = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def plain(message: Any) -> dict[str, Any]:
    """A protobuf message as plain data: all fields, 64-bit numbers as numbers; an optional one that
    is not set is None."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None and field.has_presence and not message.HasField(field.name):
            result[field.name] = None
        elif field.message_type is None:
            result[field.name] = list(value) if field.is_repeated else value
        elif field.is_repeated:
            result[field.name] = [plain(item) for item in value]
        else:
            result[field.name] = plain(value)
    return result
