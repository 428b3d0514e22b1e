"""Keys and values that ranks share which are threads of one process."""

from __future__ import annotations

import threading


class InMemory:
    """``engine.rendezvous.KeyValues``; a wait ends after ``timeout_s``."""

    def __init__(self, timeout_s: float = 60.0) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._timeout_s = timeout_s

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def has(self, key: str) -> bool:
        with self._changed:
            return key in self._values

    def get(self, key: str) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, self._timeout_s):
                raise TimeoutError(f"nobody has set {key}")
            return self._values[key]
