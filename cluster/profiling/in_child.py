"""What all measuring processes do: read their task, speak in lines, end with their parent."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter

from core.errors import CrossdockError

Task = TypeVar("Task")


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def run_task(kind: type[Task], work: Callable[[Task], None]) -> int:
    """The exit code. ``work`` may go on reading lines of stdin; see `end_with_stdin`."""
    task = TypeAdapter(kind).validate_json(_read_line())
    try:
        work(task)
    except CrossdockError as error:
        say(reason=error.reason, message=error.message)
        return 1
    say(done=True)
    return 0


def end_with_stdin(on_line: Callable[[str], None] = lambda line: None) -> None:
    """In a thread: passes on every line, and ends the process when its parent closes stdin."""
    threading.Thread(target=_read_for_ever, args=(on_line,), daemon=True).start()


def _read_for_ever(on_line: Callable[[str], None]) -> None:
    while line := _read_line():
        on_line(line.strip())
    os._exit(0)


def _read_line() -> str:
    # Not sys.stdin: a thread that waits in it would hold up the interpreter's end.
    line = bytearray()
    while byte := os.read(0, 1):
        line += byte
        if byte == b"\n":
            break
    return line.decode()


def leave(exit_code: int) -> None:
    """Without waiting for threads that may wait for peers that are gone."""
    sys.stdout.flush()
    os._exit(exit_code)
