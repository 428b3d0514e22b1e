"""What a person at a terminal sees while something takes long. Never on stdout."""

from __future__ import annotations

import sys
from typing import Protocol


class Progress(Protocol):
    def step(self, text: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """Something that also a log file should hold."""


class StderrProgress:
    """Steps only if stderr is a terminal; notes always."""

    def step(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"· {text} …", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
