"""One thread that acts when another one, perhaps stuck in a library, is late.

Does not cover: what is late and what then happens (the caller's).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls ``on_late`` in its own thread, once for each deadline that passes while it is set."""

    def __init__(
        self, on_late: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_late = on_late
        self._clock = clock
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="nccl-watchdog", daemon=True)
        self._thread.start()

    def set(self, deadline: float | None) -> None:
        """Seconds of the clock; None: nothing is awaited."""
        with self._changed:
            if deadline != self._deadline:
                self._deadline = deadline
                self._changed.notify()

    def close(self) -> None:
        """Without waiting, so that ``on_late`` may call it, too."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self) -> None:
        """Waits for the thread; call `close` before, and not from ``on_late``."""
        self._thread.join()

    def _watch(self) -> None:
        while self._wait_until_late():
            self._on_late()

    def _wait_until_late(self) -> bool:
        """False once closed."""
        with self._changed:
            while not self._closed:
                left = None if self._deadline is None else self._deadline - self._clock()
                if left is not None and left <= 0:
                    self._deadline = None
                    return True
                self._changed.wait(left)
            return False
