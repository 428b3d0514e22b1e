"""What a person at a terminal sees while something takes long. Never on stdout."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

_BAR_WIDTH = 24
# Before that nobody can say how long it takes.
_LEAST_SHARE = 0.02


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


class ProgressBar:
    """One line that fills up, with the time that is left; only if ``stream`` is a terminal."""

    def __init__(
        self,
        total: float,
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``total``: amount of work, in any unit; ``clock`` in seconds."""
        self._total = max(total, 1e-9)
        self._done = 0.0
        self._stream = stream
        self._clock = clock
        self._started = clock()
        self._is_shown = stream.isatty()

    def advance(self, amount: float, text: str) -> None:
        """``text``: what was done, or begins."""
        self._done = min(self._total, self._done + amount)
        if self._is_shown:
            self._stream.write(f"\r\x1b[K{self._line(text)}")
            self._stream.flush()

    def close(self) -> None:
        if self._is_shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _line(self, text: str) -> str:
        share = self._done / self._total
        filled = round(share * _BAR_WIDTH)
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        line = f"{bar} {share:4.0%} {self._time_left(share)}  {text}"
        return line[: shutil.get_terminal_size().columns - 1]

    def _time_left(self, share: float) -> str:
        if share < _LEAST_SHARE:
            return "…"
        seconds = (self._clock() - self._started) * (1 - share) / share
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"
